"""What the writers of head, answer and causal tables share: row groups stream to a part file, which is named when complete.

Memory is bounded by one row group. NaN and infinity become null. A key stands once: the first record wins.
Compression: zstd; floats are split by bytes (BYTE_STREAM_SPLIT), which zstd packs better than whole floats.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import METADATA_KEY, Column, arrow_schema, declared
from lmms_visual_heads.tables import files
from lmms_visual_heads.tables import metadata as metadata_documents

_MEGABYTE = 1 << 20
_ARROW_SCHEMA = b"ARROW:schema"


class TableWriter:
    """A Parquet file of declared columns, written row group by row group.

    Parameters
    ----------
    path : path
        Final name; until `close` the rows stand in `<path>.part`.
    metadata : mapping or None
        Metadata document, when it is known already; counts and fingerprints are usually known only at `close`.

    Raises
    ------
    VisualHeadsError
        When the folder cannot be written (noticed before any model runs).
    """

    columns: tuple[Column, ...]
    rows_per_group: int

    def __init__(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self.n_rows = 0
        self.n_not_finite = 0
        self._recorded: set[tuple[str, int]] = set()
        self._pending: list[pa.RecordBatch] = []
        self._n_pending = 0
        self._schema = arrow_schema(self.columns)
        self._handle, self.part = files.open_part(self.path)
        floats = [c.name for c in self.columns if pa.types.is_floating(c.type)]
        flat = [c.name for c in self.columns if not pa.types.is_floating(c.type) and not pa.types.is_list(c.type)]
        self._writer: pq.ParquetWriter | None = pq.ParquetWriter(
            self._handle,
            self._schema,
            compression="zstd",
            compression_level=6,
            use_dictionary=flat,
            column_encoding={name: "BYTE_STREAM_SPLIT" for name in floats},
            write_statistics=flat,
            write_page_checksum=True,
            data_page_size=_MEGABYTE,
            store_schema=False,
        )

    @property
    def n_documents(self) -> int:
        """Documents recorded so far."""
        return len(self._recorded)

    def has(self, task: str, doc_id: int) -> bool:
        """Whether the document is recorded already."""
        return (task, int(doc_id)) in self._recorded

    def append(self, frame: pd.DataFrame) -> int:
        """Record the rows of `frame`; documents that are recorded already, and repeated keys, are passed over.

        Parameters
        ----------
        frame : DataFrame
            The declared columns in any order; missing values as NaN or None. A document's rows come in one frame.

        Returns
        -------
        int
            Number of rows recorded.

        Raises
        ------
        VisualHeadsError
            When a column is missing, unknown, or holds a value that does not fit its type.
        """
        names = [c.name for c in self.columns]
        absent = {c.name: np.nan for c in self.columns if c.added and c.name not in frame.columns}
        frame = frame.assign(**absent) if absent else frame
        missing = [name for name in names if name not in frame.columns]
        unknown = [str(name) for name in frame.columns if name not in names]
        if missing or unknown:
            raise VisualHeadsError(
                f"Rows for {self.path.name} need the columns {', '.join(names)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
            )
        key = [name for name in ("task", "doc_id", "layer", "head") if name in names]
        frame = frame[names].drop_duplicates(key, keep="first")
        documents = list(zip(frame["task"].astype(str), frame["doc_id"].astype(int), strict=True))
        new = np.fromiter((document not in self._recorded for document in documents), bool, len(documents))
        frame = frame[new]
        if not len(frame):
            return 0
        values = {c.name: frame[c.name].tolist() if _is_plain(c) else frame[c.name].to_numpy() for c in self.columns}
        self._record({document for document, is_new in zip(documents, new, strict=True) if is_new}, values)
        return len(frame)

    def append_batch(self, batch: pa.RecordBatch, document: tuple[str, int]) -> None:
        """Record the rows of one document that stand in another table of these columns.

        Parameters
        ----------
        batch : RecordBatch
            All rows of the document, in the declared columns.
        document : (task, doc_id)
            Must not be recorded yet.
        """
        if document in self._recorded:
            raise ValueError(f"{document} is recorded already")
        self._hold({document}, declared(batch, self.columns))

    def flush(self) -> None:
        """Write what is pending as a row group to the part file."""
        if not self._pending:
            return
        writer = self._open_writer()
        table = pa.Table.from_batches(self._pending, self._schema)
        writer.write_table(table, row_group_size=max(len(table), 1))
        self._pending, self._n_pending = [], 0

    def close(self, metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the rest and the metadata, flush to the disk, and give the file its final name.

        Parameters
        ----------
        metadata : mapping or None
            The metadata document (`schema_version` and `written` are filled in); None takes the constructor's.

        Returns
        -------
        Path
            The finished file.

        Raises
        ------
        VisualHeadsError
            When the metadata lack a required entry, or the writer was closed before.
        """
        document = metadata if metadata is not None else self.metadata
        if document is None:
            raise VisualHeadsError(f"{self.path.name} needs a metadata document to be finished; none was given.")
        complete = metadata_documents.complete_metadata(document)
        self._open_writer()
        self.flush()
        self._end(complete)
        return files.finalise(self.part, self.path)

    def abort(self, reason: str = "") -> Path:
        """End an unfinished run: keep what was measured as readable Parquet under `<path>.unfinished`.

        Returns
        -------
        Path
            The file that was kept. It is never read as a finished table.
        """
        if self._writer is None:
            return self.path
        self.flush()
        self._end({**(self.metadata or {}), "unfinished": reason or "the run did not finish"})
        ending = self.part.name.removeprefix(self.path.name).removesuffix(files.PART_SUFFIX)
        return files.finalise(self.part, self.path.with_name(self.path.name + ending + files.UNFINISHED_SUFFIX))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        if error is None and self.metadata is not None:
            self.close()
        else:
            self.abort(f"{kind.__name__}: {error}" if kind is not None else "")

    def _record(self, documents: set[tuple[str, int]], values: Mapping[str, Any]) -> None:
        """Record all rows of `documents`; `values` holds one value per row in every declared column."""
        arrays = [self._array(column, values[column.name]) for column in self.columns]
        self._hold(documents, pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def _hold(self, documents: set[tuple[str, int]], batch: pa.RecordBatch) -> None:
        """Keep the rows until a row group is full."""
        self._pending.append(batch)
        self._n_pending += len(batch)
        self.n_rows += len(batch)
        self._recorded |= documents
        if self._n_pending >= self.rows_per_group:
            self.flush()

    def _array(self, column: Column, values: Any) -> pa.Array:
        try:
            if pa.types.is_floating(column.type):
                numbers = np.asarray(values, dtype=np.float64).astype(np.float32, copy=False)
                finite = np.isfinite(numbers)
                self.n_not_finite += int(np.isinf(numbers).sum())
                array = pa.array(numbers, type=column.type, mask=~finite)
            else:
                array = pa.array(values, type=column.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError) as error:
            raise VisualHeadsError(
                f"Column {column.name!r} of {self.path.name} holds {column.type}; a value does not fit: {error}."
            ) from error
        if array.null_count and not column.nullable:
            raise VisualHeadsError(
                f"Column {column.name!r} of {self.path.name} must not be missing; {array.null_count} rows lack it."
            )
        return array

    def _open_writer(self) -> pq.ParquetWriter:
        if self._writer is None:
            raise VisualHeadsError(f"{self.path.name} is closed; open a new writer to record more.")
        return self._writer

    def _end(self, document: Mapping[str, Any]) -> None:
        writer = self._open_writer()
        entries = {METADATA_KEY: metadata_documents.to_bytes(document)}
        # Readers take the schema's metadata from here; pyarrow writes it at the start, when ours is not yet known.
        whole = base64.b64encode(self._schema.with_metadata(entries).serialize().to_pybytes())
        writer.add_key_value_metadata({**entries, _ARROW_SCHEMA: whole})
        writer.close()
        self._writer = None
        self._handle.close()


def _is_plain(column: Column) -> bool:
    """Whether values go to Arrow as Python's own: lists, and strings, of which a missing one may be NaN."""
    return bool(pa.types.is_list(column.type) or pa.types.is_string(column.type))
