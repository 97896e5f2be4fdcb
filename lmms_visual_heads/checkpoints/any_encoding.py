"""One document -> tensors and positions, for any processor whose visual tokens are marked in `input_ids`.

Families name their visual token differently (config.image_token_id, image_token_index, image_patch_id, the processor's
image_token_id), and some of these names stand for another token (Gemma-3's processor names the start of the image). So
every name is tried, and the token counts that one image adds most often. All visual tokens count as patch tokens: which
of them only separate rows is not known here. Where a patch lies in the image is not known either: regions are missing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lmms_visual_heads.checkpoints.encoding import Encoded, PromptEncoder
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import as_rgb
from lmms_visual_heads.geometry.preprocessing import Preprocessing

_TOKEN_NAMES = re.compile(
    r"^(image|img|im|vision|visual|media)_.*(token|patch|placeholder|context).*_?(id|index)$|^image_patch_id$"
)
_OTHER_TOKENS = re.compile(r"start|end|begin|boi|eoi|newline|break|video|audio|num|size|length|layer|row|col|separator")
_PROCESSOR_ERRORS = (
    ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError, ZeroDivisionError, OSError,
)  # fmt: skip
PROBE_QUESTION = "How many shapes are there?"


class AnyEncoder(PromptEncoder):
    """Prompts and tensors of any image-text-to-text processor.

    Parameters
    ----------
    processor : transformers processor
    config : transformers config
        Of the whole model.
    model_class : type
        The model's class: its forward says which tensors it takes.

    Raises
    ------
    VisualHeadsError
        When no token marks the visual positions.
    """

    def __init__(self, processor: Any, config: Any, model_class: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        self.family = type(processor).__name__
        text_config = config.get_text_config(decoder=True)
        self.max_positions = int(
            getattr(text_config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        )
        parameters = [inspect.signature(model_class.forward).parameters]
        if hasattr(model_class, "prepare_inputs_for_generation"):
            parameters.append(inspect.signature(model_class.prepare_inputs_for_generation).parameters)
        self._taken = {name for signature in parameters for name in signature}
        self._taken = (self._taken | {"input_ids", "attention_mask", "pixel_values"}) - {"labels"}
        self.preprocessing = Preprocessing((1, 1), 1, None, False, False, known=False)
        self._nested = False
        self.image_token = self._placeholder()
        self.image_token_id = self._visual_token()
        self.stacks = self._stacks()

    def prompt(self, text: str, n_images: int, answer: str | None = None) -> str:
        """The chat prompt (see `PromptEncoder.prompt`); without a chat template the placeholders and the bare text."""
        if self._template() is not None:
            return super().prompt(text, n_images, answer)
        missing = n_images - self.check_placed(text, n_images)
        return self.image_token * missing + text + ("" if answer is None else f" {answer}")

    def encode_again(self, text: str, known: Encoded, boxes: Any = None) -> Encoded:
        """Not offered: how many tokens an image takes is known to its processor only.

        Raises
        ------
        VisualHeadsError
            Always.
        """
        raise VisualHeadsError(
            f"Questions share an image's tensors in LLaVA families only; {self.family} needs the image again. Use encode."
        )

    def _patches(self, visual: Tensor, image_sizes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor | None]:
        """Every visual token counts as a patch token."""
        if bool(len(visual)) != bool(image_sizes):
            raise VisualHeadsError(
                f"The processor must place visual tokens for {len(image_sizes)} images; it placed {len(visual)}. "
                "Check the prompt and the checkpoint's processor files."
            )
        return visual, None

    def _finished_ids(self, encoded: Encoded, continuation: str) -> Tensor:
        """The prompt's tokens, and those that the finished exchange has after them."""
        start, ids = self.text_ids(encoded.prompt), self.text_ids(self._finished_text(encoded, continuation))
        if ids[: len(start)] != start:  # the tokenizer merges across the border: the answer is tokenised alone
            ids = start + list(self.tokenizer(continuation, add_special_tokens=False)["input_ids"])
        return torch.cat([encoded.input_ids, torch.tensor(ids[len(start) :], dtype=encoded.input_ids.dtype)])

    def tensors(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The processor's tensors for one prompt: those that the model's forward takes."""
        for image in images:
            if image.width < 1 or image.height < 1:
                raise VisualHeadsError(
                    "An image needs at least one pixel; one has none. Leave it out or repair its file."
                )
        pictures = [as_rgb(image) for image in images]
        try:
            return self._processed([prompt], [pictures] if pictures else [])
        except _PROCESSOR_ERRORS as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images) or "no image"
            raise VisualHeadsError(
                f"The checkpoint's processor must take the prompt and its images; {self.family} refused them "
                f"({sizes}: {_reason(error)}). Resize or leave out such images."
            ) from error

    def text_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, one image token per placeholder."""
        return list(self.tokenizer(prompt, **self._special_tokens(prompt))["input_ids"])

    def _processed(self, prompts: list[str], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        """The processor's tensors for prompts with their images; some processors want the images of each in a list."""
        flat = [image for of_prompt in images for image in of_prompt]
        pictures: Any = images if self._nested else flat
        settings = {"return_tensors": "pt", **self._special_tokens(prompts[0])}
        encoded = self.processor(text=prompts, **({"images": pictures} if flat else {}), **settings)
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor) and name in self._taken}

    def _special_tokens(self, prompt: str) -> dict[str, bool]:
        """A template that writes the first token itself does not get it again (as `apply_chat_template` does)."""
        first = self.tokenizer.bos_token
        return {"add_special_tokens": False} if first and prompt.startswith(first) else {}

    def _placeholder(self) -> str:
        """The text that stands for one image in a prompt."""
        for owner in (self.processor, self.tokenizer):
            token = getattr(owner, "image_token", None)
            if token:
                return str(getattr(token, "content", token))
        known = [token for token in self._candidates() if 0 <= token < len(self.tokenizer)]
        if known:
            return str(self.tokenizer.convert_ids_to_tokens(known[0]))
        raise self._not_marked()

    def _candidates(self) -> list[int]:
        """Token ids that some name in the config, the processor or the tokenizer calls the image's."""
        tokens: list[int] = []
        for owner in (self.config, self.processor, self.tokenizer):
            names = [name for name in dir(owner) if _TOKEN_NAMES.match(name) and not _OTHER_TOKENS.search(name)]
            for name in sorted(names, key=lambda name: name not in ("image_token_id", "image_token_index")):
                value = getattr(owner, name, None)
                if isinstance(value, int) and not isinstance(value, bool):
                    tokens.append(value)
        image_ids = getattr(self.processor, "image_ids", None)
        tokens += [int(token) for token in image_ids] if isinstance(image_ids, list | tuple) else []
        return list(dict.fromkeys(tokens))

    def _visual_token(self) -> int:
        """The candidate that one image adds most often to a prompt."""
        candidates = self._candidates()
        picture = probe_image(0)
        for self._nested in (False, True):
            try:
                ids = self._processed([self.prompt(PROBE_QUESTION, 1)], [[picture]])["input_ids"][0]
                break
            except VisualHeadsError:
                raise
            except _PROCESSOR_ERRORS as error:
                if self._nested:
                    raise VisualHeadsError(
                        f"visual_heads_hf needs a processor that takes a prompt and one image; {self.family} refused a "
                        f"drawn one ({_reason(error)}). Check the checkpoint's processor and chat template files."
                    ) from error
        counts = {token: int((ids == token).sum()) - self._without_image(token) for token in candidates}
        best = max(counts, key=lambda token: counts[token], default=-1)
        if not counts or counts[best] <= 0:
            raise self._not_marked()
        return best

    def _without_image(self, token: int) -> int:
        """How often `token` stands in the question alone."""
        return self.text_ids(PROBE_QUESTION).count(token)

    def _not_marked(self) -> VisualHeadsError:
        return VisualHeadsError(
            f"visual_heads_hf needs visual tokens that are marked in input_ids; {self.config.model_type} ({self.family}) "
            "names no token that an image puts there. Run it with lmms-eval's own wrapper, without heads."
        )

    def _stacks(self) -> bool:
        """Whether the processor's tensors of two documents are those of each, one after the other."""
        pair = [probe_image(0), probe_image(1)]
        prompt = self.prompt(PROBE_QUESTION, 1)
        single = [self._processed([prompt], [[image]]) for image in pair]
        nested = self._nested
        try:
            for self._nested in (nested, True):
                try:
                    both = self._processed([prompt, prompt], [[image] for image in pair])
                    break
                except _PROCESSOR_ERRORS:
                    continue
            else:
                return False
        finally:
            self._nested = nested
        return stackable(single) and all(
            name in both and torch.equal(both[name], torch.cat([one[name] for one in single])) for name in single[0]
        )

    def _sinks(self, ids: Tensor) -> Tensor:
        """The leading special tokens; none where the prompt starts with a visual token."""
        return torch.arange(0) if int(ids[0]) == self.image_token_id else super()._sinks(ids)


def stackable(inputs: Sequence[dict[str, Tensor]]) -> bool:
    """Whether documents have the same tensors, of the same shapes but for the first dimension."""
    first = inputs[0]
    return all(one.keys() == first.keys() for one in inputs) and all(
        one[name].shape[1:] == first[name].shape[1:] for one in inputs for name in first
    )


def probe_image(seed: int) -> Image.Image:
    """A small drawn picture with something in every part of it; another one for another seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((224, 224), Image.Resampling.NEAREST)
    ImageDraw.Draw(image).rectangle((40, 40, 120, 120), fill=(200, 40, 40) if seed else (40, 80, 200))
    return image


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:300]
