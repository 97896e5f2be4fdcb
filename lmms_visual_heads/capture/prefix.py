"""Prefix reuse: questions about the same image share one vision pass and one prefill of what their prompts begin with.

The shared tokens run once through the base model into a cache; each question goes on from a branch of it. A batch goes on
with prompts of equal length only, so nothing is padded and sliding windows stay right. Equal to separate runs in float32.
Shapes: M prefilled prompts, B prompts that go on, K tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from lmms_visual_heads.capture.generation import needs_passes_of_our_own, rows_of_pass
from lmms_visual_heads.capture.layers import steps_from_cache


def common_prefix(prompts: Sequence[Tensor]) -> int:
    """Tokens that all `prompts` (each int64 [K]) begin with, leaving every prompt at least one token of its own."""
    most = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0][:most]
    for prompt in prompts[1:]:
        differs = (prompt[: len(first)] != first).nonzero()
        if len(differs):
            first = first[: int(differs[0])]
    return len(first)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Prefilled beginnings of M prompts.

    Attributes
    ----------
    length : int
        Tokens of each.
    n : int
        M.
    """

    length: int
    n: int
    _cache: Cache

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values that are held."""
        tensors = [part for layer in self._cache.layers for part in (layer.keys, layer.values) if part is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def branch(self, rows: Sequence[int]) -> Cache:
        """A cache whose sequence b goes on from prefilled prompt `rows[b]`; the prefix itself stays as it is.

        Where every prefilled prompt is taken once and in order, nothing is copied: a dynamic cache grows by concatenation.
        """
        branch = copy.copy(self._cache)
        branch.layers = [copy.copy(layer) for layer in self._cache.layers]
        if list(rows) != list(range(self.n)):
            for layer in branch.layers:
                layer.batch_select_indices(torch.tensor(rows, device=layer.device))
        return branch


def can_reuse_prefix(model: PreTrainedModel, settings: Mapping[str, Any]) -> bool:
    """Whether `generate` with these settings may go on from a prefilled prefix of `model`."""
    cached = settings.get("use_cache", getattr(model.generation_config, "use_cache", True))
    plain_cache = (settings.get("cache_implementation") or model.generation_config.cache_implementation) is None
    return (
        steps_from_cache(model) and cached is not False and plain_cache and not needs_passes_of_our_own(model, settings)
    )


@torch.inference_mode()
def prefill(model: PreTrainedModel, inputs: Mapping[str, Tensor], length: int) -> Prefix:
    """Run the first `length` tokens of M prompts, images included, through the base model; no language-model head.

    Parameters
    ----------
    model : PreTrainedModel
        Of a family for which `can_reuse_prefix` holds.
    inputs : mapping of Tensor
        `input_ids` [M, at least `length`] and the pixels; every visual token lies within the first `length` tokens.
    """
    cache = DynamicCache(config=model.config)
    ids = inputs["input_ids"][:, :length]
    pixels = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    model.model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, **pixels)
    return Prefix(length, len(ids), cache)


@torch.inference_mode()
def prompt_rows(model: PreTrainedModel, inputs: Mapping[str, Tensor], cache: Cache | None = None) -> Tensor:
    """Rows of the last prompt token: one pass of the base model, no decoding, no language-model head.

    Parameters
    ----------
    model : PreTrainedModel
        After `attach`.
    inputs : mapping of Tensor
        `input_ids` [B, K], `attention_mask`, and the pixels unless `cache` is given.
    cache : Cache or None
        A branch of a prefix that these prompts begin with.

    Returns
    -------
    Tensor [L, B, H, K], float32

    Raises
    ------
    VisualHeadsError
        When a layer with attention gave no row.
    """
    length = inputs["input_ids"].shape[1]
    forward_inputs = dict(inputs)
    if cache is not None:
        forward_inputs["input_ids"] = forward_inputs["input_ids"][:, cache.get_seq_length() :]
    output = model.model(**forward_inputs, past_key_values=cache, use_cache=cache is not None, output_attentions=True)
    rows = rows_of_pass(model, output.attentions, length, "last_prompt")
    if rows is None:
        raise AssertionError("a query was given, so rows were read")
    return rows
