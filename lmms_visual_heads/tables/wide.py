"""Wide score files: one row per model, one column per benchmark or sub-task, accuracies in percent -> score table.

The layout of the public result file of CrossPred-LVLM (108 models x 149 accuracies). Empty cells are missing.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import SCORE_COLUMNS

MODEL_COLUMN, FAMILY_COLUMN = "model", "family"
DESCRIPTIONS = frozenset({"llm_billion_params", FAMILY_COLUMN})
"""Columns that describe the model; every other one holds scores."""

_SUBTASK = re.compile(r".*\(([^()]+)\)\s*")


class WideScores(NamedTuple):
    """A wide file as a score table (`schema.SCORE_COLUMNS`), and family of every model whose family is told."""

    frame: pd.DataFrame
    families: dict[str, str]


def parent_benchmark(name: str) -> str:
    """Benchmark that a sub-task belongs to: the last words in brackets, or the name itself.

    >>> parent_benchmark("Accounting (MMMU)")
    'MMMU'
    """
    found = _SUBTASK.fullmatch(name)
    return found.group(1) if found else name


def is_wide(path: str | os.PathLike[str]) -> bool:
    """Whether a CSV file's header begins with `model` and has no column `score`."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return bool(header) and header[0] == MODEL_COLUMN and "score" not in header


def read_wide_scores(path: str | os.PathLike[str]) -> WideScores:
    """Score table out of a wide file.

    Raises
    ------
    VisualHeadsError
        No CSV with a first column `model` and a column of scores; a repeated model or column; a row of another length; a
        cell that is no number from 0 to 100; fractions instead of percent.
    """
    target = Path(path)
    header, rows = _cells(target)
    columns = [(position, name) for position, name in enumerate(header) if position and name not in DESCRIPTIONS]
    scores: list[tuple[str, str, str, float, float, None, str]] = []
    for line, row in rows:
        for position, name in columns:
            value = _percent(row[position], f"{name!r} of {row[0]} ({target}, line {line})")
            if value is not None:
                scores.append((row[0], name, "accuracy", 100.0, value, None, target.name))
    frame = pd.DataFrame(scores, columns=[c.name for c in SCORE_COLUMNS])
    frame["n_items"] = frame["n_items"].astype("Int64")
    if frame.empty:
        raise _required(target, "it has no score")
    if frame["score"].max() <= 1:
        raise VisualHeadsError(
            f"A wide score file holds percent, 0 to 100; no score in {target} exceeds {frame['score'].max():g}, which "
            "looks like fractions. Multiply them by 100."
        )
    family = header.index(FAMILY_COLUMN) if FAMILY_COLUMN in header else None
    named = {} if family is None else {row[0]: row[family].strip() for _, row in rows if row[family].strip()}
    return WideScores(frame, named)


def _cells(target: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows with their line numbers, all of one length, every model once."""
    if not target.is_file():
        raise VisualHeadsError(f"No such score file: {target}.")
    try:
        table = list(csv.reader(io.StringIO(target.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _required(target, f"it cannot be read as CSV ({error})") from error
    header = [name.strip() for name in table[0]] if table else []
    if not header or header[0] != MODEL_COLUMN:
        raise _required(target, f"its first column is {header[0] if header else 'missing'!r}")
    twice = sorted({name for name in header if header.count(name) > 1 or not name})
    if twice:
        raise _required(target, f"its column {twice[0]!r} stands there twice or has no name")
    if not set(header[1:]) - DESCRIPTIONS:
        raise _required(target, "it has no column of scores")
    rows = [(line, row) for line, row in enumerate(table[1:], start=2) if any(cell.strip() for cell in row)]
    seen: dict[str, int] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise _required(target, f"line {line} has {len(row)} cells and the header {len(header)}")
        if not row[0].strip():
            raise _required(target, f"line {line} names no model")
        if row[0] in seen:
            raise _required(target, f"{row[0]} stands in lines {seen[row[0]]} and {line}")
        seen[row[0]] = line
    return header, rows


def _percent(cell: str, where: str) -> float | None:
    text = cell.strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise VisualHeadsError(
            f"Every score of a wide file must be a number from 0 to 100, or empty; {text!r} came for {where}. Mend the cell."
        )
    return value


def _required(target: Path, problem: str) -> VisualHeadsError:
    return VisualHeadsError(
        f"A wide score file is a CSV whose first column is {MODEL_COLUMN!r}, with one row per model and one column of "
        f"percent per benchmark; {target} is none: {problem}. Mend it, or leave it out."
    )
