"""One number per benchmark for every checkpoint: what is left to say of a model that nobody has looked at.

Why beside `Features("mean")`, which averages logits: a benchmark that some models master and others guess has a mean of logits near
neither, and errs far more than the mean or the median of the points themselves. Whatever is measured must beat these.
Units: points. Shapes: T test checkpoints, D targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lab.study.dataset import ZooData
from lab.study.methods.base import LEVEL, Array, Budget, Forecast, Test, Training
from lmms_visual_heads.prediction.conformal import HIGH, LOW, known_values, upper_quantile


@dataclass(frozen=True)
class Constant:
    """Mean or median of each benchmark's points over the known final checkpoints, every lineage counting the same.

    A benchmark without known scores gets that of all known scores together.

    Attributes
    ----------
    name : str
    median : bool
        The value that errs least in the mean absolute error; False: the mean.
    """

    name: str
    median: bool
    uses_items: bool = False

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return (0.0,)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        chosen = training.final if training.final.any() else np.ones_like(training.final)
        points = np.where(training.scored, training.data.points["clean"][training.models[chosen]], np.nan)
        known = np.asarray(np.isfinite(points).any(axis=0))
        if not known.any():
            return None
        groups = training.groups[chosen]
        n = len(np.unique(groups))
        found = np.array(
            [self._of(*known_values(points[:, b] if known[b] else points, groups), n) for b in test.targets]
        )
        shape = (len(test.models), len(test.targets))
        mean, half = (np.broadcast_to(found[:, column], shape) for column in (0, 1))
        return Forecast(mean, np.maximum(mean - half, LOW), np.minimum(mean + half, HIGH), budget.passes)

    def _of(self, values: Array, mass: Array, n: int) -> tuple[float, float]:
        """The constant of the scores of `n` lineages, and the half-width that covers: one lineage more is infinitely far off."""
        center = _median(values, mass) if self.median else float(np.average(values, weights=mass))
        return center, upper_quantile(np.abs(values - center), mass * n / (n + 1), LEVEL)


def _median(values: Array, mass: Array) -> float:
    """Middle of the mass: between the values where it may lie, in their middle."""
    return (upper_quantile(values, mass, 0.5) - upper_quantile(-values, mass, 0.5)) / 2


CONSTANTS = (Constant("mean of points", False), Constant("median of points", True))
