"""One benchmark's fitted model with its left-out errors, and the mean absolute errors of a nested evaluation.

`model_selection` fits and judges; everything that is chosen is chosen inside the training lineages. Shapes: M models, F features.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import clone
from sklearn.dummy import DummyRegressor

from lmms_visual_heads.prediction.conformal import HIGH, LOW, LeftOutErrors
from lmms_visual_heads.prediction.lineages import lineage_mean

Array = npt.NDArray[np.float64]
EVALUATION_COLUMNS = ("model", "lineage", "benchmark", "actual", "predicted", "low", "high", "baseline")


@dataclass(frozen=True)
class BenchmarkModel:
    """One benchmark's fitted estimator with everything that an interval needs.

    Attributes
    ----------
    estimator
        Fitted on all lineages.
    left_out : dict
        Per lineage the estimator that was fitted without it; empty when there is one lineage only, or where the estimator knows
        its own errors at every row (`half_width`).
    errors : LeftOutErrors
        The errors of those estimators on the lineage that they did not see.
    baseline : float
        Mean over lineages, points.
    """

    estimator: Any
    left_out: dict[str, Any]
    errors: LeftOutErrors
    baseline: float

    def predict(self, X: Array) -> Array:
        """Predictions in points, held in 0..100, shape [M]."""
        return in_range(self.estimator.predict(X))

    @property
    def is_local(self) -> bool:
        """Whether the estimator says row by row how far off it may be."""
        return hasattr(self.estimator, "half_width")

    def intervals(self, X: Array, level: float, widen: Array | None = None) -> Array:
        """Intervals for models of new lineages, shape [M, 2]."""
        factors = np.ones(len(X)) if widen is None else widen
        centers = self.predict(X)
        if self.is_local:
            half = factors * self.estimator.half_width(X, level)
            return np.stack([in_range(centers - half), in_range(centers + half)], axis=1)
        by_lineage = {name: in_range(estimator.predict(X)) for name, estimator in self.left_out.items()}
        limits = np.empty((len(X), 2))
        for row in range(len(X)):
            others = np.array([by_lineage[str(name)][row] for name in self.errors.lineages])
            limits[row] = self.errors.interval(float(centers[row]), others, level, float(factors[row]))
        return limits


def fit_estimator(estimator: Any, X: Array, y: Array, lineages: npt.NDArray[np.str_]) -> Any:
    """A fitted clone; the lineages go along where the estimator's `fit` takes `groups`."""
    if len(y) < 2:
        return DummyRegressor(strategy="constant", constant=lineage_mean(y, lineages)).fit(X, y)
    fresh = clone(estimator)
    if "groups" in inspect.signature(fresh.fit).parameters:
        return fresh.fit(X, y, groups=lineages)
    return fresh.fit(X, y)


def errors_of(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute errors per benchmark, every lineage counting the same.

    Returns
    -------
    DataFrame
        benchmark, error, baseline_error (points), coverage (share of actual scores inside their interval), n_models,
        n_lineages.
    """
    rows = []
    for benchmark, part in evaluation.groupby("benchmark", sort=True):
        lineages = part["lineage"].to_numpy()
        inside = ((part["actual"] >= part["low"]) & (part["actual"] <= part["high"])).to_numpy(dtype=float)
        rows.append(
            (
                benchmark,
                lineage_mean((part["predicted"] - part["actual"]).abs(), lineages),
                lineage_mean((part["baseline"] - part["actual"]).abs(), lineages),
                lineage_mean(inside, lineages),
                part["model"].nunique(),
                part["lineage"].nunique(),
            )
        )
    return pd.DataFrame(rows, columns=["benchmark", "error", "baseline_error", "coverage", "n_models", "n_lineages"])


def in_range(values: npt.ArrayLike) -> Array:
    """Predictions held in the possible range, 0..100 points."""
    return np.clip(np.asarray(values, dtype=np.float64), LOW, HIGH)
