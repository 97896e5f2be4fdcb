"""Declared features in a pooled forest, as a method of the study: predictions with intervals that follow the expected error.

Shapes: T test checkpoints, B benchmarks, D targets. Units: points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lab.study.dataset import ZooData
from lab.study.methods.base import LEVEL, Array, Budget, Features, Forecast, Test, Training
from lmms_visual_heads.prediction.conformal import pooled_factor, usual_gap
from lmms_visual_heads.prediction.regressors.pooled_forest import PooledForest, blended


@dataclass(frozen=True)
class Forest:
    """Regression on declared features by `PooledForest`.

    Attributes
    ----------
    name : str
    wanted : tuple of str
        As for `Features`.
    counts : tuple of int
        Numbers of prompts at which answer statistics are judged.
    agreement : bool
        Whether agreement with the references' answers on the same prompts is a feature, too; it costs no further pass.
    """

    name: str
    wanted: tuple[str, ...]
    counts: tuple[int, ...] = (256,)
    agreement: bool = False
    uses_items: bool = False

    @property
    def _features(self) -> Features:
        return Features(self.name, self.wanted, self.counts)

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        if self.agreement and not data.replies:
            return ()
        return tuple(self._cost(data, count) for count in self.counts)

    def _cost(self, data: ZooData, count: int) -> float:
        """Forward passes per benchmark; agreement is about the prompts whose answers are at hand anyway."""
        alone = self.agreement and not any(entry.startswith("own_") for entry in self.wanted)
        return self._features.cost(data, count) + (count if alone else 0)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        view = self.view(training, test, budget)
        return None if view is None else _forecast(view.mean, view.factor * view.spread, budget)

    def view(self, training: Training, test: Test, budget: Budget) -> View | None:
        """Prediction and expected error at the targets; None where nothing was measured."""
        data = training.data
        count = next((c for c in self.counts if abs(self._cost(data, c) - budget.passes) < 1e-6), self.counts[-1])
        if self.agreement and test.condition not in data.replies:
            return None
        x = self._rows(training, test.condition, count)[test.models]
        if not np.isfinite(x).any():
            return None
        blocks = training.blocks(test)

        def make() -> tuple[PooledForest, float]:
            known = np.where(training.scored, data.points["clean"][training.models], np.nan)
            forest = PooledForest(per_benchmark=training.sees_all)
            unseen = None  # only agreement depends on whether a benchmark has scores
            if self.agreement and not training.sees_all:
                unseen = self._rows(training, "clean", count, True)[training.models]
            forest.fit(self._rows(training, "clean", count)[training.models], known, blocks, unseen)
            return forest, factor(forest, training)

        key = ("forest", self.wanted, self.agreement, count if self._counts_prompts else 0)
        forest, wide = training.remember(key, make)
        mean, spread = (values[:, test.targets] for values in forest.predict(x))
        return View(mean, spread, wide, forest)

    @property
    def _counts_prompts(self) -> bool:
        return self.agreement or any(entry.startswith("own_answers") for entry in self.wanted)

    def _rows(self, training: Training, condition: str, count: int, as_if_new: bool = False) -> Array:
        x = self._features.rows(training.data, condition, count)
        if not self.agreement:
            return x
        agreed = training.agreement(condition, [slice(count)] * len(training.data.benchmarks), count, as_if_new)
        return np.concatenate([x, agreed[:, :, None]], axis=2)


@dataclass(frozen=True)
class TwoViews:
    """A forest on answers and agreement, checked by one on agreement alone.

    Why: a temperature nobody told of moves every confidence and no answer. Where the two views differ by more than they usually do
    on references that neither has seen, confidence is trusted less by the square of the excess, and the interval widens by it.

    Attributes
    ----------
    name : str
    wanted : tuple of str
        Features of the first view beside agreement; see `Features`.
    counts : tuple of int
        Numbers of prompts at which it is judged.
    """

    name: str
    wanted: tuple[str, ...]
    counts: tuple[int, ...] = (256,)
    uses_items: bool = False

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return self._first.budgets(data)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        first, second = self._first.view(training, test, budget), self._second.view(training, test, budget)
        if first is None or second is None:
            return None
        mean, spread, _ = blended(first.mean, second.mean, first.spread, _gap(first.forest, second.forest, training))
        return _forecast(mean, first.factor * spread, budget)

    @property
    def _first(self) -> Forest:
        return Forest(self.name, self.wanted, self.counts, agreement=True)

    @property
    def _second(self) -> Forest:
        return Forest(self.name, (), self.counts, agreement=True)


class View(NamedTuple):
    """A forest's prediction and expected error [T, D], the factor that makes intervals of them, and the forest."""

    mean: Array
    spread: Array
    factor: float
    forest: PooledForest


def _forecast(mean: Array, half: Array, budget: Budget) -> Forecast:
    low, high = np.clip(mean - half, 0.0, 100.0), np.clip(mean + half, 0.0, 100.0)
    return Forecast(mean, low, high, budget.passes)


def _gap(first: PooledForest, second: PooledForest, training: Training) -> float:
    """How far two forests' left-out predictions usually are apart, in units of the first one's expected error."""
    judged = _judged(training)
    gap = (np.abs(first.residuals_ - second.residuals_) / first.spread_)[judged]
    return usual_gap(gap, training.groups[judged])


def _judged(training: Training) -> npt.NDArray[np.bool_]:
    """Final checkpoints of trainings that were not broken on purpose: what intervals speak about. All, where they are few."""
    judged = training.final & (training.data.strata[training.models] != "broken")
    return judged if judged.sum() >= 3 else np.ones_like(judged)


def factor(forest: PooledForest, training: Training) -> float:
    """`pooled_factor` over final checkpoints.

    Trainings that were broken on purpose are fitted on and not calibrated with: no interval speaks about them.
    """
    judged = _judged(training)
    return pooled_factor(np.abs(forest.residuals_[judged]) / forest.spread_[judged], training.groups[judged], LEVEL)
