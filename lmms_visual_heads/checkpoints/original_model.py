"""The Hugging Face model of an original checkpoint, filled tensor by tensor on an empty skeleton.

Never more than the model and one tensor in memory. The vocabulary is the tokenizer's length; the embedding has rows
beyond it only for the image placeholder, whose embedding is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    PreTrainedModel,
    VipLlavaForConditionalGeneration,
)

from lmms_visual_heads.checkpoints.original_files import OpenWeights, hugging_face_name, is_tower, opened, tower_name
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.layout import best_resolution, unpadded_grid

EMBEDDING = "model.language_model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


class OriginalLlavaNextModel(LlavaNextModel):
    """LLaVA-NeXT whose tiles are un-padded with the original's rounding.

    The original cuts the kept edge off where transformers first rounds it to 7 decimals: another number of tokens for 28
    of the sizes from 64 to 1023 pixels at real scale.
    """

    def pack_image_features(
        self, image_features: Any, image_sizes: Any, vision_feature_select_strategy: str, image_newline: Any = None
    ) -> tuple[list[Tensor], Tensor]:
        """As in transformers: base view, then the un-padded tiles row by row, a newline after each row."""
        edge = self.config.vision_config.image_size
        side = edge // self.config.vision_config.patch_size
        pinpoints = tuple((int(h), int(w)) for h, w in self.config.image_grid_pinpoints)
        packed = []
        for views, size in zip(image_features, image_sizes, strict=True):
            height, width = (int(extent) for extent in size)
            down, across = (extent // edge for extent in best_resolution((height, width), pinpoints))
            picture = views[1:].view(down, across, side, side, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
            rows, columns = unpadded_grid((height, width), (down * side, across * side), "original")
            top, left = (down * side - rows) // 2, (across * side - columns) // 2
            picture = picture[top : top + rows, left : left + columns]
            newline = image_newline.to(picture).expand(rows, 1, -1)
            packed.append(torch.cat([views[0], torch.cat([picture, newline], dim=1).flatten(0, 1)]))
        lengths = torch.tensor([len(features) for features in packed], device=packed[0].device)
        return packed, lengths


class OriginalLlavaNext(LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that un-pads as the original code does."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = OriginalLlavaNextModel(config)


_CLASSES: dict[str, type[PreTrainedModel]] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": OriginalLlavaNext,
    "vipllava": VipLlavaForConditionalGeneration,
}


def skeleton(config: Any, vocabulary: int) -> PreTrainedModel:
    """A model without weights; its embedding has a row for the placeholder where that lies beyond the vocabulary."""
    # from_pretrained would set this; a model made by hand leaves its parts without a choice
    config._attn_implementation = "sdpa"
    with init_empty_weights(include_buffers=False):
        model = _CLASSES[config.model_type](config)
        rows = max(vocabulary, config.image_token_id + 1)
        if rows > vocabulary:
            language = model.model.language_model
            language.embed_tokens = nn.Embedding(rows, language.embed_tokens.embedding_dim)
    return model


def fitted(name: str, tensor: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """`tensor` cut, or lengthened by empty rows, to `shape` where it is an embedding or an output layer."""
    if name not in (EMBEDDING, OUTPUT) or tensor.dim() != 2 or tensor.shape[0] == shape[0]:
        return tensor
    if tensor.shape[0] > shape[0]:
        return tensor[: shape[0]]
    return torch.cat([tensor, tensor.new_zeros(shape[0] - tensor.shape[0], tensor.shape[1])])


def fill(
    model: PreTrainedModel,
    source: str,
    tensors: Iterator[tuple[str, Tensor]],
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put `tensors` (Hugging Face name, tensor) into an empty model.

    Raises
    ------
    VisualHeadsError
        For a tensor that has no place or another shape, and for places that stay empty.
    """
    places = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors:
        if name not in places:
            raise VisualHeadsError(
                f"Every weight of a checkpoint must have a place in the model that its config.json describes; {source} "
                f"holds {name!r}, which has none. Check mm_projector_type and mm_vision_tower in config.json."
            )
        shape = places[name].shape
        if name == EMBEDDING:
            tensor = fitted(name, tensor[:vocabulary], shape)
        tensor = fitted(name, tensor, shape)
        if tensor.shape != shape:
            raise VisualHeadsError(
                f"A checkpoint's weights must fit its config.json; in {source}, {name} is {tuple(tensor.shape)} and "
                f"{tuple(shape)} is needed. Copy the files again from one place."
            )
        module, _, leaf = name.rpartition(".")
        value = tensor.to(device=device, dtype=dtype, copy=True)
        setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(
            model.model.language_model.embed_tokens.weight[:vocabulary], requires_grad=False
        )
    missing = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    if missing:
        raise VisualHeadsError(
            f"A checkpoint must hold every weight of its model; {source} lacks {len(missing)}, such as {missing[0]}. "
            "Copy the missing files again."
        )
    model.to(device)  # buffers; parameters lie there already


def stored_tensors(files: list[Path], tower_files: tuple[Path, ...]) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of every used tensor; the checkpoint's own tower is left out where another is given."""
    for path in files:
        yield from _tensors_of(path, bool(tower_files), hugging_face_name)
    for path in tower_files:
        yield from _tensors_of(path, False, tower_name)


def _tensors_of(path: Path, skip_tower: bool, rename: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    """The same of one file, which is closed before the next one is opened."""
    with opened(path) as weights:
        for name, new_name in used_names(weights, skip_tower, rename):
            yield new_name, weights.tensor(name)


def used_names(
    weights: OpenWeights, skip_tower: bool, rename: Callable[[str], str | None] = hugging_face_name
) -> Iterator[tuple[str, str]]:
    """(stored name, Hugging Face name) of the tensors of one file that are used."""
    for name in weights.names:
        new_name = None if skip_tower and is_tower(name) else rename(name)
        if new_name is not None:
            yield name, new_name


def generation_settings(text: Any, tokenizer: Any, stop: str | None, stored: dict[str, Any]) -> GenerationConfig:
    """End and pad tokens as the original's evaluation passes them: the tokenizer's end token and the template's."""
    ends = [tokenizer.eos_token_id]
    if stop is not None and stop in tokenizer.get_vocab():
        ends.append(tokenizer.convert_tokens_to_ids(stop))
    elif stop is None:
        named = stored.get("eos_token_id", text.eos_token_id)
        ends += named if isinstance(named, list) else [named]
    pad = next((token for token in (stored.get("pad_token_id"), tokenizer.pad_token_id) if token is not None), None)
    end_tokens = list(dict.fromkeys(int(token) for token in ends if token is not None))
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end_tokens or None, pad_token_id=pad)
