"""All usable methods fitted per benchmark, and the choice among them by error on left-out lineages; the choice itself is nested.

Errors on one benchmark from few lineages are noisy, so half of what a method is judged by is its error on all benchmarks together.

Shapes: M models, B benchmarks, F columns of a method, n rows of one benchmark. Units: points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import clone

from lmms_visual_heads.prediction.conformal import LeftOutErrors
from lmms_visual_heads.prediction.evaluation import EVALUATION_COLUMNS, BenchmarkModel, fit_estimator, in_range
from lmms_visual_heads.prediction.lineages import lineage_mean
from lmms_visual_heads.prediction.methods import (
    ESTIMATORS,
    METHODS,
    PROBE_HEADS,
    DeclaredMethod,
    has_evidence,
    method_named,
)
from lmms_visual_heads.prediction.regressors.extra_trees import TreesOfBenchmark
from lmms_visual_heads.prediction.regressors.pooled_ridge import OneBenchmark

Array = npt.NDArray[np.float64]

FOLDS = 8
"""With more lineages than this they are left out in so many groups, not one by one: CV+ in the place of jackknife+."""

FEWEST_ROWS = 3
FEWEST_LINEAGES_OF_TREES = 10
"""With fewer lineages trees split on what single lineages have."""
ADVANTAGE = 0.98
"""A dearer method must have at most this share of a cheaper one's error."""

METHOD_COLUMNS = ("benchmark", "method", "error", "baseline_error", "n_models", "n_lineages", "chosen")


