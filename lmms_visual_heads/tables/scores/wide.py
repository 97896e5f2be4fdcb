"""Wide score files: one row per model, one column per benchmark or sub-task, accuracies in percent -> score table.

The layout of the public result file of CrossPred-LVLM (108 models x 149 accuracies). Empty cells are missing.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.csv_reading import CsvForm, read_cells, read_header
from lmms_visual_heads.tables.scores.columns import SCORE_COLUMNS

MODEL_COLUMN, FAMILY_COLUMN = "model", "family"
DESCRIPTIONS = frozenset({"llm_billion_params", FAMILY_COLUMN})
"""Columns that describe the model; every other one holds scores."""

WIDE_FORM = CsvForm(
    "wide score file",
    (),
    required=(MODEL_COLUMN,),
    key=(MODEL_COLUMN,),
    remedy="Mend it, or leave it out.",
    shape=f"a CSV file whose first column is {MODEL_COLUMN!r}, with one row per model and one column of percent per benchmark",
)

_SUBTASK = re.compile(r".*\(([^()]+)\)\s*")


class WideScores(NamedTuple):
    """A wide file as a score table (`SCORE_COLUMNS`), and family of every model whose family is told."""

    frame: pd.DataFrame
    families: dict[str, str]


def parent_benchmark(name: str) -> str:
    """Benchmark that a sub-task belongs to: the last words in brackets, or the name itself.

    >>> parent_benchmark("Accounting (MMMU)")
    'MMMU'
    """
    subtask = _SUBTASK.fullmatch(name)
    return subtask.group(1) if subtask else name


def is_wide(path: str | os.PathLike[str]) -> bool:
    """Whether a CSV file's header begins with `model` and has no column `score`."""
    header = read_header(path)
    return bool(header) and header[0] == MODEL_COLUMN and "score" not in header


def read_wide_scores(path: str | os.PathLike[str]) -> WideScores:
    """Score table out of a wide file.

    Raises
    ------
    VisualHeadsError
        No CSV with a first column `model` and a column of scores; a repeated model or column; a row of another length; a
        cell that is no number from 0 to 100; fractions instead of percent.
    """
    cells = read_cells(path, WIDE_FORM)
    target, header = cells.path, cells.header
    if header[0] != MODEL_COLUMN or "" in header:
        raise WIDE_FORM.refusal(target, f"its first column is {header[0]!r}, or a column has no name")
    columns = [(position, name) for position, name in enumerate(header) if position and name not in DESCRIPTIONS]
    if not columns:
        raise WIDE_FORM.refusal(target, "it has no column of scores")
    scores: list[tuple[str, str, str, float, float, None, str]] = []
    for line, row in cells.rows:
        for position, name in columns:
            value = _percent(row[position], f"{name!r} of {row[0]} ({target}, line {line})")
            if value is not None:
                scores.append((row[0], name, "accuracy", 100.0, value, None, target.name))
    frame = pd.DataFrame(scores, columns=[c.name for c in SCORE_COLUMNS])
    frame["n_items"] = frame["n_items"].astype("Int64")
    if frame.empty:
        raise WIDE_FORM.refusal(target, "it has no score")
    if frame["score"].max() <= 1:
        raise VisualHeadsError(
            f"A wide score file holds percent, 0 to 100; no score in {target} exceeds {frame['score'].max():g}, which "
            "looks like fractions. Multiply them by 100."
        )
    family = header.index(FAMILY_COLUMN) if FAMILY_COLUMN in header else None
    named = {} if family is None else {row[0]: row[family] for _, row in cells.rows if row[family]}
    return WideScores(frame, named)


def _percent(cell: str, where: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise VisualHeadsError(
            f"Every score of a wide file must be a number from 0 to 100, or empty; {cell!r} came for {where}. Mend the cell."
        )
    return value
