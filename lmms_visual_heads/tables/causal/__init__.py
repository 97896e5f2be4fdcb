"""The causal table: one row per knock-out, (task, document, layer, head)."""

from __future__ import annotations

from lmms_visual_heads.tables.causal.columns import CAUSAL_COLUMNS, EVERY
from lmms_visual_heads.tables.causal.reading import CausalTable, read_causal_table, read_causal_tables
from lmms_visual_heads.tables.causal.writing import CausalTableWriter

__all__ = ["CAUSAL_COLUMNS", "EVERY", "CausalTable", "CausalTableWriter", "read_causal_table", "read_causal_tables"]
