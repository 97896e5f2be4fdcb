"""Labelled items of one model on one benchmark: a likelihood on what a regression expects of the score.

The labelled items' own confidences, and those of the items without a label, take out the luck of which items were labelled.
Units: scores in points 0..100; correctness and confidence 0..1. Shapes: n labelled items, N items without a label. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import stats

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.calibration import ConfidenceMap

Array = npt.NDArray[np.float64]

TAIL_DEGREES = 5.0
"""Degrees of freedom of the prior's Student t: many labels that contradict it win, as they would not against a Gaussian."""

_GRID = (np.arange(4000) + 0.5) / 4000
_LEAST_RATIO = 0.1
"""The confidences never save more than nine tenths of the labels' variance."""


@dataclass(frozen=True, slots=True)
class LabelledItems:
    """What was scored of a model on a benchmark, and how sure the model was.

    Attributes
    ----------
    correct : array [n]
        1 where the item was answered correctly; partial credit lies between.
    confidence : array [n]
        The model's confidence on these items; NaN where missing.
    unlabelled : array [N]
        Its confidences on items without a label; NaN where missing.
    """

    correct: Array
    confidence: Array
    unlabelled: Array

    def __post_init__(self) -> None:
        if self.correct.ndim != 1 or self.correct.shape != self.confidence.shape or self.unlabelled.ndim != 1:
            raise VisualHeadsError(
                f"Labelled items need one confidence each; {len(self.correct)} labels came with {len(self.confidence)} "
                "confidences. Pass NaN where a confidence is missing."
            )
        if not ((self.correct >= 0) & (self.correct <= 1)).all():
            raise VisualHeadsError("Labels must lie in 0..1; another value came. Leave items without a label out.")
        for name, values in (("confidence", self.confidence), ("unlabelled", self.unlabelled)):
            there = values[~np.isnan(values)]
            if not ((there >= 0) & (there <= 1)).all():
                raise VisualHeadsError(f"Confidences must lie in 0..1 or be missing; {name} has another value.")

    @classmethod
    def of(
        cls, correct: npt.ArrayLike, confidence: npt.ArrayLike | None = None, unlabelled: npt.ArrayLike | None = None
    ) -> Self:
        """Out of plain sequences; without confidences the labels stand alone."""
        labels = np.asarray(correct, dtype=np.float64)
        own = np.full(len(labels), np.nan) if confidence is None else np.asarray(confidence, dtype=np.float64)
        rest = np.zeros(0) if unlabelled is None else np.asarray(unlabelled, dtype=np.float64)
        return cls(labels, own, rest)


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of the score before a label is seen, points: mean, standard deviation, degrees of freedom of its tails."""

    mean: float
    std: float
    degrees: float = TAIL_DEGREES

    def __post_init__(self) -> None:
        if not np.isfinite(self.mean) or not self.std > 0 or not self.degrees > 2:
            raise VisualHeadsError(
                f"A prior needs a finite mean, a standard deviation above 0 and more than two degrees of freedom; "
                f"{self.mean!r}, {self.std!r} and {self.degrees!r} came."
            )


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference estimate of a mean, 0..1.

    Attributes
    ----------
    estimate : float
        mean_n(y) + power (mean_N g - mean_n g); may leave 0..1.
    variance : float
        Its variance, (0..1) squared.
    effective : float
        Labels that would say as much by themselves.
    power : float
        Weight of the confidences: 0 is direct scoring.
    slope : float
        What one unit of g is worth in correctness, as believed after the labels.
    """

    estimate: float
    variance: float
    effective: float
    power: float
    slope: float


@dataclass(frozen=True, slots=True)
class LabelPosterior:
    """What is believed of the score after the labels, points.

    Attributes
    ----------
    mean, std, low, high : float
    direct : float
        The labels' plain mean.
    weight : float
        Share of the labels in the mean, 0..1; the rest is the prior's.
    site_mean, site_variance : float
        The Gaussian observation that would have taken the prior to this posterior: for conditioning other benchmarks. The
        variance is infinite where the labels said nothing.
    difference : Difference
    """

    mean: float
    std: float
    low: float
    high: float
    direct: float
    weight: float
    site_mean: float
    site_variance: float
    difference: Difference


