"""Samples files of lmms-eval (`*_samples_<task>.jsonl`) -> rows of the item table.

Only tasks whose samples hold the primary metric as a number, a truth value, or an object with one of the two.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.scores.benchmarks import Metric, primary_metric
from lmms_visual_heads.tables.scores.results import results_model_name

SAMPLES_FILES = "*samples_*.jsonl"
_FILE_NAME = re.compile(r"(?:(?P<date>\d{8}_\d{6}|.+?)_)?samples_(?P<task>.+)\.jsonl")
_KEYS_OF_OBJECTS = ("score", "is_correct", "correct", "exact_match")


def samples_rows(path: Path, chosen: Mapping[str, Metric], notes: list[str]) -> dict[tuple[str, str, int], float]:
    """(model, benchmark, doc_id) -> correct out of one samples file.

    The model's name comes from the results file of the same run, or else from the folder's name.

    Parameters
    ----------
    path : Path
    chosen : mapping of str to Metric
        The user's metrics; they win over the declared ones.
    notes : list of str
        Where the file has no number per item, a sentence is added.

    Raises
    ------
    VisualHeadsError
        Another kind of file, or a line that is not JSON.
    """
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise VisualHeadsError(
            f"A samples file (<date>_samples_<task>.jsonl) is required; {path} is none. Run lmms-eval with --log_samples."
        )
    task = match["task"]
    metric = chosen.get(task) or primary_metric(task)
    if metric is None or len(metric.names) != 1:
        notes.append(
            f"Left out the items of {task!r}: it has no single known metric. Choose with --metric {task}=METRIC."
        )
        return {}
    model = _model_of(path, match["date"] or "")
    rows: dict[tuple[str, str, int], float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            doc_id, correct = _item(line, metric.names[0], f"{path}, line {number}")
            if correct is not None:
                rows.setdefault((model, task, doc_id), correct)
    if not rows:
        notes.append(f"Left out the items of {task!r} ({path}): {metric.names[0]} is not a number per item there.")
    return rows


def _model_of(path: Path, date: str) -> str:
    for results in sorted(path.parent.glob("*results*.json"), key=lambda p: not p.name.startswith(date)):
        try:
            document = json.loads(results.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            continue
        if isinstance(document, Mapping) and "results" in document:
            return results_model_name(document, path)
    return results_model_name({}, path)


def _item(line: str, metric: str, where: str) -> tuple[int, float | None]:
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
