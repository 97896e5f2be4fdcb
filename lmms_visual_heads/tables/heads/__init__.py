"""The head table: one row per (task, document, layer, head)."""

from __future__ import annotations

from lmms_visual_heads.tables.heads.columns import HEAD_COLUMNS, STATISTICS_BITS
from lmms_visual_heads.tables.heads.reading import HeadTable, read_head_table, read_head_tables
from lmms_visual_heads.tables.heads.writing import HeadTableWriter

__all__ = ["HEAD_COLUMNS", "STATISTICS_BITS", "HeadTable", "HeadTableWriter", "read_head_table", "read_head_tables"]
