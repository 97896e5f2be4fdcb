"""What a fit is made of: heads and scores joined, lineages, benchmarks that can be fitted.

What is left out is named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import FEATURE_NAMES, HeadProfiles, common_tasks, feature_table
from lmms_visual_heads.tables import check_scores, lineage_of, read_lineages

SMALLEST = 3
"""Checkpoints that a benchmark must be known for."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's training rows, in points (100 * score / best possible value)."""

    name: str
    metric: str
    scale: float
    models: tuple[str, ...]
    points: npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingSet:
    """Everything that a fit needs.

    Attributes
    ----------
    profiles : HeadProfiles
        Of the models that have both heads and scores.
    tasks : tuple of str
        Probe tasks that all of them have.
    features : DataFrame [M, F]
    lineages : dict
        model -> lineage.
    benchmarks : list of Benchmark
    notes : list of str
        What was left out, one sentence each.
    """

    profiles: HeadProfiles
    tasks: tuple[str, ...]
    features: pd.DataFrame
    lineages: dict[str, str]
    benchmarks: list[Benchmark]
    notes: list[str]


def training_set(
    profiles: HeadProfiles,
    score_table: pd.DataFrame,
    lineages: Any = None,
    tasks: Iterable[str] | None = None,
    features: Iterable[str] | None = None,
) -> TrainingSet:
    """Join heads and scores.

    Raises
    ------
    VisualHeadsError
        When fewer than three checkpoints have both, no benchmark is left, or a feature is unknown or infinite.
    """
    scores = check_scores(score_table)
    notes = list(profiles.notes)
    both = sorted(set(profiles.models) & set(scores["model"]))
    _note_left_out(notes, "heads but no scores", set(profiles.models) - set(both))
    _note_left_out(notes, "scores but no heads", set(scores["model"]) - set(both))
    if lineages is None:
        notes.append(
            "No lineages were given, so every checkpoint counts as a separate training; where several come from one, name it "
            "(--lineages), or the errors look smaller than they are."
        )
    if len(both) < SMALLEST:
        raise VisualHeadsError(
            f"A fit needs at least {SMALLEST} checkpoints with heads and scores, and at least 15 before a number "
            "means anything; "
            f"{len(both)} came ({', '.join(both) or 'no name stands in both tables'}). Measure more, or mend the "
            "models' names. " + " ".join(notes)
        )
    profiles = profiles.only(both)
    chosen = common_tasks(profiles, None if tasks is None else tuple(tasks))
    dropped = sorted(set(profiles.frame["task"]) - set(chosen))
    if dropped:
        notes.append(f"Heads on {', '.join(dropped)} are not used: only probe tasks that every model has are.")
    rows = feature_table(profiles, chosen)[feature_names(features)]
    of = lineage_of(both, as_lineages(lineages))
    benchmarks = _benchmarks(scores[scores["model"].isin(both)], chosen, of, notes)
    if not benchmarks:
        raise VisualHeadsError(
            " ".join(["A fit needs at least one benchmark that can be fitted; none is left.", *notes])
        )
    return TrainingSet(profiles, chosen, rows, of, benchmarks, notes)


def as_lineages(lineages: Any) -> dict[str, str]:
    """model -> lineage out of a path, a mapping, a Series, or a DataFrame with the columns model and lineage."""
    if lineages is None:
        return {}
    if isinstance(lineages, str | os.PathLike):
        return read_lineages(lineages)
    if isinstance(lineages, pd.DataFrame):
        if not {"model", "lineage"} <= set(lineages.columns):
            raise VisualHeadsError("Lineages need the columns model and lineage. Write one row per checkpoint.")
        lineages = dict(zip(lineages["model"], lineages["lineage"], strict=True))
    return {str(model): str(lineage) for model, lineage in dict(lineages).items()}


def feature_names(features: Iterable[str] | None) -> list[str]:
    """The chosen features in their declared order.

    Raises
    ------
    VisualHeadsError
        When one is not declared.
    """
    if features is None:
        return list(FEATURE_NAMES)
    wanted = list(features)
    unknown = sorted(set(wanted) - set(FEATURE_NAMES))
    if unknown or not wanted:
        raise VisualHeadsError(
            f"Features are {', '.join(FEATURE_NAMES)}; unknown: {', '.join(unknown) or 'none chosen'}."
        )
    return [name for name in FEATURE_NAMES if name in wanted]


def _benchmarks(
    scores: pd.DataFrame, tasks: tuple[str, ...], lineages: Mapping[str, str], notes: list[str]
) -> list[Benchmark]:
    kept = []
    for label, part in scores.groupby("benchmark", sort=True):
        name, rows = str(label), part.sort_values("model")
        models = tuple(rows["model"])
        points = 100.0 * rows["score"].to_numpy(dtype=float) / rows["scale"].to_numpy(dtype=float)
        if name in tasks:
            notes.append(f"Left out benchmark {name}: the heads come from it, so whoever has the heads has its score.")
        elif len(models) < SMALLEST:
            notes.append(
                f"Left out benchmark {name}: it is known for {len(models)} of the checkpoints "
                f"({', '.join(models)}); {SMALLEST} are needed."
            )
        elif len({lineages[model] for model in models}) < 2:
            notes.append(
                f"Left out benchmark {name}: all its checkpoints come from one training, so nothing can be left out "
                "to judge it."
            )
        elif np.ptp(points) == 0:
            notes.append(
                f"Left out benchmark {name}: every checkpoint scores {rows['score'].iloc[0]:g}, so there is nothing "
                "to predict."
            )
        else:
            kept.append(Benchmark(name, str(rows["metric"].iloc[0]), float(rows["scale"].iloc[0]), models, points))
    return kept


def _note_left_out(notes: list[str], what: str, models: set[str]) -> None:
    if models:
        notes.append(f"Left out {len(models)} models with {what}: {', '.join(sorted(models))}.")
