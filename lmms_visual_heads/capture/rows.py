"""The layers' rows of one forward pass, settled and stacked. Shapes: L layers, B batch, H heads, K key positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmms_visual_heads.capture.attention import last_query_row
from lmms_visual_heads.capture.late import LateRow, scores_together


def settle(attentions: Sequence[Any] | None) -> tuple[Tensor, ...] | None:
    """What the layers of a pass that has just ended gave, with every late row [B, H, 1, K] computed.

    To be called before the next pass: late rows hold on to the keys of this one.
    """
    if attentions is None:
        return None
    late = [row for row in attentions if isinstance(row, LateRow)]
    if not late:
        return tuple(attentions)
    scores = scores_together(late)
    if scores is not None:
        rows = iter(scores.softmax(-1))
    else:
        rows = iter([last_query_row(row.query, row.key, None, row.scaling) for row in late])
    return tuple(next(rows) if isinstance(row, LateRow) else row for row in attentions)


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
