"""How good predictions are, with the lineage as the unit. Pure functions; units: points, 0..100.

Shapes: one row per prediction; arrays `actual`, `predicted`, `lineages` of n rows, or matrices [G, B] of one final checkpoint
per lineage, G lineages, B benchmarks, NaN where there is none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

DRAWS = 2000
"""Bootstrap draws."""


class Interval(NamedTuple):
    """An estimate with the limits of its interval."""

    value: float
    low: float
    high: float


def by_lineage(values: npt.ArrayLike, lineages: npt.ArrayLike) -> Array:
    """Mean of `values` [n] within each lineage, in the order of the lineages' sorted names; missing values do not count."""
    numbers = np.asarray(values, dtype=np.float64)
    _, index = np.unique(np.asarray(lineages), return_inverse=True)
    there = np.isfinite(numbers)
    total = np.bincount(index, np.where(there, numbers, 0.0))
    count = np.bincount(index, there.astype(float))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def bootstrap(per_lineage: Array, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over lineages with a percentile interval from lineages drawn with replacement; no limits below three lineages."""
    values = per_lineage[np.isfinite(per_lineage)]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    if len(values) < 3:
        return Interval(float(values.mean()), float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def rank_correlations(actual: Array, predicted: Array) -> tuple[float, float]:
    """Spearman's rho and Kendall's tau-b over lineages, means over the benchmarks that have them; matrices [G, B].

    A benchmark for which everything predicted is equal counts as 0: nothing was ranked.
    """
    rho, tau = [], []
    for a, p in zip(actual.T, predicted.T, strict=True):
        there = np.isfinite(a) & np.isfinite(p)
        if there.sum() < 3 or np.ptp(a[there]) == 0:
            continue
        flat = np.ptp(p[there]) < 1e-9
        rho.append(0.0 if flat else float(stats.spearmanr(a[there], p[there]).statistic))
        tau.append(0.0 if flat else float(stats.kendalltau(a[there], p[there]).statistic))
    return (float(np.mean(rho)), float(np.mean(tau))) if rho else (float("nan"), float("nan"))


def coverage(inside: npt.ArrayLike, lineages: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Share of scores inside their interval, with Clopper and Pearson's interval in which each lineage counts as one trial.

    A lineage's share is its part of a success, so the limits are those of beta distributions at fractional counts.
    """
    shares = by_lineage(inside, lineages)
    shares = shares[np.isfinite(shares)]
    n, hits = len(shares), float(shares.sum())
    if not n:
        return Interval(float("nan"), float("nan"), float("nan"))
    tail = (1 - level) / 2
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits >= n else float(stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return Interval(hits / n, low, high)
