"""Trials -> frames of numbers: errors with intervals, paired differences, coverage, curves over forward passes, crossing points.

The lineage is the unit everywhere. Units: points, forward passes per benchmark. Never draws, never fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from lab.study import metrics
from lab.study.cross_validation import matrix
from lab.study.methods.base import LEVEL

KEY = ["setting", "method", "passes"]


def primary(trials: pd.DataFrame) -> pd.DataFrame:
    """The primary stratum: trainings not broken on purpose, benchmarks that do not count."""
    return trials[(trials["stratum"] != "broken") & ~trials["counting"]]


def summary(trials: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per setting, method and budget.

    Returns
    -------
    DataFrame
        setting, method, passes, error with error_low and error_high (95 %, lineages drawn with replacement), r2, spearman,
        kendall, regret, interval_score, width, coverage with coverage_low and coverage_high (95 %, Clopper and Pearson, lineages),
        p (permutation of lineages), n_lineages, n_predictions.
    """
    rows = []
    for key, part in trials.groupby(KEY, sort=False, observed=True):
        lineages = part["lineage"].to_numpy(dtype=str)
        error = metrics.bootstrap(metrics.by_lineage((part["predicted"] - part["actual"]).abs(), lineages), seed=seed)
        actual, predicted = matrix(part, "actual"), matrix(part, "predicted")
        rho, tau = metrics.rank_correlations(actual, predicted)
        low, high, true = (part[name].to_numpy(dtype=float) for name in ("low", "high", "actual"))
        covered = metrics.coverage((true >= low) & (true <= high), lineages)
        score = metrics.interval_score(true, low, high, LEVEL)
        rows.append(
            {
                **dict(zip(KEY, tuple(key), strict=True)),
                "error": error.value,
                "error_low": error.low,
                "error_high": error.high,
                "r2": metrics.r_squared(actual, predicted),
                "spearman": rho,
                "kendall": tau,
                "regret": metrics.regret(actual, predicted),
                "interval_score": float(metrics.by_lineage(score, lineages).mean()),
                "width": float(metrics.by_lineage(high - low, lineages).mean()),
                "coverage": covered.value,
                "coverage_low": covered.low,
                "coverage_high": covered.high,
                "p": metrics.permutation_p(actual, predicted, seed=seed, draws=999),
                "n_lineages": part["lineage"].nunique(),
                "n_predictions": len(part),
            }
        )
    return pd.DataFrame(rows)


def lineage_errors(trials: pd.DataFrame, setting: str, method: str, passes: float | None = None) -> pd.Series:
    """Mean absolute error of every lineage, one method in one setting; `passes` None: its largest budget."""
    part = trials[(trials["setting"] == setting) & (trials["method"] == method)]
    if part.empty:
        return pd.Series(dtype=float)
    part = part[part["passes"] == (part["passes"].max() if passes is None else passes)]
    return (part["predicted"] - part["actual"]).abs().groupby(part["lineage"]).mean()


Choice = tuple[str, float | None]
"""A method and its budget; None: its largest."""


def differences(trials: pd.DataFrame, pairs: Iterable[tuple[Choice, Choice]], settings: Sequence[str]) -> pd.DataFrame:
    """Paired differences: what the second method errs less than the first, lineage by lineage.

    Returns
    -------
    DataFrame
        setting, method, beside, error, error_beside, difference (error - error_beside) with low and high (95 %, lineages drawn
        with replacement), better_on (lineages on which `method` errs less), n_lineages.
    """
    rows = []
    for setting in settings:
        for (method, passes), (beside, passes_beside) in pairs:
            a, b = (
                lineage_errors(trials, setting, method, passes),
                lineage_errors(trials, setting, beside, passes_beside),
            )
            common = a.index.intersection(b.index)
            if not len(common):
                continue
            gap = (a[common] - b[common]).to_numpy(dtype=float)
            value, low, high = metrics.bootstrap(gap)
            rows.append(
                {
                    "setting": setting,
                    "method": _named(method, passes),
                    "beside": _named(beside, passes_beside),
                    "error": float(a[common].mean()),
                    "error_beside": float(b[common].mean()),
                    "difference": value,
                    "low": low,
                    "high": high,
                    "better_on": int((gap < 0).sum()),
                    "n_lineages": len(common),
                }
            )
    return pd.DataFrame(rows)


def _named(method: str, passes: float | None) -> str:
    return method if passes is None else f"{method} ({passes:g} passes)"


def curve(table: pd.DataFrame, setting: str, method: str) -> pd.DataFrame:
    """Error against forward passes of one method in one setting, out of a `summary`: passes, error, error_low, error_high."""
    part = table[(table["setting"] == setting) & (table["method"] == method)].sort_values("passes")
    return part[["passes", "error", "error_low", "error_high"]].reset_index(drop=True)


def passes_for(errors: pd.DataFrame, wanted: float) -> float:
    """Forward passes at which a falling curve reaches `wanted` points, straight between points of both logarithms.

    0 where it is there from the start, infinity where it never comes down to it, missing without a curve.
    """
    if errors.empty or not np.isfinite(wanted):
        return float("nan")
    passes, error = errors["passes"].to_numpy(dtype=float), np.minimum.accumulate(errors["error"].to_numpy(dtype=float))
    if error[0] <= wanted:
        return 0.0
    below = np.flatnonzero(error <= wanted)
    if not len(below):
        return float("inf")
    last = int(below[0])
    x0, x1 = np.log(passes[last - 1]), np.log(passes[last])
    y0, y1 = np.log(error[last - 1]), np.log(max(error[last], 1e-9))
    return float(np.exp(x0 + (x1 - x0) * (y0 - np.log(wanted)) / max(y0 - y1, 1e-12)))


def crossing(table: pd.DataFrame, setting: str, method: str, direct: str) -> float:
    """Forward passes per benchmark from which on `direct` errs less than `method` at equal cost; infinity: never in range."""
    ours, theirs = curve(table, setting, method), curve(table, setting, direct)
    if ours.empty or theirs.empty:
        return float("nan")
    if len(ours) == 1:
        # One price: from the passes on that direct scoring needs for the same error, if they are dearer than that price.
        return max(passes_for(theirs, float(ours["error"].iloc[0])), float(ours["passes"].iloc[0]))
    grid = np.exp(np.linspace(np.log(8.0), np.log(512.0), 400))
    a, b = _at(ours, grid), _at(theirs, grid)
    worse = np.flatnonzero(np.isfinite(a) & (a > b))
    return float(grid[worse[0]]) if len(worse) else float("inf")


def _at(errors: pd.DataFrame, grid: np.ndarray) -> np.ndarray:
    """A curve at other budgets: missing below its first, level after its last (who stops paying keeps what he has)."""
    x = np.log(errors["passes"].to_numpy(dtype=float))
    out = np.interp(np.log(grid), x, errors["error"].to_numpy(dtype=float))
    return np.where(np.log(grid) < x[0] - 1e-9, np.nan, out)
