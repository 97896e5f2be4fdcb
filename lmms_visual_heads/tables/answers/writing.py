"""Writing the answer table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import declared
from lmms_visual_heads.tables.answers.columns import ANSWER_COLUMNS
from lmms_visual_heads.tables.parquet_writing import TableWriter


class AnswerTableWriter(TableWriter):
    """Writer of an answer table, one row per (task, document).

    Parameters
    ----------
    path, metadata
        As for `TableWriter`.
    image_kl : mapping of (task, doc_id) to mapping, or None
        `swap_kl` and `blank_kl` of documents whose rows come through `append_batch`: they are measured after the answer.
    """

    columns = ANSWER_COLUMNS
    rows_per_group = 1 << 12

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Any] | None = None,
        image_kl: Mapping[tuple[str, int], Mapping[str, float | None]] | None = None,
    ) -> None:
        super().__init__(path, metadata)
        self._image_kl = image_kl or {}

    def append_batch(self, batch: pa.RecordBatch, document: tuple[str, int]) -> None:
        """Record a document's row that stands in another table, with its image control where there is one."""
        batch = declared(batch, self.columns)
        for name, value in self._image_kl.get(document, {}).items():
            column = next(c for c in self.columns if c.name == name)
            numbers = [np.nan if value is None else value] * len(batch)
            batch = batch.set_column(batch.schema.get_field_index(name), name, self._array(column, numbers))
        super().append_batch(batch, document)

    def add(self, task: str, doc_id: int, **values: Any) -> bool:
        """Record one document; `values` are further columns of `ANSWER_COLUMNS`, nullable ones may be left out.

        Returns
        -------
        bool
            False when the document is recorded already.

        Raises
        ------
        VisualHeadsError
            When a column is unknown, or a required one is left out.
        """
        if self.has(task, doc_id):
            return False
        row = {"task": task, "doc_id": doc_id, **values}
        unknown = sorted(set(row) - {c.name for c in self.columns})
        absent = [c.name for c in self.columns if not c.nullable and row.get(c.name) is None]
        if unknown or absent:
            raise VisualHeadsError(
                f"An answer's row needs {', '.join(c.name for c in self.columns if not c.nullable)}; "
                f"missing: {', '.join(absent) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
            )
        self._record({(task, int(doc_id))}, {c.name: [row.get(c.name)] for c in self.columns})
        return True
