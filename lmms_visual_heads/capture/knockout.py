"""Knock-outs: heads that may not attend to visual tokens, for every text query; scores set to -inf and renormalised.

A knock-out travels to the attention function as the keyword `visual_knockout` of the model's forward call. Visual queries keep
their attention, and so does every head that is not knocked out. A text query's own position always remains, so no row is empty.
Shapes: B batch, L layers, H query heads, Q queries, T tokens up to the last query, K <= T keys that the layer holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmms_visual_heads.capture.layers import steps_from_cache
from lmms_visual_heads.errors import VisualHeadsError


class VisualKnockout:
    """Which heads are knocked out in which sequence of a batch.

    Parameters
    ----------
    heads : Tensor [B, L, H], bool
        True: the head may not attend to visual tokens. Sequences may differ.
    visual : Tensor [B or 1, T], bool
        True: the position holds a visual token (anyres newlines too). T counts a cached prefix as well.

    Raises
    ------
    ValueError
        When shapes or dtypes are others.
    """

    def __init__(self, heads: Tensor, visual: Tensor) -> None:
        if heads.dtype != torch.bool or heads.dim() != 3:
            raise ValueError(f"a knock-out is a bool tensor [B, L, H]; got {heads.dtype} {tuple(heads.shape)}")
        if visual.dtype != torch.bool or visual.dim() != 2 or visual.shape[0] not in (1, heads.shape[0]):
            raise ValueError(f"visual is a bool tensor [B or 1, T]; got {visual.dtype} {tuple(visual.shape)}")
        self.heads = heads
        self.visual = visual
        self._layers = heads.any(dim=2).any(dim=0).tolist()

    def changes_layer(self, layer: int) -> bool:
        """Whether any sequence has a knocked-out head in this layer."""
        return bool(self._layers[layer])

    def mask(self, layer: int, query: Tensor, key: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The layer's attention mask [B, H, Q, K] with the knock-out in it, boolean or additive as it came.

        Parameters
        ----------
        layer : int
        query : Tensor [B, H, Q, D]
        key : Tensor [B, H_kv, K, D]
            The newest K of the T positions (a sliding-window cache holds fewer than T).
        attention_mask : Tensor [B or 1, H or 1, Q, K] or None
            None means causal.

        Raises
        ------
        ValueError
            When batch, heads or number of positions are not those of the knock-out.
        """
        n_queries, n_keys, total = query.shape[2], key.shape[2], self.visual.shape[1]
        expected = (query.shape[0], query.shape[1])
        if (self.heads.shape[0], self.heads.shape[2]) != expected or not n_queries <= n_keys <= total:
            raise ValueError(
                f"the knock-out is for {self.heads.shape[0]} sequences, {self.heads.shape[2]} heads and {total} "
                f"positions; the layer has {expected[0]}, {expected[1]} and {n_keys} keys, {n_queries} queries"
            )
        visual = self.visual.to(query.device)
        heads = self.heads[:, layer].to(query.device)
        text_queries = ~visual[:, total - n_queries :]
        pairs = text_queries[:, :, None] & visual[:, None, total - n_keys :]
        hidden = heads[:, :, None, None] & pairs[:, None]
        if attention_mask is None:
            positions = torch.arange(total - n_keys, total, device=query.device)
            return (positions <= positions[n_keys - n_queries :, None]) & ~hidden
        if attention_mask.dtype == torch.bool:
            return attention_mask & ~hidden
        return attention_mask.masked_fill(hidden, float("-inf"))


def unchanged_start(visual_positions: Tensor) -> int:
    """Tokens that no knock-out changes: all up to the last visual token, or 0 where text stands between visual tokens.

    Parameters
    ----------
    visual_positions : Tensor [N], int64
        Ascending.
    """
    if not len(visual_positions):
        return 0
    first, last = int(visual_positions[0]), int(visual_positions[-1])
    return last + 1 if last - first + 1 == len(visual_positions) else 0


def check_can_knock_out(model: PreTrainedModel) -> None:
    """Refuse a model family whose forward pass is not known to hand the knock-out on to every layer.

    Raises
    ------
    VisualHeadsError
        For every family but LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA.
    """
    if not steps_from_cache(model):
        raise VisualHeadsError(
            f"Knocking out heads needs a LLaVA, LLaVA-NeXT or ViP-LLaVA checkpoint; got {type(model).__name__}. "
            "Leave knockout out for this checkpoint."
        )


def as_keyword(knockout: VisualKnockout | None) -> dict[str, Any]:
    """Keyword arguments of the model's forward call that carry the knock-out."""
    return {} if knockout is None else {"visual_knockout": knockout}
