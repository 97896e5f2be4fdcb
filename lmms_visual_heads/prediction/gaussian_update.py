"""One Gaussian over a model's scores, conditioned on whatever is known of them: measured scores and labelled items.

The mean comes from each benchmark's best method, the spread from its interval, the correlations from errors on lineages that
were left out. Units: points. Shapes: M models, D benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.prediction.calibration import ConfidenceMap
from lmms_visual_heads.prediction.gaussian_mixture import complete, shrunk
from lmms_visual_heads.prediction.labelled_items import LabelledItems, LabelPosterior, Prior, label_posterior
from lmms_visual_heads.prediction.lineages import lineage_weights

Array = npt.NDArray[np.float64]

SHRINKAGES = (0.2, 0.35, 0.5, 0.7, 0.85)
"""How much of every correlation between errors is replaced; no correlation at all is always tried, too."""

FEWEST_LINEAGES = 6
"""With fewer lineages, errors on different benchmarks count as unrelated."""

_GAIN = 0.97
"""Correlations must lower the left-out squared error to this share before they are used."""

_SURPRISE_PRIOR = 4.0
_LEAST_STD = 0.05


class Belief(NamedTuple):
    """What is believed about one model's scores: names of the D benchmarks, mean [D], covariance [D, D], points."""

    benchmarks: tuple[str, ...]
    mean: Array
    covariance: Array


class Known(NamedTuple):
    """A measured score: points, and the variance that its items give it."""

    points: float
    noise: float


class Conditioned(NamedTuple):
    """A belief after everything that is known.

    Attributes
    ----------
    belief : Belief
    labels : dict
        benchmark -> what its own labelled items, all else given, make of it.
    surprise : float
        How much larger what came was than what was expected, in standard deviations, at least 1: spreads are multiplied by it.
    """

    belief: Belief
    labels: dict[str, LabelPosterior]
    surprise: float


def observe(covariance: Array, benchmark: int, noise: float) -> Array:
    """Covariance after one observation of `benchmark` with variance `noise`: S - s s' / (s_bb + noise)."""
    column = covariance[:, benchmark]
    total = column[benchmark] + noise
    return covariance - np.outer(column, column) / total if total > 0 else covariance


def observed(mean: Array, covariance: Array, benchmark: int, value: float, noise: float) -> tuple[Array, Array]:
    """Mean and covariance after one observation."""
    column = covariance[:, benchmark]
    total = column[benchmark] + noise
    if total <= 0 or not np.isfinite(noise):
        return mean, covariance
    return mean + column * (value - mean[benchmark]) / total, observe(covariance, benchmark, noise)


def residual_correlation(residuals: Array, lineages: npt.NDArray[Any], blocks: npt.NDArray[Any]) -> Array:
    """Correlation of errors between benchmarks [D, D], drawn towards its means and 0 as far as left-out lineages ask for.

    The shrinkage is the one with which a lineage's error on a benchmark is best told from its errors on one, on a third and on all
    of the other benchmarks, the lineage left out. Where no shrinkage beats taking the errors as unrelated, they are unrelated.

    Parameters
    ----------
    residuals : array [M, D]
        Actual minus predicted on left-out lineages, points; NaN where a model has none.
    lineages : array [M]
    blocks : array [D]
        Benchmark that a column is a sub-task of.
    """
    n_columns = residuals.shape[1]
    independent = np.eye(n_columns)
    names = np.unique(lineages)
    usable = np.isfinite(residuals).sum(axis=0) >= FEWEST_LINEAGES
    if len(names) < FEWEST_LINEAGES or n_columns < 2 or usable.sum() < 2:
        return independent
    scale = np.sqrt(np.nanmean(np.where(np.isfinite(residuals), residuals, np.nan)[:, usable] ** 2, axis=0))
    if not (scale > 0).all():
        return independent
    standard, own_blocks = residuals[:, usable] / scale, blocks[usable]
    kept = np.isfinite(standard).any(axis=1)
    standard, groups = standard[kept], lineages[kept]
    errors = dict.fromkeys(SHRINKAGES, 0.0)
    alone = 0.0
    random = np.random.default_rng(0)
    for name in names:
        out = groups == name
        if not out.any() or (~out).sum() < 3:
            continue
        scatter = _scatter(standard[~out], groups[~out], own_blocks)
        questions = _questions(standard[out], random)
        alone += sum(float((rows[asked] ** 2).sum()) for rows, _, asked in questions) / out.sum()
        for shrinkage in SHRINKAGES:
            matrix = _correlation(scatter, own_blocks, shrinkage)
            errors[shrinkage] += sum(_square_error(matrix, *question) for question in questions) / out.sum()
    best = min(errors, key=lambda shrinkage: errors[shrinkage])
    if not errors[best] < _GAIN * alone:
        return independent
    whole = np.eye(n_columns)
    at = np.flatnonzero(usable)
    whole[np.ix_(at, at)] = _correlation(_scatter(standard, groups, own_blocks), own_blocks, best)
    return whole


