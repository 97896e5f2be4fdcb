"""Declared features in a pooled forest, as a method of the study: predictions with intervals that follow the expected error.

Shapes: T test checkpoints, B benchmarks, D targets. Units: points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lmms_visual_heads.prediction.intervals import CERTIFIED_LINEAGES, upper_quantile
from lmms_visual_heads.prediction.methods import LEVEL, Array, Budget, Features, Forecast, Test, Training
from lmms_visual_heads.prediction.pooled_forest import PooledForest
from lmms_visual_heads.prediction.standardising import lineage_weights
from lmms_visual_heads.prediction.zoo_data import ZooData


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
    """

    name: str
    wanted: tuple[str, ...]
    counts: tuple[int, ...] = (256,)
    uses_items: bool = False

    @property
    def _features(self) -> Features:
        return Features(self.name, self.wanted, self.counts)

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return self._features.budgets(data)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data, features = training.data, self._features
        count = next((c for c in self.counts if abs(features.cost(data, c) - budget.passes) < 1e-6), self.counts[-1])
        x = features.rows(data, test.condition, count)[test.models]
        if not np.isfinite(x).any():
            return None
        blocks = training.blocks(test)

        def make() -> tuple[PooledForest, float]:
            known = np.where(training.scored, data.points["clean"][training.models], np.nan)
            forest = PooledForest(per_benchmark=training.sees_all)
            forest.fit(features.rows(data, "clean", count)[training.models], known, blocks)
            return forest, factor(forest, training)

        key = ("forest", self.wanted, count if any(w.startswith("own_answers") for w in self.wanted) else 0)
        forest, wide = training.remember(key, make)
        mean, spread = (values[:, test.targets] for values in forest.predict(x))
        low, high = (np.clip(mean + sign * wide * spread, 0.0, 100.0) for sign in (-1, 1))
        return Forecast(mean, low, high, budget.passes)


def factor(forest: PooledForest, training: Training) -> float:
    """Factor on expected errors that makes intervals cover: conformal over lineages (arXiv 2306.06342), final checkpoints only.

    With fewer than 15 lineages Student's t widens it.
    """
    final = training.final if training.final.sum() >= 3 else np.ones_like(training.final)
    sizes: Array = np.abs(forest.residuals_[final]) / forest.spread_[final]
    there = np.isfinite(sizes)
    groups = training.groups[final]
    weights = np.where(there, lineage_weights(groups)[:, None], 0.0)
    n = len(np.unique(groups))
    found = upper_quantile(sizes[there], weights[there] / weights.sum() * n / (n + 1), LEVEL)
    if n < CERTIFIED_LINEAGES:
        found *= float(stats.t.ppf((1 + LEVEL) / 2, max(n - 1, 1)) / stats.norm.ppf((1 + LEVEL) / 2))
    return found
