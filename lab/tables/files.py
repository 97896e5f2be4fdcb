"""Files of a zoo's tables: CSV and Parquet by declared columns, with lists as arrays.

Missing is null on disk, NaN or None here.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import METADATA_KEY, SCHEMA_VERSION, Column, arrow_schema
from lmms_visual_heads.tables.files import write_bytes

_TRUE, _FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}


def typed(frame: pd.DataFrame, columns: tuple[Column, ...], name: str) -> pd.DataFrame:
    """A copy with the declared columns in their order and types, further columns after them.

    Numbers that may be missing are floats with NaN, truth values that may be missing objects with None, lists arrays or None.

    Raises
    ------
    VisualHeadsError
        A column is missing, a cell that is required is empty, or a cell does not have its type or is infinite.
    """
    if not len(frame.columns):
        return pd.DataFrame({c.name: _convert(pd.Series([], dtype=object), c, name) for c in columns})
    lacking = [c.name for c in columns if c.name not in frame.columns]
    if lacking:
        raise VisualHeadsError(
            f"The table {name} of a zoo needs the columns {', '.join(c.name for c in columns)}; missing: {', '.join(lacking)}. "
            "Write it with this version."
        )
    declared = {c.name: _convert(frame[c.name], c, name) for c in columns}
    return pd.DataFrame({**declared, **{str(extra): frame[extra] for extra in frame if extra not in declared}})


def read_csv(path: Path, columns: tuple[Column, ...]) -> pd.DataFrame:
    """A CSV file as a typed frame."""
    try:
        frame = pd.read_csv(path, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise VisualHeadsError(f"A CSV file is required; {path} is none ({error}). Copy it again.") from error
    return typed(frame, columns, str(path))


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as CSV, atomically; numbers read back exactly."""
    return write_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())


def arrow(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pa.Table:
    """The declared columns of a frame as an Arrow table; NaN becomes null."""
    return pa.Table.from_pandas(frame[[c.name for c in columns]], arrow_schema(columns), preserve_index=False)


def rounded(lists: pd.Series, bits: int) -> pd.Series:
    """Lists of float32 rounded to `bits` significant bits, so that they take half the disk: off by at most 2**-bits of a value."""
    drop = 24 - bits
    half, mask = np.uint32(1 << (drop - 1)), np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    return lists.map(lambda cell: None if cell is None else ((cell.view(np.uint32) + half) & mask).view(np.float32))


def write_parquet(frame: pd.DataFrame, columns: tuple[Column, ...], path: Path) -> Path:
    """Write the declared columns as one Parquet file, atomically."""
    table = arrow(frame, columns)
    document = json.dumps({"schema_version": SCHEMA_VERSION, "table": f"zoo {path.stem}"}).encode()
    sink = io.BytesIO()
    # Lists of numbers per item are most of a zoo: their bytes are packed plane by plane, a fifth smaller and nothing lost.
    kinds = {
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name: field.type
        for field in table.schema
    }
    numbers = [path for path, kind in kinds.items() if kind == pa.list_(pa.float32())]
    pq.write_table(
        table.replace_schema_metadata({METADATA_KEY: document}),
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=[path for path in kinds if path not in numbers],
        use_byte_stream_split=numbers or False,
    )
    return write_bytes(path, sink.getvalue())


def read_parquet(path: Path, columns: tuple[Column, ...]) -> pd.DataFrame:
    """A Parquet file as a typed frame.

    Raises
    ------
    VisualHeadsError
        Not Parquet, or of a newer schema version.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise VisualHeadsError(
            f"A complete Parquet file is required; {path} is none ({error}). Copy it again."
        ) from error
    content = (table.schema.metadata or {}).get(METADATA_KEY, b"{}")
    version = json.loads(content).get("schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise VisualHeadsError(
            f"Zoo tables of schema version {SCHEMA_VERSION} or older are required; {path} has version {version}. "
            "Upgrade with: pip install --upgrade lmms-visual-heads."
        )
    return typed(table.to_pandas(), columns, str(path))


def _convert(series: pd.Series, column: Column, name: str) -> pd.Series:
    plain = isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub"
    gone = series.isna().tolist() if plain else [_is_missing(value) for value in series]
    missing = pd.Series(gone, index=series.index, dtype=bool)
    if missing.any() and not column.nullable:
        raise VisualHeadsError(
            f"Column {column.name} of {name} needs a value in every row; row {int(np.flatnonzero(missing)[0])} has none. "
            "Fill it in."
        )
    try:
        if pa.types.is_list(column.type):
            kind = column.type.value_type.to_pandas_dtype()
            return pd.Series(
                [None if gone else np.asarray(value, dtype=kind) for value, gone in zip(series, missing, strict=True)],
                index=series.index,
                dtype=object,
            )
        if pa.types.is_string(column.type):
            return series.where(~missing, None).map(lambda value: value if value is None else str(value)).astype(object)
        if pa.types.is_boolean(column.type):
            truths = [None if gone else _truth(value) for value, gone in zip(series, missing, strict=True)]
            return pd.Series(truths, index=series.index, dtype=object if column.nullable else bool)
        if plain:
            numbers = series.astype(float)
        else:
            # float() reads every printed number back exactly; pandas' own parser need not.
            cells = [np.nan if gone else float(value) for value, gone in zip(series, missing, strict=True)]
            numbers = pd.Series(cells, index=series.index, dtype=float)
    except (TypeError, ValueError) as error:
        raise VisualHeadsError(
            f"Column {column.name} of {name} must hold {column.type}: {error}. Mend the cell."
        ) from error
    if np.isinf(numbers.to_numpy()).any():
        raise VisualHeadsError(
            f"Numbers of a zoo are finite or missing; column {column.name} of {name} has an infinite one. Measure it again."
        )
    return numbers if column.nullable else numbers.astype(column.type.to_pandas_dtype())


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and bool(np.isnan(value)))


def _truth(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{value!r} is neither true nor false")
    return word in _TRUE
