"""One document -> the tensors that the model takes, which key positions hold what, and which patches the pointed box covers.

All of it is settled here, once, when a document is encoded; whoever needs it reads `Encoded`. Prompts are never padded and never
truncated. Positions index the expanded prompt (one position per visual token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import as_rgb
from lmms_visual_heads.geometry.layout import BASE, NO_PATCH, ImageLayout, image_layout
from lmms_visual_heads.geometry.preprocessing import Preprocessing, check_image_size, read_preprocessing
from lmms_visual_heads.geometry.regions import region_of

VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if loop.index0 == 0 %}A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
    "{{ message['content'] }} {% elif message['role'] == 'user' %}USER: {{ message['content'] }} {% else %} ASSISTANT: "
    "{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""For checkpoints without a chat template: the USER/ASSISTANT form that the LLaVA family was trained on."""

_MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_sizes")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded document. Tensors lie on the CPU.

    Attributes
    ----------
    inputs : dict of Tensor
        What the model's forward takes; batch dimension 1 (pixels: one entry per image).
    prompt : str
        The prompt's text, with one placeholder per image.
    text : str or None
        The question inside it; None for a ready-made prompt.
    input_ids : Tensor [K], int64
        The expanded prompt's tokens.
    n_images : int
    image_sizes : tuple of (width, height)
        Of the original images, pixels.
    visual_positions, patch_positions, sink_positions : Tensor, int64
        Key positions: visual tokens; those with a patch behind them; leading special tokens.
    base_positions : Tensor, int64, or None
        Patch tokens of the base view where there are tiles too (anyres), else None.
    region : Tensor [n_patches], bool, or None
        Which patch tokens the document's boxes overlap; None without boxes, with other than one image, and where the
        processor's geometry is not known.
    """

    inputs: dict[str, Tensor]
    prompt: str
    text: str | None
    input_ids: Tensor
    n_images: int
    image_sizes: tuple[tuple[int, int], ...]
    visual_positions: Tensor
    patch_positions: Tensor
    sink_positions: Tensor
    base_positions: Tensor | None
    region: Tensor | None = None

    def __len__(self) -> int:
        """Tokens of the prompt, visual tokens included."""
        return len(self.input_ids)


class PromptEncoder:
    """Prompts and tensors of a Hugging Face processor.

    Parameters
    ----------
    processor : transformers processor
        With every field that token counting needs.
    config : transformers config
        Of the whole model.
    """

    UNPAD_ROUNDING = "huggingface"
    """How the model rounds when it cuts padding off anyres tiles (geometry.preprocessing.UNPAD_ROUNDINGS)."""

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        self.image_token: str = processor.image_token
        self.image_token_id = int(config.image_token_id)
        self.preprocessing: Preprocessing = read_preprocessing(
            processor.image_processor,
            config.vision_config,
            getattr(config, "image_grid_pinpoints", None),
            self.UNPAD_ROUNDING,
        )
        self.max_positions = int(config.get_text_config(decoder=True).max_position_embeddings)
        # a kept class token stands for no patch; anyres and ViP towers never keep it
        keeps_class_token = config.model_type == "llava" and config.vision_feature_select_strategy == "full"
        self._leading = int(processor.num_additional_image_tokens or 0) if keeps_class_token else 0

    def prompt(self, text: str, n_images: int, answer: str | None = None) -> str:
        """The chat prompt that asks `text` about `n_images` images; with `answer`, the finished exchange.

        Placeholders that stand in `text` already are kept where they are.

        Raises
        ------
        VisualHeadsError
            When `text` holds placeholders, but not one per image, or the chat template loses images or text.
        """
        placed = self.check_placed(text, n_images)
        missing = n_images - placed
        parts: list[dict[str, str]] = [{"type": "image"}] * missing + [{"type": "text", "text": text}]
        joined = " ".join([self.image_token] * missing) + ("\n" if missing else "") + text
        if self._template() is not None:
            for content in (parts, joined):
                prompt = self._render(content, answer, typed=content is parts)
                if prompt is not None and self._keeps(prompt, text, n_images):
                    return prompt
            raise VisualHeadsError(
                f"The checkpoint's chat template must keep the question and one {self.image_token} per image; "
                "it does not. Mend chat_template.jinja in the checkpoint's folder."
            )
        rendered = self._render(joined, answer, typed=False)
        if rendered is None:
            raise AssertionError("the default template takes plain strings")
        return rendered

    def check_placed(self, text: str, n_images: int) -> int:
        """Placeholders that stand in `text` already: none, or one per image."""
        placed = text.count(self.image_token)
        if placed not in (0, n_images):
            raise VisualHeadsError(
                f"A prompt needs one {self.image_token} per image; got {placed} for {n_images} images. "
                f"Leave {self.image_token} out of the text or write one per image."
            )
        return placed

    def encode(self, text: str, images: Sequence[Image.Image], boxes: Any = None) -> Encoded:
        """Encode the question `text` about `images` (see `encode_prompt`)."""
        return self.encode_prompt(self.prompt(text, len(images)), images, text, boxes)

    def encode_again(self, text: str, known: Encoded, boxes: Any = None) -> Encoded:
        """Encode the question `text` about the images of `known`: as `encode` does, without touching their pixels again.

        Raises
        ------
        VisualHeadsError
            As `encode`.
        """
        prompt = self.prompt(text, known.n_images)
        counts = [self.layout((height, width)).n_tokens for width, height in known.image_sizes]
        ids = torch.tensor([self.expand(self.text_ids(prompt), counts)])
        inputs = {**known.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self._encoded(inputs, prompt, text, known.image_sizes, boxes)

    def encode_prompt(
        self, prompt: str, images: Sequence[Image.Image], text: str | None = None, boxes: Any = None
    ) -> Encoded:
        """Encode a ready-made prompt with one placeholder per image.

        Parameters
        ----------
        prompt : str
        images : sequence of PIL images
        text : str or None
            The question in the prompt, where it is known.
        boxes : sequence of (x0, y0, x1, y1), one such box, or None
            In pixels of the image, half-open; together they are the document's region.

        Raises
        ------
        VisualHeadsError
            When the prompt leaves no room for an answer within the model's context limit, or a box is none.
        """
        sizes = tuple((image.width, image.height) for image in images)
        return self._encoded(self.tensors(prompt, images), prompt, text, sizes, boxes)

    def finished(self, encoded: Encoded, continuation: str) -> Tensor:
        """Tokens [K], int64, of the exchange in which `continuation` is the answer to an encoded question.

        Raises
        ------
        VisualHeadsError
            When the continuation has no token, or does not fit the model's context together with the prompt.
        """
        ids = self._finished_ids(encoded, continuation)
        if len(ids) <= len(encoded):
            raise VisualHeadsError(
                f"A continuation to be scored needs at least one token; {continuation!r} has none. "
                "Leave it out of the task."
            )
        if len(ids) > self.max_positions:
            raise VisualHeadsError(
                f"A prompt and its continuation must fit the model's {self.max_positions} positions; they have "
                f"{len(ids)} tokens, visual tokens included. Shorten them; they are never truncated."
            )
        return ids

    def _finished_ids(self, encoded: Encoded, continuation: str) -> Tensor:
        """The finished exchange's tokens, placeholders expanded without touching the pixels again."""
        counts = [self.layout((height, width)).n_tokens for width, height in encoded.image_sizes]
        return torch.tensor(self.expand(self.text_ids(self._finished_text(encoded, continuation)), counts))

    def _finished_text(self, encoded: Encoded, continuation: str) -> str:
        if encoded.text is None:
            return f"{encoded.prompt} {continuation}"
        return self.prompt(encoded.text, encoded.n_images, answer=continuation)

    def _encoded(
        self,
        inputs: dict[str, Tensor],
        prompt: str,
        text: str | None,
        image_sizes: tuple[tuple[int, int], ...],
        boxes: Any,
    ) -> Encoded:
        """What the tensors of a prompt hold where."""
        ids = inputs["input_ids"][0]
        self._check_fits(ids)
        visual = (ids == self.image_token_id).nonzero()[:, 0]
        patches, base = self._patches(visual, image_sizes)
        return Encoded(
            inputs=inputs,
            prompt=prompt,
            text=text,
            input_ids=ids,
            n_images=len(image_sizes),
            image_sizes=image_sizes,
            visual_positions=visual,
            patch_positions=patches,
            sink_positions=self._sinks(ids),
            base_positions=base,
            region=self._region(image_sizes, boxes),
        )

    def _check_fits(self, ids: Tensor) -> None:
        if len(ids) + 1 > self.max_positions:
            raise VisualHeadsError(
                f"A prompt and its answer must fit the model's {self.max_positions} positions; this prompt has "
                f"{len(ids)} tokens, visual tokens included. Shorten it; it is never truncated."
            )

    def _patches(self, visual: Tensor, image_sizes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor | None]:
        """Key positions of the patch tokens among the visual ones, and those of the base view where there are tiles."""
        layouts = [self.layout((height, width)) for width, height in image_sizes]
        kinds = np.concatenate([layout.kinds() for layout in layouts]) if layouts else np.empty(0, np.int8)
        if len(kinds) != len(visual):
            raise VisualHeadsError(
                f"The processor must place {len(kinds)} visual tokens for {len(layouts)} images of these sizes; it "
                f"placed {len(visual)}. Check patch_size and image_grid_pinpoints in the checkpoint's processor."
            )
        kind = torch.from_numpy(kinds)
        return visual[kind != NO_PATCH], visual[kind == BASE] if any(layout.tiles for layout in layouts) else None

    def _region(self, image_sizes: tuple[tuple[int, int], ...], boxes: Any) -> Tensor | None:
        """Which patch tokens the boxes overlap, bool [n_patches]; None with other than one image."""
        if len(image_sizes) != 1:
            return None
        width, height = image_sizes[0]
        region = region_of((height, width), boxes, self.preprocessing)
        return None if region is None else torch.from_numpy(region)

    def tensors(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The processor's tensors for one prompt: only those that the model's forward takes."""
        for image in images:
            check_image_size((image.height, image.width), self.preprocessing)
        pictures = [as_rgb(image) for image in images]
        encoded = self.processor(text=[prompt], images=pictures or None, return_tensors="pt")
        return {name: encoded[name] for name in _MODEL_INPUTS if name in encoded}

    def text_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, one image token per placeholder."""
        return list(self.tokenizer(prompt)["input_ids"])

    def expand(self, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
        """`ids` with its n-th image token repeated `counts[n]` times."""
        remaining = iter(counts)
        expanded: list[int] = []
        for token in ids:
            expanded.extend([token] * (next(remaining) if token == self.config.image_token_id else 1))
        return expanded

    def layout(self, image_size: tuple[int, int]) -> ImageLayout:
        """Visual tokens of an image of (height, width) pixels."""
        return image_layout(image_size, self.preprocessing, self._leading)

    def _keeps(self, prompt: str, text: str, n_images: int) -> bool:
        """Whether a rendered prompt holds the question and its images, and no list printed as text."""
        printed = "{'type':" in prompt.replace(text.strip(), "")
        return prompt.count(self.image_token) == n_images and text.strip() in prompt and not printed

    def _template(self) -> str | None:
        return getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)

    def _render(self, content: Any, answer: str | None, *, typed: bool) -> str | None:
        """The rendered exchange, or None where the template does not take this kind of content."""
        from jinja2 import TemplateError

        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            reply: Any = [{"type": "text", "text": answer}] if typed else answer
            messages.append({"role": "assistant", "content": reply})
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=answer is None,
                chat_template=self._template() or VICUNA_TEMPLATE,
            )
        except (TemplateError, TypeError):
            return None

    def _sinks(self, ids: Tensor) -> Tensor:
        """Position 0, and a second BOS directly after it."""
        doubled = len(ids) > 1 and int(ids[0]) == int(ids[1]) == self.tokenizer.bos_token_id
        return torch.arange(2 if doubled else 1)
