"""AttentionRows: the rows of one document with everything that is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lmms_visual_heads.statistics.answers import AnswerStatistics
from lmms_visual_heads.statistics.heads import HEAD_STATISTICS, head_statistics

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Attention rows of one document. Shapes: L layers, H heads, K key positions; everything on the CPU.

    Attributes
    ----------
    values : Tensor [L, H, K], float32
        One row per head; sums to 1.
    query : {"first_generated", "last_prompt"}
        Which row was read; K is prompt + 1 or prompt.
    visual_positions, patch_positions : Tensor, int64
        Key positions of visual tokens, and of those that stand for a patch.
    sink_positions : Tensor, int64
        Leading special tokens.
    base_positions : Tensor, int64, or None
        Patch tokens of the base view (anyres), else None.
    region : Tensor [n_patches], bool, or None
        Which patch tokens the boxes overlap; None without boxes, and where the processor's geometry is not known.
    prompt : str
        The prompt's text.
    input_ids : Tensor [prompt], int64
        The expanded prompt.
    answer : str
        The generated text.
    answer_ids : tuple of int
        Its tokens, the end token included.
    answer_statistics : AnswerStatistics
    """

    values: Tensor
    query: str
    visual_positions: Tensor
    patch_positions: Tensor
    sink_positions: Tensor
    base_positions: Tensor | None
    region: Tensor | None
    prompt: str
    input_ids: Tensor
    answer: str
    answer_ids: tuple[int, ...]
    answer_statistics: AnswerStatistics

    def __repr__(self) -> str:
        n_layers, n_heads, n_keys = self.values.shape
        return (
            f"AttentionRows({n_layers} layers x {n_heads} heads x {n_keys} keys, query {self.query}, "
            f"answer {self.answer!r})"
        )

    @property
    def region_positions(self) -> Tensor | None:
        """Key positions, int64, of the patch tokens that the boxes overlap; None where `region` is."""
        return None if self.region is None else self.patch_positions[self.region]

    def statistics(self) -> pd.DataFrame:
        """Head statistics, one row per head in the columns of the head table; NaN where missing."""
        import pandas as pd

        numbers = head_statistics(
            self.values,
            self.visual_positions,
            self.patch_positions,
            self.sink_positions,
            self.region,
            self.base_positions,
        )
        n_layers, n_heads = self.values.shape[:2]
        layers, heads = np.divmod(np.arange(n_layers * n_heads), n_heads)
        frame = pd.DataFrame({"layer": layers.astype(np.int16), "head": heads.astype(np.int16)})
        for name in HEAD_STATISTICS:
            frame[name] = numbers[name].reshape(-1).numpy()
        for name, value in (
            ("n_visual_tokens", len(self.visual_positions)),
            ("n_patch_tokens", len(self.patch_positions)),
            ("n_prompt_tokens", len(self.input_ids)),
        ):
            frame[name] = np.int32(value)
        return frame
