"""The layers' rows of one forward pass, stacked. Shapes: L layers, B batch, H heads, K key positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stack_rows(attentions: Sequence[Tensor], length: int) -> Tensor:
    """One pass's attentions, a [B, H, 1, k] per layer, as one tensor [L, B, H, `length`] on the first layer's device.

    A sliding-window cache returns only the newest k < `length` keys (weight 0 on the older ones); a preallocated
    cache returns k > `length` (weight 0 on its unwritten tail).
    """
    first = attentions[0]
    device = first.device
    if all(attention.shape == first.shape and attention.device == device for attention in attentions) and (
        first.shape[-1] == length
    ):
        return torch.cat(tuple(attentions)).view(len(attentions), *first.shape[:2], length)  # the usual case: one copy
    layers = []
    for attention in attentions:
        row = attention[:, :, 0]
        missing = length - row.shape[-1]
        row = torch.nn.functional.pad(row, (missing, 0)) if missing > 0 else row[..., :length]
        layers.append(row.to(device))
    return torch.stack(layers)
