"""Writers of head, answer and causal tables: row groups stream to a part file, which gets its name when it is complete.

Memory is bounded by one row group. NaN and infinity become null. A key stands once: the first record wins.
Compression: zstd; floats are split by bytes (BYTE_STREAM_SPLIT), which zstd packs better than whole floats.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import (
    ANSWER_COLUMNS,
    CAUSAL_COLUMNS,
    EVERY,
    HEAD_COLUMNS,
    METADATA_KEY,
    STATISTICS_BITS,
    Column,
    arrow_schema,
    declared,
)
from lmms_visual_heads.tables import files
from lmms_visual_heads.tables import metadata as metadata_documents

_MEGABYTE = 1 << 20
_ARROW_SCHEMA = b"ARROW:schema"


class _TableWriter:
    """A Parquet file of declared columns, written row group by row group."""

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
        self._record(
            {c.name: frame[c.name].tolist() if _is_plain(c) else frame[c.name].to_numpy() for c in self.columns}
        )
        self._recorded.update(document for document, is_new in zip(documents, new, strict=True) if is_new)
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
        self._pending.append(declared(batch, self.columns))
        self._n_pending += len(batch)
        self.n_rows += len(batch)
        self._recorded.add(document)
        if self._n_pending >= self.rows_per_group:
            self.flush()

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

    def _record(self, values: Mapping[str, Any]) -> None:
        arrays = [self._array(column, values[column.name]) for column in self.columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._pending.append(batch)
        self._n_pending += len(batch)
        self.n_rows += len(batch)
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


class HeadTableWriter(_TableWriter):
    """Writer of a head table, one row per (task, document, layer, head).

    Parameters
    ----------
    path : path
        Final name; until `close` the rows stand in `<path>.part`.
    metadata : mapping or None
        Metadata document, when it is known already; counts and fingerprints are usually known only at `close`.

    Raises
    ------
    VisualHeadsError
        When the folder cannot be written (found out before any model runs).
    """

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
            Any of the float columns of `schema.HEAD_COLUMNS`, NaN where missing; columns that are left out are null.
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
        self._record(values)
        self._recorded.add((task, int(doc_id)))
        return True


class AnswerTableWriter(_TableWriter):
    """Writer of an answer table, one row per (task, document).

    Parameters
    ----------
    path, metadata
        As for `HeadTableWriter`.
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
        """Record one document; `values` are further columns of `schema.ANSWER_COLUMNS`, nullable ones may be left out.

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
        self._record({c.name: [_or_nan(c, row.get(c.name))] for c in self.columns})
        self._recorded.add((task, int(doc_id)))
        return True


class CausalTableWriter(_TableWriter):
    """Writer of a causal table, one row per cut: (task, document, layer, head). Parameters as for `HeadTableWriter`."""

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
            KL with every head cut, nats; NaN where it is missing. None: not measured, so no row; the same below.
        layers : array [L] or None
            With every head of one layer cut.
        heads : array [L, H] or None
            With one head cut.

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
                f"A document's cuts are a number for all heads, one per layer [L] or one per head [L, H]; task {task!r}, "
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
        self._record({**key, "layer": list(numbers), "head": list(of_head), "kl": list(kl)})
        self._recorded.add((task, int(doc_id)))
        return True


def _is_list(column: Column) -> bool:
    return bool(pa.types.is_list(column.type))


def _is_plain(column: Column) -> bool:
    """Whether values go to Arrow as Python's own: lists, and strings, of which a missing one may be NaN."""
    return _is_list(column) or bool(pa.types.is_string(column.type))


def _or_nan(column: Column, value: Any) -> Any:
    if value is None and pa.types.is_floating(column.type):
        return np.nan
    if _is_list(column) and isinstance(value, Sequence | np.ndarray):
        return list(value)
    return value


def _rounded(grid: np.ndarray) -> np.ndarray:
    """float32 rounded to `STATISTICS_BITS` significant bits; what is not finite stays as it is.

    The bits that go are noise of the arithmetic, which no compression could take away. Rounding twice changes nothing.
    """
    dropped = 24 - STATISTICS_BITS
    half, kept = np.uint32(1 << (dropped - 1)), np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    rounded = ((np.ascontiguousarray(grid).view(np.uint32) + half) & kept).view(np.float32)
    return np.where(np.isfinite(grid) & np.isfinite(rounded), rounded, grid)
