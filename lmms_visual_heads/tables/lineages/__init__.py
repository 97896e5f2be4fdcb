"""The lineage table, one row per model: which training a checkpoint comes from."""

from __future__ import annotations

from lmms_visual_heads.tables.lineages.columns import LINEAGE_COLUMNS, lineage_of
from lmms_visual_heads.tables.lineages.reading import read_lineages
from lmms_visual_heads.tables.lineages.writing import write_lineages

__all__ = ["LINEAGE_COLUMNS", "lineage_of", "read_lineages", "write_lineages"]
