"""Prompts and tensors as the original code makes them, on top of the Hugging Face image processors.

The text before and after each placeholder is tokenised separately, and every later piece loses as many tokens as the
first piece has leading BOS (0 or 1): sentencepiece models get an extra "▁" after the image, Llama-3 prompts carry BOS
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AddedToken, LlavaNextProcessor, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from lmms_visual_heads.checkpoints.conversations import IMAGE, IMAGE_END, IMAGE_START, Conversation
from lmms_visual_heads.checkpoints.encoding import PromptEncoder
from lmms_visual_heads.checkpoints.original_config import OriginalConfig
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import as_rgb
from lmms_visual_heads.geometry.preprocessing import check_image_size

_SENTENCEPIECE_BLANK = "▁"


class OriginalEncoder(PromptEncoder):
    """Encodes as the original `llava` code does.

    Parameters
    ----------
    processor : transformers processor
        From `original_processor`.
    config : transformers config
        Of the whole model.
    conversation : Conversation
    marks_images : bool
        Whether every placeholder stands between <im_start> and <im_end>.
    vocabulary : int
        Tokens that the model has an embedding for, besides the placeholder.
    """

    UNPAD_ROUNDING = "original"

    def __init__(
        self, processor: Any, config: Any, conversation: Conversation, marks_images: bool, vocabulary: int
    ) -> None:
        super().__init__(processor, config)
        self.conversation = conversation
        self.vocabulary = vocabulary
        self.image_text = IMAGE_START + IMAGE + IMAGE_END if marks_images else IMAGE
        self._prepends_blank = _SENTENCEPIECE_BLANK in "".join(
            self.tokenizer.convert_ids_to_tokens(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        )

    def prompt(self, text: str, n_images: int, answer: str | None = None) -> str:
        """The conversation that asks `text` about `n_images` images; with `answer`, the finished exchange."""
        placed = self.check_placed(text, n_images)
        missing = n_images - placed
        question = " ".join([self.image_text] * missing) + ("\n" if missing else "") + text
        return self.conversation.prompt(question, answer)

    def text_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, one image token per placeholder."""
        pieces = [self._piece_ids(piece) for piece in prompt.split(IMAGE)]
        bos = self.tokenizer.bos_token_id
        offset = int(bool(pieces[0]) and pieces[0][0] == bos)
        ids = pieces[0][:offset]
        for i, piece in enumerate(pieces):
            ids += [self.config.image_token_id] * (i > 0) + piece[offset:]
        too_new = [token for token in ids if token >= self.vocabulary and token != self.config.image_token_id]
        if too_new:
            raise VisualHeadsError(
                f"Every token of a prompt needs an embedding; the checkpoint has {self.vocabulary} and the prompt holds "
                f"token {too_new[0]} ({self.tokenizer.convert_ids_to_tokens(too_new[0])!r}). Copy the tokenizer files again."
            )
        return ids

    def tensors(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The tensors that the model's forward takes."""
        ids = self.text_ids(prompt)
        counts = [self.layout((image.height, image.width)).n_tokens for image in images]
        if ids.count(self.config.image_token_id) != len(counts):
            raise VisualHeadsError(
                f"A prompt needs one {IMAGE} per image; got {ids.count(self.config.image_token_id)} for {len(counts)} "
                "images. Write one per image."
            )
        expanded = torch.tensor([self.expand(ids, counts)])
        tensors = {"input_ids": expanded, "attention_mask": torch.ones_like(expanded)}
        if images:
            for image in images:
                check_image_size((image.height, image.width), self.preprocessing)
            pictures = [as_rgb(image) for image in images]
            processed = self.processor.image_processor(pictures, return_tensors="pt")
            tensors |= {name: processed[name] for name in ("pixel_values", "image_sizes") if name in processed}
        return tensors

    def _piece_ids(self, piece: str) -> list[int]:
        if self._prepends_blank and piece.startswith(" "):
            # sentencepiece puts its blank before a leading space, too; the tokenizers library does not
            piece = " " + piece
        return list(self.tokenizer(piece)["input_ids"])


def add_image_token(tokenizer: Any) -> int:
    """Make the placeholder a token of `tokenizer` and return its id."""
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(IMAGE))


def original_processor(
    config: OriginalConfig, tokenizer: Any, image_settings: dict[str, Any], patch_size: int, chat_template: str | None
) -> Any:
    """The Hugging Face processor whose pixels are those of the original code."""
    settings = dict(image_settings)
    common = {
        "tokenizer": tokenizer,
        "patch_size": patch_size,
        "vision_feature_select_strategy": "full" if config.keeps_class_token else "default",
        "num_additional_image_tokens": 1,
        "image_token": IMAGE,
        "chat_template": chat_template,
    }
    tokenizer.padding_side = "left"
    if config.pinpoints:
        pinpoints = [list(size) for size in config.pinpoints]
        images = LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=pinpoints)
        return LlavaNextProcessor(image_processor=images, **common)
    if config.aspect == "stretch":
        settings["size"] = settings["crop_size"]
    images = LlavaImageProcessorPil(
        **settings, do_pad=config.aspect == "pad", do_center_crop=config.aspect != "stretch"
    )
    return LlavaProcessor(image_processor=images, **common)
