"""The item table, one row per (model, benchmark, document): from samples files of lmms-eval, CSV or Parquet."""

from __future__ import annotations

from lmms_visual_heads.tables.items.columns import ITEM_COLUMNS, check_items_table
from lmms_visual_heads.tables.items.reading import Items, read_items
from lmms_visual_heads.tables.items.writing import write_items

__all__ = ["ITEM_COLUMNS", "Items", "check_items_table", "read_items", "write_items"]
