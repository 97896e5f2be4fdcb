"""Intervals from leave-one-lineage-out errors.

The lineage is the unit: checkpoints of one training are not independent.

With at least `CERTIFIED_LINEAGES` lineages: jackknife+ (Barber et al. 2021, arXiv 1905.02928) with the weights of
hierarchical conformal prediction (Lee, Barber, Willett 2023, arXiv 2306.06342). With fewer, the wider of that and a
Student t interval over lineages, and nobody can certify 90 %. Units: points, 0..100.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lmms_visual_heads.prediction.lineages import lineage_weights

Array = npt.NDArray[np.float64]

CERTIFIED_LINEAGES = 15
"""Below this number of lineages a coverage of 90 % cannot be certified."""

LOW, HIGH = 0.0, 100.0

_USUAL = 0.9


@dataclass(frozen=True)
class LeftOutErrors:
    """What is known about the errors on lineages that were left out.

    Attributes
    ----------
    residuals : array [n]
        Actual minus predicted, own lineage left out.
    lineages : array [n]
        Lineage of every residual.
    """

    residuals: Array
    lineages: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        if self.residuals.shape != self.lineages.shape or not np.isfinite(self.residuals).all():
            raise ValueError("every finite residual needs its lineage")

    @property
    def n_lineages(self) -> int:
        """Number of lineages."""
        return len(np.unique(self.lineages))

    def interval(self, center: float, left_out_centers: Array, level: float, widen: float = 1.0) -> tuple[float, float]:
        """Interval of a new model from a new lineage.

        Parameters
        ----------
        center : float
            The prediction.
        left_out_centers : array [n]
            For every residual, the prediction for the new model by the estimator that did not see that residual's lineage.
        level : float
            Wanted coverage, 0..1.
        widen : float
            Factor on both half-widths, at least 1.

        Returns
        -------
        low, high : float
            Around `center`, clipped to 0..100; all of 0..100 when fewer than two lineages are known.
        """
        n_lineages = self.n_lineages
        if n_lineages < 2:
            return LOW, HIGH
        mass = lineage_weights(self.lineages) / (n_lineages + 1)
        size = np.abs(self.residuals)
        high = upper_quantile(left_out_centers + size, mass, level)
        low = -upper_quantile(-(left_out_centers - size), mass, level)
        if n_lineages < CERTIFIED_LINEAGES:
            spread = np.sqrt(np.average(self.residuals**2, weights=lineage_weights(self.lineages)))
            half = stats.t.ppf((1 + level) / 2, n_lineages - 1) * spread * np.sqrt(1 + 1 / n_lineages)
            low, high = min(low, center - half), max(high, center + half)
        low, high = min(low, center), max(high, center)
        return (
            float(np.clip(center - widen * (center - low), LOW, HIGH)),
            float(np.clip(center + widen * (high - center), LOW, HIGH)),
        )


def upper_quantile(values: Array, mass: Array, level: float) -> float:
    """Smallest value below which `level` of the mass lies; the largest value where the rest of the mass is at infinity."""
    order = np.argsort(values, kind="stable")
    reached = np.flatnonzero(np.cumsum(mass[order]) >= level - 1e-12)
    return float(values[order[reached[0]]] if len(reached) else values[order[-1]])


def pooled_factor(sizes: Array, groups: npt.NDArray[np.str_], level: float) -> float:
    """What expected errors are multiplied by so that `level` of the left-out ones lie inside.

    From 15 lineages on their errors are pooled as they are (arXiv 1809.07441, "pooling CDFs"), every lineage with the same weight;
    with fewer, one lineage more that nobody has seen counts as infinitely far off (arXiv 2306.06342), and Student's t widens.

    Parameters
    ----------
    sizes : array [n, ...]
        Left-out errors in units of the size expected there; NaN where there is none.
    groups : array [n]
        Lineages of the rows.
    level : float
        Wanted coverage, 0..1.
    """
    values, mass = known_values(sizes, groups)
    n = len(np.unique(groups))
    if n >= CERTIFIED_LINEAGES:
        return upper_quantile(values, mass, level)
    student = float(stats.t.ppf((1 + level) / 2, max(n - 1, 1)) / stats.norm.ppf((1 + level) / 2))
    return student * upper_quantile(values, mass * n / (n + 1), level)


def usual_gap(gaps: Array, groups: npt.NDArray[np.str_]) -> float:
    """How far two views are apart on nine of ten left-out rows [n, ...], every lineage with the same weight; never 0."""
    return max(upper_quantile(*known_values(gaps, groups), _USUAL), 1e-3)


def known_values(values: Array, groups: npt.NDArray[np.str_]) -> tuple[Array, Array]:
    """The values [n, ...] that are there, and their mass: rows of one lineage share it, and it sums to 1."""
    there = np.isfinite(values)
    each = lineage_weights(groups).reshape(-1, *[1] * (values.ndim - 1))
    weights = np.where(there, each, 0.0)
    return values[there], weights[there] / weights.sum()


def sampling_interval(score: float, n_items: int | None, level: float) -> tuple[float, float]:
    """Wilson interval of a measured score in points, for items that are right or wrong; no width where n is unknown."""
    if not n_items:
        return score, score
    share, z = score / HIGH, float(stats.norm.ppf((1 + level) / 2))
    center = (share + z**2 / (2 * n_items)) / (1 + z**2 / n_items)
    half = z / (1 + z**2 / n_items) * np.sqrt(share * (1 - share) / n_items + z**2 / (4 * n_items**2))
    return min(score, HIGH * float(center - half)), max(score, HIGH * float(center + half))
