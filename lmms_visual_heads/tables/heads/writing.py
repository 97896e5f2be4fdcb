"""Writing the head table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.heads.columns import HEAD_COLUMNS, STATISTICS_BITS
from lmms_visual_heads.tables.parquet_writing import TableWriter


class HeadTableWriter(TableWriter):
    """Writer of a head table, one row per (task, document, layer, head). Parameters as for `TableWriter`."""

    columns = HEAD_COLUMNS
    rows_per_group = 1 << 17

    def add(
        self,
        task: str,
        doc_id: int,
        statistics: Mapping[str, Any],
        *,
        n_visual_tokens: int,
        n_patch_tokens: int,
        n_prompt_tokens: int,
        item_id: str | None = None,
        region_share: float | None = None,
    ) -> bool:
        """Record one document.

        Parameters
        ----------
        task, doc_id, item_id
            The document's key, and its identifier in the data.
        statistics : mapping of str to array [L, H]
            Any of the float columns of `HEAD_COLUMNS`, NaN where missing; columns that are left out are null.
        n_visual_tokens, n_patch_tokens, n_prompt_tokens : int
            Token counts of the prompt.
        region_share : float or None
            Share of the patch area that lies in the pointed box, 0..1.

        Returns
        -------
        bool
            False when the document is recorded already (nothing is written then).

        Raises
        ------
        VisualHeadsError
            When a statistic is unknown or the shapes differ.
        """
        if self.has(task, doc_id):
            return False
        per_head = {c.name for c in self.columns if pa.types.is_floating(c.type)} - {"region_share"}
        unknown = sorted(set(statistics) - per_head)
        if unknown:
            raise VisualHeadsError(f"Head statistics are {', '.join(sorted(per_head))}; unknown: {', '.join(unknown)}.")
        grids = {name: _rounded(np.asarray(grid, dtype=np.float32)) for name, grid in statistics.items()}
        shapes = {grid.shape for grid in grids.values()}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
            raise VisualHeadsError(
                f"Every statistic of a document must have one shape [layers, heads]; task {task!r}, document "
                f"{doc_id} has others."
            )
        size = shape[0] * shape[1]
        layers, heads = np.divmod(np.arange(size), shape[1])
        share = np.nan if region_share is None else region_share
        values: dict[str, Any] = {
            "task": [task] * size,
            "doc_id": np.full(size, doc_id),
            "item_id": [item_id] * size,
            "layer": layers,
            "head": heads,
            "region_share": np.full(size, share),
            "n_visual_tokens": np.full(size, n_visual_tokens),
            "n_patch_tokens": np.full(size, n_patch_tokens),
            "n_prompt_tokens": np.full(size, n_prompt_tokens),
        }
        for name in per_head:
            values[name] = grids[name].reshape(size) if name in grids else np.full(size, np.nan)
        self._record({(task, int(doc_id))}, values)
        return True


def _rounded(grid: np.ndarray) -> np.ndarray:
    """float32 rounded to `STATISTICS_BITS` significant bits; what is not finite stays as it is.

    The bits that go are noise of the arithmetic, which no compression could take away. Rounding twice changes nothing.
    """
    dropped = 24 - STATISTICS_BITS
    half, kept = np.uint32(1 << (dropped - 1)), np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    rounded = ((np.ascontiguousarray(grid).view(np.uint32) + half) & kept).view(np.float32)
    return np.where(np.isfinite(grid) & np.isfinite(rounded), rounded, grid)