def condition_on(
    benchmarks: Sequence[str],
    mean: Array,
    std: Array,
    correlation: Array,
    known: Mapping[str, Known],
    labelled: Mapping[str, LabelledItems],
    maps: Mapping[str, ConfidenceMap],
    level: float,
    populations: Mapping[str, int],
) -> Conditioned:
    """Everything that is known of one model enters one Gaussian.

    A labelled benchmark's items are a binomial likelihood on what all the rest says of it (`labelled.label_posterior`); to the
    other benchmarks it is the Gaussian observation of the same effect. Two rounds, so that the order does not matter.

    Parameters
    ----------
    mean, std : array [D]
        Before anything is known; the spreads are those of the intervals, so a widened interval weighs less.
    correlation : array [D, D]
    known, labelled : mapping
        By benchmark; a benchmark that is known needs no labels.
    populations : mapping
        Items of whole benchmarks where they are known.
    """
    at = {name: position for position, name in enumerate(benchmarks)}
    spread = np.maximum(std, _LEAST_STD)
    center, covariance = mean.astype(np.float64), correlation * spread * spread[:, None]
    parts = {name: items for name, items in labelled.items() if name in at and name not in known}
    squares = []
    for name, score in known.items():
        b = at[name]
        squares.append((score.points - center[b]) ** 2 / (covariance[b, b] + score.noise))
        center, covariance = observed(center, covariance, b, score.points, score.noise)
    sites: dict[str, tuple[float, float]] = {}
    labels: dict[str, LabelPosterior] = {}
    for round_number in range(2):
        for name, items in parts.items():
            b = at[name]
            own_mean, own_covariance = center, covariance
            for other, site in sites.items():
                if other != name:
                    own_mean, own_covariance = observed(own_mean, own_covariance, at[other], *site)
            prior = Prior(
                float(np.clip(own_mean[b], 0.0, 100.0)), float(np.sqrt(max(own_covariance[b, b], _LEAST_STD**2)))
            )
            after = label_posterior(prior, items, maps.get(name), level, populations.get(name))
            labels[name] = after
            if round_number == 0:
                noise = 1e4 * after.difference.variance
                squares.append((100 * after.difference.estimate - prior.mean) ** 2 / (prior.std**2 + noise))
        sites = {name: (after.site_mean, after.site_variance) for name, after in labels.items()}
    for name, site in sites.items():
        center, covariance = observed(center, covariance, at[name], *site)
    surprise = float(np.sqrt((sum(squares) + _SURPRISE_PRIOR) / (len(squares) + _SURPRISE_PRIOR))) if squares else 1.0
    belief = Belief(tuple(benchmarks), np.clip(center, 0.0, 100.0), covariance)
    return Conditioned(belief, labels, max(surprise, 1.0))


def _scatter(standard: Array, groups: npt.NDArray[Any], blocks: npt.NDArray[Any]) -> Array:
    """Second moments [D, D] of standardised errors, every lineage counting the same; missing ones by expectation."""
    filled, spread = complete(standard, blocks, 0.5, 0.5)
    weights = lineage_weights(groups)
    weights = weights / weights.sum()
    matrix = (filled * weights[:, None]).T @ filled
    return matrix if spread is None else matrix + np.einsum("m,mde->de", weights, spread)


def _correlation(scatter: Array, blocks: npt.NDArray[Any], shrinkage: float) -> Array:
    # The floor of `shrunk` is in points squared; these errors have a size of about one.
    matrix = shrunk(100.0 * scatter, blocks, shrinkage, 0.5)
    root = np.sqrt(np.diag(matrix))
    return np.asarray(matrix / root / root[:, None], dtype=np.float64)


def _questions(rows: Array, random: np.random.Generator) -> list[tuple[Array, Array, Array]]:
    """(rows, known, asked): one benchmark, a third and all others known, each in turn asked for; masks over rows."""
    finite = np.isfinite(rows)
    n_columns = rows.shape[1]
    questions = []
    for asked in range(n_columns):
        others = random.permutation(np.delete(np.arange(n_columns), asked))
        for count in {1, max(1, len(others) // 3), len(others)}:
            known = np.zeros_like(finite)
            known[:, others[:count]] = finite[:, others[:count]]
            wanted = np.zeros_like(finite)
            wanted[:, asked] = finite[:, asked]
            questions.append((rows, known, wanted))
    return questions


def _square_error(correlation: Array, rows: Array, known: Array, asked: Array) -> float:
    total = 0.0
    for row, given, wanted in zip(rows, known.astype(bool), asked.astype(bool), strict=True):
        if not wanted.any():
            continue
        guess = np.zeros(int(wanted.sum()))
        if given.any():
            inner = correlation[np.ix_(given, given)]
            guess = correlation[np.ix_(wanted, given)] @ np.linalg.solve(inner, row[given])
        total += float(((row[wanted] - guess) ** 2).sum())
    return total


__all__ = [
    "FEWEST_LINEAGES",
    "Belief",
    "Conditioned",
    "Known",
    "condition_on",
    "observe",
    "observed",
    "residual_correlation",
]
