"""Results files of lmms-eval and lm-eval -> score table. One primary metric per task; groups are not benchmarks.

A result over fewer items never replaces one over more. Scores stay in the metric's own scale, which is recorded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.names import model_name
from lmms_visual_heads.tables.files import find_files
from lmms_visual_heads.tables.scores.benchmarks import Metric, parse_choices, primary_metric
from lmms_visual_heads.tables.scores.columns import SCORE_COLUMNS, check_scores
from lmms_visual_heads.tables.scores.wide import read_wide_scores

_FILE_NAMES = ("*_results.json", "results_*.json", "results.json")
_NOT_METRICS = ("alias", "samples", "name", "sample_len", "sample_count", " ", "")
_DERIVED = (
    "_stderr",
    "_stderr_clt",
    "_stderr_clustered",
    "_expected_accuracy",
    "_consensus_accuracy",
    "_internal_variance",
    "_consistency_rate",
)
_NAME_KEYS = ("pretrained", "model", "model_version", "model_id", "path", "engine", "model_name")
_OUR_MODELS = ("visual_heads", "vhead_")


class Results(NamedTuple):
    """A score table (`SCORE_COLUMNS`) and sentences on what was left out."""

    frame: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    model: str
    benchmark: str
    metric: str
    scale: float | None
    score: float
    n_items: int | None
    source: str
    date: str


def read_results(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], metrics: Iterable[str] = ()
) -> Results:
    """Score table out of results files.

    Parameters
    ----------
    paths : path or iterable of paths
        `*_results.json` (lmms-eval), `results_*.json` (lm-eval), wide CSV files (one row per model, one column of percent
        per benchmark; see `scores.wide`), and folders, which are searched recursively for the first two.
    metrics : iterable of str
        The user's choices, TASK=METRIC[,FILTER][:SCALE]; they win over the declared metrics.

    Returns
    -------
    Results
        `.frame`, one row per (model, benchmark), and `.notes`.

    Raises
    ------
    VisualHeadsError
        When a named file is not a results file, no score is left, or one benchmark has scores on two scales.
    """
    chosen = parse_choices(list(metrics))
    notes: list[str] = []
    rows: list[_Row] = []
    n_files = 0
    for path, named in find_files(paths, _FILE_NAMES, "*_results.json files of lmms-eval or lm-eval").items():
        if path.suffix.lower() == ".csv":
            n_files += 1
            rows += _wide_rows(path)
            continue
        document = _load(path, named, notes)
        if document is not None:
            n_files += 1
            rows += _rows(document, path, chosen, notes)
    if not n_files:
        raise VisualHeadsError(
            "At least one results file of lmms-eval or lm-eval is required; none was found. Name *_results.json "
            "files or folders."
        )
    best = _keep_one(_with_scales(rows, notes), notes)
    frame = pd.DataFrame(
        [[getattr(row, c.name) for c in SCORE_COLUMNS] for row in best], columns=[c.name for c in SCORE_COLUMNS]
    )
    frame["n_items"] = frame["n_items"].astype("Int64")
    if frame.empty:
        raise VisualHeadsError(" ".join([f"No score could be read from {n_files} results files.", *notes]))
    return Results(check_scores(frame), tuple(dict.fromkeys(notes)))


def results_model_name(document: Mapping[str, Any], path: Path) -> str:
    """The name of the model that a results document is about, by the rule of `names.model_name`.

    `model_name=` counts only for this package's own models: for others (lmms-eval's llava) it names an architecture.
    """
    config = document.get("config")
    config = config if isinstance(config, Mapping) else {}
    arguments = _arguments(config.get("model_args"))
    is_ours = any(str(name).startswith(_OUR_MODELS) for name in (config.get("model"), document.get("model_source")))
    override = arguments.get("model_name") if is_ours else None
    for key in _NAME_KEYS:
        if arguments.get(key):
            return model_name(arguments[key], override)
    top = document.get("model_name")
    if isinstance(top, str) and top:
        return model_name(top)
    return model_name(path.resolve().parent.name.replace("__", "/"))


def _wide_rows(path: Path) -> list[_Row]:
    """Rows of a wide CSV file; how many items are behind a score it does not tell."""
    frame = read_wide_scores(path).frame
    columns = (frame[name].tolist() for name in ("model", "benchmark", "metric", "scale", "score", "source"))
    return [
        _Row(model, benchmark, metric, scale, score, None, source, path.name)
        for model, benchmark, metric, scale, score, source in zip(*columns, strict=True)
    ]


def _load(path: Path, named: bool, notes: list[str]) -> dict[str, Any] | None:
    problem: str
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        problem = f"it cannot be read as JSON ({error})"
    else:
        if isinstance(document, dict) and isinstance(document.get("results"), dict) and "configs" in document:
            return document
        problem = "it has no 'results' and 'configs'"
    sentence = f"A results file of lmms-eval or lm-eval is required; {path} is none: {problem}."
    if named:
        raise VisualHeadsError(f"{sentence} Name *_results.json.")
    notes.append(f"Left out {path}: {problem}.")
    return None


def _rows(document: Mapping[str, Any], path: Path, chosen: Mapping[str, Metric], notes: list[str]) -> list[_Row]:
    model = results_model_name(document, path)
    groups = {name for name, subtasks in _mapping(document.get("group_subtasks")).items() if subtasks}
    groups |= set(_mapping(document.get("groups")))
    rows = []
    for task, values in document["results"].items():
        if task in groups or not isinstance(values, Mapping):
            continue
        numbers = _numbers(values)
        if not numbers:
            if not any(key.strip() for key in values if key != "alias"):
                continue  # a group's heading
            notes.append(f"Left out {task!r} of {path}: it has no number.")
            continue
        metric = chosen.get(task) or primary_metric(task, _mapping(_mapping(document.get("configs")).get(task)))
        picked = _pick(task, numbers, metric, path, notes)
        if picked is None:
            continue
        label, score = picked
        scale = metric.scale if metric is not None else None
        n_items = _n_items(_mapping(document.get("n-samples")).get(task), values)
        rows.append(_Row(model, task, label, scale, score, n_items, str(path), str(document.get("date", path.name))))
    return rows


def _pick(
    task: str, numbers: Mapping[str, dict[str, float]], metric: Metric | None, path: Path, notes: list[str]
) -> tuple[str, float] | None:
    """Label and value of the metric; None, with a note, where it cannot be told."""
    listed = ", ".join(f"{name},{chosen}" for name, filters in numbers.items() for chosen in filters)
    how = f"Choose with --metric {task}=METRIC"
    if metric is None:
        if len(numbers) != 1:
            notes.append(
                f"Left out benchmark {task!r} of {path}: its primary metric is not known; it has {listed}. {how}."
            )
            return None
        metric = Metric((next(iter(numbers)),), None)
    absent = [name for name in metric.names if name not in numbers]
    if absent:
        notes.append(
            f"Left out benchmark {task!r} of {path}: metric {', '.join(absent)} is missing; it has {listed}. {how}."
        )
        return None
    total = 0.0
    for name in metric.names:
        filters = numbers[name]
        wanted = metric.filter or ("none" if "none" in filters else next(iter(filters)))
        if wanted not in filters or (metric.filter is None and "none" not in filters and len(filters) > 1):
            notes.append(
                f"Left out benchmark {task!r} of {path}: metric {name} has the filters {', '.join(filters)}. "
                f"{how},FILTER."
            )
            return None
        total += filters[wanted]
    return metric.label, total


def _numbers(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """metric -> filter -> value, for the finite numbers that are neither errors nor stability statistics."""
    numbers: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        metric, _, chosen_filter = key.partition(",")
        if key in _NOT_METRICS or not chosen_filter or metric.endswith(_DERIVED) or metric.startswith("paired_"):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers.setdefault(metric, {})[chosen_filter] = float(value)
    return numbers


def _n_items(sizes: Any, values: Mapping[str, Any]) -> int | None:
    """Items scored; mends what lmms-eval writes for limits of -1 and for fractions."""
    sizes = _mapping(sizes)
    original, effective = sizes.get("original"), sizes.get("effective")
    if isinstance(effective, int | float) and effective >= 1:
        return int(effective)
    if isinstance(effective, int | float) and isinstance(original, int):
        return math.ceil(original * effective) if effective > 0 else original
    samples = values.get("samples", values.get("sample_len"))
    return samples if isinstance(samples, int) else None


def _with_scales(rows: list[_Row], notes: list[str]) -> list[_Row]:
    """Rows of undeclared scale get 1 where all values of the benchmark lie in 0..1, and 100 up to 100."""
    largest: dict[str, float] = {}
    smallest: dict[str, float] = {}
    for row in rows:
        largest[row.benchmark] = max(row.score, largest.get(row.benchmark, row.score))
        smallest[row.benchmark] = min(row.score, smallest.get(row.benchmark, row.score))
    done = []
    for row in rows:
        if row.scale is not None:
            done.append(row)
        elif smallest[row.benchmark] < 0 or largest[row.benchmark] > 100:
            notes.append(
                f"Left out benchmark {row.benchmark!r}: the scale of {row.metric} is not known (values "
                f"{smallest[row.benchmark]:g} to "
                f"{largest[row.benchmark]:g}). Say --metric {row.benchmark}={row.metric}:SCALE with its best value."
            )
        else:
            scale = 1.0 if largest[row.benchmark] <= 1 else 100.0
            done.append(_Row(row.model, row.benchmark, row.metric, scale, row.score, row.n_items, row.source, row.date))
    return done


def _keep_one(rows: list[_Row], notes: list[str]) -> list[_Row]:
    """One row per (model, benchmark): more items first, then the newer."""
    best: dict[tuple[str, str], _Row] = {}
    for row in sorted(rows, key=lambda row: (row.n_items or 0, row.date, row.source)):
        key = (row.model, row.benchmark)
        other = best.get(key)
        if other is not None and other.score != row.score:
            reason = "more items" if (other.n_items or 0) < (row.n_items or 0) else "newer"
            notes.append(
                f"{row.model} has two results of {row.benchmark}; kept {row.score:g} ({row.source}, {reason}), not "
                f"{other.score:g} ({other.source})."
            )
        best[key] = row
    return sorted(best.values(), key=lambda row: (row.model, row.benchmark))


def _arguments(model_args: Any) -> dict[str, str]:
    """lmms-eval's `model_args`, a dict or `key=value,…`, as text values."""
    if isinstance(model_args, Mapping):
        return {str(key): str(value) for key, value in model_args.items() if value is not None}
    if isinstance(model_args, str):
        pairs = (part.partition("=") for part in model_args.split(","))
        return {key.strip(): value.strip() for key, equals, value in pairs if equals}
    return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
