"""Reading the head table."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lmms_visual_heads.schema import HEADS_SUFFIX
from lmms_visual_heads.tables.heads.columns import HEAD_COLUMNS
from lmms_visual_heads.tables.parquet_reading import Table, only_one, read_tables


class HeadTable(Table):
    """Head table of one model: one row per (task, document, layer, head); see `HEAD_COLUMNS`."""

    columns = HEAD_COLUMNS
    suffix = HEADS_SUFFIX


def read_head_tables(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[HeadTable]:
    """Head tables under `paths`, one per model, in order of the models' names; see `parquet_reading.read_tables`."""
    return read_tables(HeadTable, paths)


def read_head_table(*paths: str | os.PathLike[str]) -> HeadTable:
    """The head table of one model.

    Raises
    ------
    VisualHeadsError
        As `read_head_tables`, and when there are several models.
    """
    return only_one(read_head_tables(paths))
