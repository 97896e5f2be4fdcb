"""The answer table: one row per (task, document)."""

from __future__ import annotations

from lmms_visual_heads.tables.answers.columns import ANSWER_COLUMNS
from lmms_visual_heads.tables.answers.reading import AnswerTable, read_answer_table, read_answer_tables
from lmms_visual_heads.tables.answers.writing import AnswerTableWriter

__all__ = ["ANSWER_COLUMNS", "AnswerTable", "AnswerTableWriter", "read_answer_table", "read_answer_tables"]
