"""The score table, one row per (model, benchmark): from CSV, from results files of lmms-eval and lm-eval, from wide files."""

from __future__ import annotations

from lmms_visual_heads.tables.scores.columns import SCORE_COLUMNS, check_scores
from lmms_visual_heads.tables.scores.reading import read_scores
from lmms_visual_heads.tables.scores.results import read_results
from lmms_visual_heads.tables.scores.wide import is_wide, parent_benchmark, read_wide_scores
from lmms_visual_heads.tables.scores.writing import write_scores

__all__ = [
    "SCORE_COLUMNS",
    "check_scores",
    "is_wide",
    "parent_benchmark",
    "read_results",
    "read_scores",
    "read_wide_scores",
    "write_scores",
]
