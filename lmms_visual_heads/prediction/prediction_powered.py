"""Prediction-powered inference: a score from n labels and N prompts without, with a valid interval and no reference models.

Angelopoulos et al. 2023 (arXiv 2301.09633) with the power tuning of PPI++ (arXiv 2311.01453): the confidences of all prompts
stand in for labels, and the labelled ones say how far to believe them. Units: points; correctness and confidence 0..1.
The labelled items must be a random sample of the prompts. No library: what there is pulls a compiler and a downloader in, and is
no longer kept up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lmms_visual_heads.errors import VisualHeadsError

Array = npt.NDArray[np.float64]

FEWEST_LABELS = 30
"""Below this many labels no normal approximation is used: the interval is the exact one of the labels alone."""

EXACT = "is exact: it holds at least the level for every number of labels; the confidences move the estimate only"
APPROXIMATE = "holds the level as labels grow: Wilson's interval with the Student t quantile, checked by simulation from 30 labels"
_LEAST_RATIO = 0.05


@dataclass(frozen=True, slots=True)
class PredictionPowered:
    """A mean from labels and confidences, in points.

    Attributes
    ----------
    mean, low, high : float
    power : float
        Weight of the confidences, 0 (direct scoring) to 1 (taken as they are) and beyond.
    effective_labels : float
        Labels that would say as much by themselves.
    direct : float
        Mean of the labels alone.
    guarantee : str
        What the interval promises.
    """

    mean: float
    low: float
    high: float
    power: float
    effective_labels: float
    direct: float
    guarantee: str


def prediction_powered_mean(
    correct: npt.ArrayLike,
    confidence: npt.ArrayLike,
    unlabelled: npt.ArrayLike,
    level: float = 0.9,
    power: float | None = None,
) -> PredictionPowered:
    """The benchmark's score from n labelled and N unlabelled prompts.

    Estimate mean_n(y) + w (mean_N(c) - mean_n(c)); w is Cov(y, c) / ((1 + n / N) Var(c)) (PPI++, proposition 2), or `power`. With
    n >= 30: Wilson's interval with as many items as the estimate is worth and a Student t quantile, which does not collapse
    near 0 and 100 as the published normal interval does. With fewer: the exact Clopper-Pearson interval of the labels alone; the
    estimate is then pulled halfway to their mean and never leaves the interval. Partial credit is turned into right-or-wrong
    draws of the same mean there, with a fixed seed, which keeps the interval exact.

    Parameters
    ----------
    correct : array [n]
        0..1.
    confidence : array [n]
    unlabelled : array [N]
        Any numbers, one scale for both; finite.
    level : float
    power : float or None

    Raises
    ------
    VisualHeadsError
        Fewer than two labels, labels outside 0..1, missing or infinite confidences, no unlabelled prompt.
    """
    y, c, rest = (np.asarray(values, dtype=np.float64) for values in (correct, confidence, unlabelled))
    _check(y, c, rest, level)
    n, n_rest = len(y), len(rest)
    direct = float(y.mean())
    spread = float(np.var(np.concatenate([c, rest]), ddof=1))
    together = float(np.cov(y, c)[0, 1])
    tuned = 0.0 if spread <= 1e-12 else together / ((1 + n / n_rest) * spread)
    weight = tuned if power is None else float(power)
    if n < FEWEST_LABELS:
        low, high = _exact(y, level)
        # With so few labels the tuned weight is itself a guess: half of it.
        used = 0.5 * weight if power is None else weight
        mean = float(np.clip(direct + used * float(rest.mean() - c.mean()), low, high))
        return PredictionPowered(100 * mean, 100 * low, 100 * high, used, float(n), 100 * direct, EXACT)
    estimate = direct + weight * float(rest.mean() - c.mean())
    of_labels = float(np.var(y, ddof=1))
    # The weight was tuned on the same labels: two parameters more than the plain mean has.
    variance = float(np.var(y - weight * c, ddof=1)) * (n - 1) / max(n - 2, 1) / n + weight**2 * spread / n_rest
    ratio = variance * n / of_labels if of_labels > 0 else 1.0
    effective = n / max(ratio, _LEAST_RATIO)
    mean = float(np.clip(estimate, 0.0, 1.0))
    low, high = _wilson(mean, effective, float(stats.t.ppf((1 + level) / 2, n - 1)))
    return PredictionPowered(100 * mean, 100 * low, 100 * high, weight, effective, 100 * direct, APPROXIMATE)


def _check(y: Array, c: Array, rest: Array, level: float) -> None:
    if not 0 < level < 1:
        raise VisualHeadsError(f"level must lie between 0 and 1; {level!r} came. 0.9 means nine of ten.")
    if len(y) < 2:
        raise VisualHeadsError(f"At least two labelled items are required; {len(y)} came. Score more items.")
    if y.shape != c.shape:
        raise VisualHeadsError(
            f"Every label needs its confidence; {len(y)} labels came with {len(c)} confidences. Join them by doc_id."
        )
    if not ((y >= 0) & (y <= 1)).all():
        raise VisualHeadsError("Labels must lie in 0..1; another value came. Leave items without a label out.")
    if not np.isfinite(c).all() or not np.isfinite(rest).all():
        raise VisualHeadsError(
            "Confidences must be finite; a missing or infinite one came. Leave those prompts out on both sides."
        )
    if len(rest) < 1:
        raise VisualHeadsError(
            "Prediction-powered inference needs prompts without a label; none came. With every item labelled, the score is known."
        )


def _exact(y: Array, level: float) -> tuple[float, float]:
    """Clopper-Pearson interval, 0..1."""
    drawn = y if np.isin(y, (0.0, 1.0)).all() else (np.random.default_rng(0).random(len(y)) < y).astype(np.float64)
    n, k, tail = len(y), float(drawn.sum()), (1 - level) / 2
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return min(p, float(center - half)), max(p, float(center + half))


__all__ = ["APPROXIMATE", "EXACT", "FEWEST_LABELS", "PredictionPowered", "prediction_powered_mean"]