def difference_estimate(items: LabelledItems, mapping: ConfidenceMap, population: int | None = None) -> Difference:
    """Mean correctness from labels and confidences.

    mean_n(y) + w (mean_N g(c) - mean_n g(c)), w = slope / (1 + n / N) as the power tuning of PPI++ (Angelopoulos, Duchi, Zrnic
    2023, arXiv 2311.01453, section 6). Its plug-in slope is as noisy as sixteen labels are, so the slope has a prior, learnt on
    reference models or wide (`ConfidenceMap`), and only as much of it is left as the labels leave.

    Parameters
    ----------
    items : LabelledItems
        At least one label.
    mapping : ConfidenceMap
    population : int or None
        Items of the whole benchmark where its score on just these is wanted: what is labelled is then known and not sampled.
    """
    n = len(items.correct)
    if n < 1:
        raise VisualHeadsError(
            "At least one labelled item is required; none came. Score a few items, or leave them out."
        )
    y, g = items.correct, mapping(items.confidence)
    rest = mapping(items.unlabelled)
    rest = rest[np.isfinite(rest)]
    direct = float(y.mean())
    # One right and one wrong item more: an edge such as 0 of n does not count as certainty.
    p = (y.sum() + 1) / (n + 2)
    size = p * (1 - p)
    n_rest = len(rest)
    usable = np.isfinite(g).all() and n_rest > 0
    spread = float(np.var(np.concatenate([g, rest]))) if usable else 0.0
    power, slope, estimate, ratio = 0.0, 0.0, direct, 1.0
    if spread > 1e-8:
        own = float(np.var(g))
        seen = float(np.mean((g - g.mean()) * (y - direct))) / own if own > 1e-8 else 0.0
        precision = n * own / size
        slope = (precision * seen + mapping.slope / mapping.slope_std**2) / (precision + mapping.slope_std**-2)
        power = slope / (1 + n / n_rest)
        estimate = direct + power * (float(rest.mean()) - float(g.mean()))
        explained = (2 * power * slope - power**2) * spread - power**2 * spread * n / n_rest
        ratio = float(np.clip(1 - explained / size, _LEAST_RATIO, 1.5))
    variance = size * ratio / n
    if population is not None:
        variance *= max(1 - n / population, 1e-6)
    return Difference(estimate, variance, size / variance, power, slope)


def label_posterior(
    prior: Prior,
    items: LabelledItems,
    mapping: ConfidenceMap | None = None,
    level: float = 0.9,
    population: int | None = None,
) -> LabelPosterior:
    """Prior times likelihood on a grid of scores.

    The likelihood is binomial with the difference estimate's effective number of items, so 0 of n and n of n are no special
    cases: they leave room on the inner side only. In between it is the Gaussian blend by precision. The interval is the shortest
    that holds `level`: where all labels are right, 100 is likely, and an interval with equal tails would always leave it out.

    Parameters
    ----------
    prior : Prior
        From any estimator; its spread from errors on lineages that were left out.
    items : LabelledItems
    mapping : ConfidenceMap or None
        None: the confidence as it is, with a wide prior on what it is worth.
    level : float
    population : int or None
        As for `difference_estimate`.
    """
    if not 0 < level < 1:
        raise VisualHeadsError(f"level must lie between 0 and 1; {level!r} came. 0.9 means nine of ten.")
    found = difference_estimate(items, ConfidenceMap.identity() if mapping is None else mapping, population)
    share = float(np.clip(found.estimate, 0.0, 1.0))
    likelihood = found.effective * (share * np.log(_GRID) + (1 - share) * np.log1p(-_GRID))
    before = _prior_logs(prior)
    mean_before, std_before = _moments(_normalised(before))
    density = _normalised(before + likelihood)
    mean, std = _moments(density)
    low, high = _shortest(density, level)
    gained = 1 / std**2 - 1 / std_before**2
    told = gained > 1e-9
    site = ((mean / std**2 - mean_before / std_before**2) / gained, 1 / gained) if told else (mean, float("inf"))
    weight = float(np.clip(1 - std**2 / std_before**2, 0.0, 1.0))
    direct = 100 * float(items.correct.mean())
    return LabelPosterior(mean, std, min(low, mean), max(high, mean), direct, weight, *site, found)