@dataclass(frozen=True)
class Rows:
    """One benchmark's rows for one method: models [n], X [n, F], points [n], lineages [n], items behind the scores [n]."""

    models: tuple[str, ...]
    X: Array
    points: Array
    lineages: npt.NDArray[np.str_]
    items: Array

    def take(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        names = tuple(model for model, keep in zip(self.models, kept, strict=True) if keep)
        return Rows(names, self.X[kept], self.points[kept], self.lineages[kept], self.items[kept])


def reference_of(rows: Rows) -> tuple[float, float, float]:
    """Mean over lineages of one benchmark's scores, their spread between lineages (points), and the most items behind one."""
    means = pd.Series(rows.points).groupby(rows.lineages).mean()
    between = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    return float(means.mean()), between, float(np.nanmax(rows.items)) if np.isfinite(rows.items).any() else float("nan")


@dataclass(frozen=True)
class FittedMethod:
    """A method fitted for one benchmark.

    Attributes
    ----------
    model : BenchmarkModel
    models : tuple of str
        Model behind every left-out error.
    low, high : array [F]
        Smallest and largest fitted value of every column; NaN where it was missing throughout.
    error, baseline_error : float
        Mean absolute left-out error of the method, and of the mean of the other lineages on the same models.
    usual : float or None
        Sum of the errors by sum of the baseline's over the benchmarks that all methods of this benchmark were tried on; None where
        that is not known: `relative` itself.
    """

    model: BenchmarkModel
    models: tuple[str, ...]
    low: Array
    high: Array
    error: float
    baseline_error: float
    usual: float | None = None

    @property
    def relative(self) -> float:
        """Error in units of the baseline's; 1 where there is nothing to compare."""
        return self.error / self.baseline_error if self.baseline_error > 0 else 1.0

    @property
    def judged(self) -> float:
        """What the choice goes by: the mean of the relative error here and the usual one."""
        return self.relative if self.usual is None else (self.relative + self.usual) / 2

    @property
    def better(self) -> bool:
        """Whether the error is below the baseline's."""
        return self.error < self.baseline_error

    def overshoot(self, row: Array) -> float:
        """How far a row [F] lies outside the fitted ranges: 0 up to half a range beyond, then in ranges, at most 10."""
        beyond = np.maximum(self.low - row, row - self.high)
        varied = self.high > self.low
        ranges = np.divide(beyond, self.high - self.low, out=np.zeros_like(beyond), where=varied & np.isfinite(beyond))
        largest = max(float(ranges.max(initial=0.0)), 0.0)
        return min(largest, 10.0) if largest > 0.5 else 0.0

    def lacks(self, row: Array) -> bool:
        """Whether a column that was fitted is missing in a row [F]."""
        return bool((np.isnan(row) & np.isfinite(self.low)).any())


Fitted = dict[str, dict[str, FittedMethod]]
"""benchmark -> method -> fitted."""

Data = Mapping[str, Mapping[str, Rows]]
"""method -> benchmark -> rows."""


def method_data(
    columns: Mapping[str, tuple[Array, tuple[str, ...]]],
    models: Sequence[str],
    benchmarks: Sequence[str],
    points: Array,
    items: Array,
    lineages: Mapping[str, str],
) -> dict[str, dict[str, Rows]]:
    """Rows per method and benchmark, of the models that have score and evidence.

    A method is left out of a benchmark where it has fewer than three of the models, fewer than half of them, or one lineage; and
    altogether where what there is of its columns is what an earlier method has.

    Parameters
    ----------
    columns : mapping
        Method -> (values [M, B, F], names of the columns).
    points, items : array [M, B]
        NaN where a model has no score.
    """
    groups = np.array([lineages[model] for model in models], dtype=np.str_)
    data: dict[str, dict[str, Rows]] = {}
    seen = set()
    for method, (values, names) in columns.items():
        kept_names = tuple(name for i, name in enumerate(names) if np.isfinite(values[:, :, i]).any())
        same = (method_named(method).estimator, kept_names)
        if same in seen:
            continue
        seen.add(same)
        there = has_evidence(values, names)
        for b, benchmark in enumerate(benchmarks):
            scored = np.isfinite(points[:, b])
            kept = scored & (there[:, b] | (method == PROBE_HEADS.name))
            fewest = FEWEST_LINEAGES_OF_TREES if method_named(method).trees else 2
            if kept.sum() < max(FEWEST_ROWS, scored.sum() / 2) or len(np.unique(groups[kept])) < fewest:
                continue
            rows = Rows(tuple(models), values[:, b], points[:, b], groups, items[:, b])
            data.setdefault(method, {})[benchmark] = rows.take(kept)
    return data


def lineage_folds(lineages: Iterable[str]) -> list[list[str]]:
    """Lineages that are left out together: one by one up to `FOLDS` of them, else `FOLDS` groups."""
    names = sorted(set(lineages))
    if len(names) <= FOLDS:
        return [[name] for name in names]
    return [names[start::FOLDS] for start in range(FOLDS)]


def fit_methods(data: Data, template: Any = None) -> Fitted:
    """Every method of `data` fitted for every benchmark, with its errors on left-out lineages.

    Parameters
    ----------
    data : mapping
        As `method_data` gives it.
    template : scikit-learn regressor or None
        In the place of every method's own estimator.
    """
    fitted: Fitted = {}
    for method in (m for m in METHODS if m.name in data):
        rows = data[method.name]
        estimator = ESTIMATORS[method.estimator]() if template is None else template
        how = _trees if method.trees else _pooled if method.estimator == "pooled" else _single
        models = (how if template is None else _single)(estimator, rows)
        for benchmark, model in models.items():
            fitted.setdefault(benchmark, {})[method.name] = _judged(model, rows[benchmark])
    return {benchmark: _beside_others(methods, fitted) for benchmark, methods in fitted.items()}


def _beside_others(methods: Mapping[str, FittedMethod], fitted: Fitted) -> dict[str, FittedMethod]:
    """Methods of one benchmark with their `usual` errors."""
    shared = [others for others in fitted.values() if set(methods) <= set(others)]
    found = {}
    for name, of in methods.items():
        error, baseline = (
            sum(getattr(others[name], what) for others in shared) for what in ("error", "baseline_error")
        )
        found[name] = replace(of, usual=error / baseline if baseline > 0 else None)
    return found


def best_method(methods: Mapping[str, FittedMethod]) -> str:
    """The method with the smallest `FittedMethod.judged`; of two within `ADVANTAGE` the one declared first."""
    order = [method.name for method in METHODS if method.name in methods]
    smallest = min(methods[name].judged for name in order)
    return next(name for name in order if methods[name].judged * ADVANTAGE <= smallest)


def undominated(fitted: Fitted, columns: Mapping[str, Sequence[str]]) -> Fitted:
    """Without the methods that can never be the best: another one needs less and is judged better. Keeps a saved predictor small.

    The best one and the one that is judged best stay, so that the choice among what is kept is the same.

    Parameters
    ----------
    columns : mapping
        Method -> names of its columns.
    """
    kept: Fitted = {}
    for benchmark, methods in fitted.items():
        needs = {
            name: {column for column, low in zip(columns[name], of.low, strict=True) if np.isfinite(low)}
            for name, of in methods.items()
        }
        always = {best_method(methods), min(methods, key=lambda name: methods[name].judged)}
        kept[benchmark] = {
            name: of
            for name, of in methods.items()
            if name in always
            or not any(
                needs[other] <= needs[name] and best_method({other: methods[other], name: of}) == other
                for other in methods
                if other != name
            )
        }
    return kept


def nested_evaluation(
    data_without: Callable[[Sequence[str]], Data], scored: Mapping[str, Rows], level: float, template: Any = None
) -> tuple[pd.DataFrame, dict[tuple[str, str], str]]:
    """Every model predicted with its lineage left out of everything: of fitting, of the choice of the method, of the interval.

    Parameters
    ----------
    data_without : callable
        Lineages that are left out -> rows of all models (`method_data`), with nothing of these lineages in the others'.
    scored : mapping
        benchmark -> rows of all models with a score: the baseline is their mean.

    Returns
    -------
    DataFrame
        `protocol.EVALUATION_COLUMNS`.
    dict
        (model, benchmark) -> method that was used.
    """
    lineages = {name for rows in scored.values() for name in rows.lineages}
    found, used = [], {}
    for fold in lineage_folds(map(str, lineages)):
        data = data_without(fold)
        rest = {m: {b: r.take(~np.isin(r.lineages, fold)) for b, r in rows.items()} for m, rows in data.items()}
        rest = {m: {b: r for b, r in rows.items() if len(r.points)} for m, rows in rest.items()}
        fitted = fit_methods({m: rows for m, rows in rest.items() if rows}, template)
        for benchmark, methods in fitted.items():
            everyone = scored[benchmark]
            others = everyone.take(~np.isin(everyone.lineages, fold))
            baseline = lineage_mean(others.points, others.lineages)
            for model, lineage, actual in zip(everyone.models, everyone.lineages, everyone.points, strict=True):
                if lineage not in fold:
                    continue
                usable = {name: m for name, m in methods.items() if model in data[name][benchmark].models}
                if not usable:
                    continue
                name = best_method(usable)
                own = data[name][benchmark]
                row = own.X[[own.models.index(model)]]
                center, (low, high) = usable[name].model.predict(row)[0], usable[name].model.intervals(row, level)[0]
                found.append((model, str(lineage), benchmark, actual, center, low, high, baseline))
                used[model, benchmark] = name
    frame = pd.DataFrame(found, columns=list(EVALUATION_COLUMNS))
    return frame.sort_values(["benchmark", "lineage", "model"], ignore_index=True), used


def methods_frame(fitted: Fitted) -> pd.DataFrame:
    """`METHOD_COLUMNS`: the left-out errors of every method on every benchmark, and which one is used where all is known."""
    rows = []
    for benchmark, methods in sorted(fitted.items()):
        chosen = best_method(methods)
        for method in (m.name for m in METHODS if m.name in methods):
            of = methods[method]
            n_lineages = len(np.unique(of.model.errors.lineages))
            rows.append((benchmark, method, of.error, of.baseline_error, len(of.models), n_lineages, method == chosen))
    return pd.DataFrame(rows, columns=list(METHOD_COLUMNS))


def _single(estimator: Any, data: Mapping[str, Rows]) -> dict[str, BenchmarkModel]:
    models = {}
    for benchmark, rows in data.items():
        folds = lineage_folds(map(str, rows.lineages))
        fits = [
            fit_estimator(estimator, part.X, part.points, part.lineages) if len(part.points) else None
            for part in (rows.take(~np.isin(rows.lineages, fold)) for fold in folds)
        ]
        whole = fit_estimator(estimator, rows.X, rows.points, rows.lineages)
        models[benchmark] = _model(whole, folds, fits, rows)
    return models


def _pooled(estimator: Any, data: Mapping[str, Rows]) -> dict[str, BenchmarkModel]:
    """One regression over all benchmarks, once on everything and once per fold of lineages."""
    names = sorted({str(lineage) for rows in data.values() for lineage in rows.lineages})
    folds = lineage_folds(names)
    whole = _fit_pooled(estimator, data, [])
    fits = [_fit_pooled(estimator, data, fold) for fold in folds]
    models = {}
    for benchmark, rows in data.items():
        views = [None if fit is None else OneBenchmark(fit, benchmark) for fit in fits]
        models[benchmark] = _model(OneBenchmark(whole, benchmark), folds, views, rows)
    return models


def _trees(estimator: Any, data: Mapping[str, Rows]) -> dict[str, BenchmarkModel]:
    """One regression over all benchmarks, once: trees leave lineages out by themselves."""
    whole = _fit_pooled(estimator, data, [])
    models, first = {}, 0
    for benchmark, rows in data.items():
        errors = LeftOutErrors(whole.residuals_[first : first + len(rows.points)], rows.lineages)
        first += len(rows.points)
        baseline = lineage_mean(rows.points, rows.lineages)
        models[benchmark] = BenchmarkModel(TreesOfBenchmark(whole, benchmark), {}, errors, baseline)
    return models


def _fit_pooled(estimator: Any, data: Mapping[str, Rows], fold: Sequence[str]) -> Any:
    parts = {benchmark: rows.take(~np.isin(rows.lineages, fold)) for benchmark, rows in data.items()}
    parts = {benchmark: rows for benchmark, rows in parts.items() if len(rows.points)}
    if sum(len(rows.points) for rows in parts.values()) < 2:
        return None
    return clone(estimator).fit(
        np.vstack([rows.X for rows in parts.values()]),
        in_range(np.concatenate([rows.points for rows in parts.values()])),
        groups=np.concatenate([rows.lineages for rows in parts.values()]),
        benchmarks=np.concatenate([np.full(len(rows.points), name) for name, rows in parts.items()]),
        items=np.concatenate([rows.items for rows in parts.values()]),
    )


def _model(whole: Any, folds: list[list[str]], fits: Sequence[Any], rows: Rows) -> BenchmarkModel:
    left_out: dict[str, Any] = {}
    residuals = np.full(len(rows.points), np.nan)
    present = {str(name) for name in rows.lineages}
    if len(present) > 1:
        for fold, fit in zip(folds, fits, strict=True):
            own = np.isin(rows.lineages, fold)
            if fit is None or not own.any():
                continue
            left_out.update(dict.fromkeys((name for name in fold if name in present), fit))
            residuals[own] = rows.points[own] - in_range(fit.predict(rows.X[own]))
    known = np.isfinite(residuals)
    errors = LeftOutErrors(residuals[known], rows.lineages[known])
    return BenchmarkModel(whole, left_out, errors, lineage_mean(rows.points, rows.lineages))


def _judged(model: BenchmarkModel, rows: Rows) -> FittedMethod:
    finite = np.isfinite(rows.X)
    there = finite.any(axis=0)
    low = np.where(there, np.where(finite, rows.X, np.inf).min(axis=0, initial=np.inf), np.nan)
    high = np.where(there, np.where(finite, rows.X, -np.inf).max(axis=0, initial=-np.inf), np.nan)
    error = baseline = float("nan")
    if len(model.errors.residuals):
        error = lineage_mean(np.abs(model.errors.residuals), model.errors.lineages)
        names, at = np.unique(rows.lineages, return_inverse=True)
        means = np.array([rows.points[at == k].mean() for k in range(len(names))])
        others = (means.sum() - means) / (len(names) - 1)
        baseline = lineage_mean(np.abs(rows.points - others[at]), rows.lineages)
    models = rows.models if len(model.errors.residuals) == len(rows.models) else ()
    if not np.isfinite(error):
        error = baseline = 1.0
    return FittedMethod(model, models, low, high, error, baseline)


def methods_of(names: Iterable[str]) -> list[DeclaredMethod]:
    """The declared methods among `names`, in their order."""
    wanted = set(names)
    return [method for method in METHODS if method.name in wanted]


__all__ = [
    "ADVANTAGE",
    "FOLDS",
    "METHOD_COLUMNS",
    "FittedMethod",
    "Rows",
    "best_method",
    "fit_methods",
    "lineage_folds",
    "method_data",
    "methods_frame",
    "methods_of",
    "nested_evaluation",
    "undominated",
]
