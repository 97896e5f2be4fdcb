"""Reading the answer table."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lmms_visual_heads.schema import ANSWERS_SUFFIX
from lmms_visual_heads.tables.answers.columns import ANSWER_COLUMNS
from lmms_visual_heads.tables.parquet_reading import Table, only_one, read_tables


class AnswerTable(Table):
    """Answer table of one model: one row per (task, document); see `ANSWER_COLUMNS`."""

    columns = ANSWER_COLUMNS
    suffix = ANSWERS_SUFFIX


def read_answer_tables(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[AnswerTable]:
    """Answer tables under `paths`, one per model, in order of the models' names; see `parquet_reading.read_tables`."""
    return read_tables(AnswerTable, paths)


def read_answer_table(*paths: str | os.PathLike[str]) -> AnswerTable:
    """The answer table of one model.

    Raises
    ------
    VisualHeadsError
        As `read_answer_tables`, and when there are several models.
    """
    return only_one(read_answer_tables(paths))