def shrunk_direct(prior: Prior, correct: npt.ArrayLike) -> float:
    """Direct scoring blended with a prior by precision, points: the baseline that labels have to beat."""
    y = np.asarray(correct, dtype=np.float64)
    p = (y.sum() + 1) / (len(y) + 2)
    noise = 1e4 * p * (1 - p) / len(y)
    return float((100 * y.mean() / noise + prior.mean / prior.std**2) / (1 / noise + prior.std**-2))


def shared_luck_factor(std: float, after: LabelPosterior, items: LabelledItems, population: int | None) -> float:
    """What an interval is multiplied by because prediction and labels come from the same prompts, at least 1.

    How easy the N prompts are by luck, variance u = p (1 - p) / N (1 - N / population), is in a prediction from their answers and
    in the labels of n of them alike: the two err together by u and apart by what is left, e and v. Their blend then has variance
    u + e v / (e + v), where blending them as strangers promises less.

    Parameters
    ----------
    std : float
        Standard deviation of the prediction before the labels, points.
    after : LabelPosterior
    items : LabelledItems
        With the confidences of the prompts that have no label.
    population : int or None
        Items of the whole benchmark; None: many.
    """
    n_prompts = len(items.correct) + len(items.unlabelled)
    p = float(np.clip(after.mean / 100, 0.02, 0.98))
    left = 1.0 if population is None else max(1 - n_prompts / population, 0.0)
    shared = 1e4 * p * (1 - p) / n_prompts * left
    before, labels = std**2, 1e4 * after.difference.variance
    apart = [max(variance - shared, 0.05 * variance) for variance in (before, labels)]
    together = shared + apart[0] * apart[1] / sum(apart)
    return float(np.sqrt(max(together / (before * labels / (before + labels)), 1.0)))


def item_noise(points: float, n_items: int | float, level: float = 0.9) -> float:
    """Half-width in points that drawing `n_items` right-or-wrong items by itself gives a score of `points`, at `level`."""
    p = float(np.clip(points / 100, 0.02, 0.98))
    return float(100 * stats.norm.ppf((1 + level) / 2) * np.sqrt(p * (1 - p) / n_items))


def _prior_logs(prior: Prior) -> Array:
    if np.isinf(prior.degrees):
        return np.asarray(stats.norm.logpdf(100 * _GRID, prior.mean, prior.std), dtype=np.float64)
    # The central 90 % are those of a Gaussian with this spread; only the tails are heavier.
    scale = prior.std * stats.norm.ppf(0.95) / stats.t.ppf(0.95, prior.degrees)
    away = (100 * _GRID - prior.mean) / scale
    return -0.5 * (prior.degrees + 1) * np.log1p(away**2 / prior.degrees)


def _normalised(logs: Array) -> Array:
    density = np.exp(logs - logs.max())
    return density / density.sum()


def _moments(density: Array) -> tuple[float, float]:
    mean = float((density * _GRID).sum())
    return 100 * mean, 100 * float(np.sqrt(max((density * (_GRID - mean) ** 2).sum(), 1e-12)))


def _shortest(density: Array, level: float) -> tuple[float, float]:
    """Ends, in points, of the shortest interval that holds `level`, over 1,001 ways to split the rest between its sides."""
    total = np.concatenate([[0.0], np.cumsum(density)])
    edges = np.linspace(0.0, 100.0, len(density) + 1)
    upto = np.linspace(level, 1.0, 1001)
    starts, ends = (np.interp(share, total / total[-1], edges) for share in (upto - level, upto))
    best = int(np.argmin(ends - starts))
    return float(starts[best]), float(ends[best])


def labelled_of(correct: Sequence[float], confidence: Sequence[float], labelled: Sequence[bool]) -> LabelledItems:
    """Items of which some are labelled, split into the two kinds; `correct` is read only where `labelled`."""
    here = np.asarray(labelled, dtype=bool)
    sure = np.asarray(confidence, dtype=np.float64)
    return LabelledItems(np.asarray(correct, dtype=np.float64)[here], sure[here], sure[~here])


__all__ = [
    "TAIL_DEGREES",
    "Difference",
    "LabelPosterior",
    "LabelledItems",
    "Prior",
    "difference_estimate",
    "item_noise",
    "label_posterior",
    "labelled_of",
    "shared_luck_factor",
    "shrunk_direct",
]
