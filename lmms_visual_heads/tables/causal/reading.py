"""Reading the causal table."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lmms_visual_heads.schema import CAUSAL_SUFFIX
from lmms_visual_heads.tables.causal.columns import CAUSAL_COLUMNS
from lmms_visual_heads.tables.parquet_reading import Table, only_one, read_tables


class CausalTable(Table):
    """Causal table of one model: what knocking heads out does to the answers; see `CAUSAL_COLUMNS`."""

    columns = CAUSAL_COLUMNS
    suffix = CAUSAL_SUFFIX
    counted = "n_knockout"


def read_causal_tables(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[CausalTable]:
    """Causal tables under `paths`, one per model, in order of the models' names; see `parquet_reading.read_tables`."""
    return read_tables(CausalTable, paths)


def read_causal_table(*paths: str | os.PathLike[str]) -> CausalTable:
    """The causal table of one model.

    Raises
    ------
    VisualHeadsError
        As `read_causal_tables`, and when there are several models.
    """
    return only_one(read_causal_tables(paths))
