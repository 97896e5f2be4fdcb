"""Writing the causal table."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.causal.columns import CAUSAL_COLUMNS, EVERY
from lmms_visual_heads.tables.parquet_writing import TableWriter


class CausalTableWriter(TableWriter):
    """Writer of a causal table, one row per knock-out: (task, document, layer, head). Parameters as for `TableWriter`."""

    columns = CAUSAL_COLUMNS
    rows_per_group = 1 << 17

    def add(
        self,
        task: str,
        doc_id: int,
        *,
        all: float | None = None,
        layers: Any = None,
        heads: Any = None,
        item_id: str | None = None,
    ) -> bool:
        """Record one document.

        Parameters
        ----------
        task, doc_id, item_id
            As for `HeadTableWriter.add`.
        all : float or None
            KL with every head knocked out, nats; NaN where it is missing. None: not measured, so no row; the same below.
        layers : array [L] or None
            With every head of one layer knocked out.
        heads : array [L, H] or None
            With one head knocked out.

        Returns
        -------
        bool
            False when the document is recorded already.

        Raises
        ------
        VisualHeadsError
            When nothing was measured, or shapes differ.
        """
        if self.has(task, doc_id):
            return False
        per_layer = None if layers is None else np.asarray(layers, dtype=np.float64)
        per_head = None if heads is None else np.asarray(heads, dtype=np.float64)
        both = per_layer is not None and per_head is not None
        if (
            (all is None and per_layer is None and per_head is None)
            or (per_layer is not None and per_layer.ndim != 1)
            or (per_head is not None and per_head.ndim != 2)
            or (both and len(per_layer) != len(per_head))  # type: ignore[arg-type]
        ):
            raise VisualHeadsError(
                f"A document's knock-outs are a number for all heads, one per layer [L] or one per head [L, H]; task {task!r}, "
                f"document {doc_id} has others. Give at least one of them."
            )
        rows = [] if all is None else [(EVERY, EVERY, float(all))]
        for layer in range(max(len(part) for part in (per_layer, per_head, ()) if part is not None)):
            if per_layer is not None:
                rows.append((layer, EVERY, float(per_layer[layer])))
            if per_head is not None:
                rows += [(layer, head, float(kl)) for head, kl in enumerate(per_head[layer])]
        numbers, of_head, kl = zip(*rows, strict=True)
        key = {"task": [task] * len(rows), "doc_id": [doc_id] * len(rows), "item_id": [item_id] * len(rows)}
        self._record({(task, int(doc_id))}, {**key, "layer": list(numbers), "head": list(of_head), "kl": list(kl)})
        return True
