"""Item table: per-item correctness out of lmms-eval's samples files (`*_samples_<task>.jsonl`).

Columns: `schema.ITEM_COLUMNS`.

Only tasks whose samples hold the primary metric as a number, a truth value, or an object with one of the two.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import ITEM_COLUMNS
from lmms_visual_heads.tables.benchmarks import parse_choices, primary_metric
from lmms_visual_heads.tables.results import results_model_name

_FILE_NAME = re.compile(r"(?:(?P<date>\d{8}_\d{6}|.+?)_)?samples_(?P<task>.+)\.jsonl")
_KEYS_OF_OBJECTS = ("score", "is_correct", "correct", "exact_match")


class Items(NamedTuple):
    """An item table and sentences on what was left out."""

    frame: pd.DataFrame
    notes: tuple[str, ...]


def read_items(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], metrics: Iterable[str] = ()) -> Items:
    """Item table out of samples files and folders (searched recursively).

    The model's name comes from the results file of the same run, or else from the folder's name.

    Parameters
    ----------
    paths : path or iterable of paths
    metrics : iterable of str
        The user's choices, TASK=METRIC.

    Raises
    ------
    VisualHeadsError
        No such path, no samples file, or a line that is not JSON.
    """
    chosen = parse_choices(list(metrics))
    notes: list[str] = []
    rows: dict[tuple[str, str, int], float] = {}
    n_files = 0
    for path in _files([paths] if isinstance(paths, str | os.PathLike) else paths):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise VisualHeadsError(
                f"A samples file (<date>_samples_<task>.jsonl) is required; {path} is none. Run lmms-eval with "
                "--log_samples."
            )
        n_files += 1
        task = match["task"]
        metric = chosen.get(task) or primary_metric(task)
        model = _model_of(path, match["date"] or "")
        if metric is None or len(metric.names) != 1:
            notes.append(
                f"Left out the items of {task!r}: it has no single known metric. Choose with --metric {task}=METRIC."
            )
            continue
        n_before = len(rows)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                doc_id, value = _item(line, metric.names[0], f"{path}, line {number}")
                if doc_id is not None and value is not None:
                    rows.setdefault((model, task, doc_id), value)
        if len(rows) == n_before:
            notes.append(f"Left out the items of {task!r} ({path}): {metric.names[0]} is not a number per item there.")
    if not n_files:
        raise VisualHeadsError(
            "At least one samples file is required; none was found. Run lmms-eval with --log_samples."
        )
    frame = pd.DataFrame([(*key, value) for key, value in sorted(rows.items())], columns=[c.name for c in ITEM_COLUMNS])
    return Items(frame.astype({"doc_id": "int32", "correct": "float32"}), tuple(dict.fromkeys(notes)))


def _files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    found: dict[Path, None] = {}
    for entry in paths:
        path = Path(entry)
        if path.is_dir():
            found.update(dict.fromkeys(sorted(path.rglob("*samples_*.jsonl"), reverse=True)))  # newer runs first
        elif path.exists():
            found[path] = None
        else:
            raise VisualHeadsError(f"No such file or folder: {path}. Name samples files of lmms-eval, or their folder.")
    return list(found)


def _model_of(path: Path, date: str) -> str:
    for results in sorted(path.parent.glob("*results*.json"), key=lambda p: not p.name.startswith(date)):
        try:
            document = json.loads(results.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            continue
        if isinstance(document, Mapping) and "results" in document:
            return results_model_name(document, path)
    return results_model_name({}, path)


def _item(line: str, metric: str, where: str) -> tuple[int | None, float | None]:
    try:
        sample = json.loads(line)
    except json.JSONDecodeError as error:
        raise VisualHeadsError(
            f"Every line of a samples file must be JSON; {where} is not ({error}). Copy the file again."
        ) from error
    if not isinstance(sample, Mapping) or not isinstance(sample.get("doc_id"), int):
        raise VisualHeadsError(
            f"Every line of a samples file must have a doc_id; {where} has none. Name lmms-eval's *_samples_*.jsonl."
        )
    value = sample.get(metric)
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS_OF_OBJECTS if key in value), None)
    return sample["doc_id"], _fraction(value)


def _fraction(value: Any) -> float | None:
    if isinstance(value, bool | int | float) and math.isfinite(value) and 0 <= value <= 1:
        return float(value)
    return None
