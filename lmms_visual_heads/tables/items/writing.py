"""Writing the item table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import METADATA_KEY, SCHEMA_VERSION, arrow_schema
from lmms_visual_heads.tables.csv_writing import write_csv
from lmms_visual_heads.tables.files import write_bytes
from lmms_visual_heads.tables.items.columns import ITEM_COLUMNS, check_items_table


def write_items(frame: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write an item table, atomically: Parquet or CSV, as the name ends.

    Raises
    ------
    VisualHeadsError
        A table that `check_items_table` refuses, another ending, or a file that cannot be written.
    """
    target = Path(path)
    clean = check_items_table(frame)
    if target.suffix == ".csv":
        return write_csv(clean, ITEM_COLUMNS, target)
    if target.suffix != ".parquet":
        raise VisualHeadsError(f"An item table ends in .parquet or .csv; {target} does not. Choose such a name.")
    schema = arrow_schema(ITEM_COLUMNS).with_metadata({METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION})})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pandas(clean, schema, preserve_index=False), sink, compression="zstd")
    return write_bytes(target, sink.getvalue().to_pybytes())
