"""Further methods without labels: a Gaussian process per benchmark, and the step from one checkpoint of a training to the next.

Shapes: n training checkpoints, T test checkpoints, B benchmarks, D targets, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lab.study.dataset import ZooData
from lab.study.methods.base import (
    LEVEL,
    Array,
    Budget,
    Features,
    Forecast,
    Indices,
    Spread,
    Test,
    Training,
    around,
)
from lab.study.methods.pooled import PooledRidge
from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.regressors.gaussian_process import LineageProcess


@dataclass(frozen=True)
class Process:
    """A Gaussian process on declared features for every benchmark by itself: bent lines, and likeness to known checkpoints.

    Where other checkpoints of the test's lineage are known, likeness is what helps: settings are then chosen by leaving single
    checkpoints out.
    """

    name: str
    wanted: tuple[str, ...]
    uses_items: bool = False

    @property
    def _features(self) -> Features:
        return Features(self.name, self.wanted)

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return self._features.budgets(data)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if not training.sees_all:
            return None
        x = self._features.rows(data, "clean", 256)[training.models]
        new = self._features.rows(data, test.condition, 256)[test.models]
        if not np.isfinite(new).any():
            return None
        # Everybody knows which checkpoints are the end of their training: both kinds are brought to one level.
        x, y, shift_x, shift_y = _levelled(x, training.logits(), training)
        new = new - shift_x
        blocks = training.blocks(test)
        z, std = np.empty((2, len(test.models), len(test.targets)))
        for position, target in enumerate(test.targets):

            def make(target: int = int(target)) -> LineageProcess:
                there = np.isfinite(y[:, target])
                return LineageProcess(margin=0.02).fit(x[there, target], y[there, target], groups=blocks[there])

            fitted: LineageProcess = training.remember(("process", self.wanted, int(target)), make)
            z[:, position], std[:, position] = fitted.predict(new[:, target], return_std=True)
            z[:, position] += shift_y[target]
        n = training.n_lineages
        factor = (
            stats.norm.ppf((1 + LEVEL) / 2) if n >= CERTIFIED_LINEAGES else stats.t.ppf((1 + LEVEL) / 2, max(n - 1, 1))
        )
        return Forecast(*around(z, factor * std), budget.passes)


def _levelled(x: Array, y: Array, training: Training) -> tuple[Array, Array, Array, Array]:
    """Features and targets less their mean over lineages within their kind, final or not, and the means of the final ones."""
    out_x, out_y = x.copy(), y.copy()
    means: dict[bool, tuple[Array, Array]] = {}
    for kind in (True, False):
        rows = training.final == kind
        if not rows.any():
            continue
        weights = lineage_weights(training.groups[rows])
        means[kind] = (_weighted(x[rows], weights), _weighted(y[rows], weights))
        out_x[rows] -= means[kind][0]
        out_y[rows] -= means[kind][1]
    return out_x, out_y, *means.get(True, means.get(False, (np.zeros(x.shape[1:]), np.zeros(y.shape[1]))))


def _weighted(values: Array, weights: Array) -> Array:
    """Mean over rows with `weights`, of what is there; 0 where nothing is."""
    there = np.isfinite(values)
    w = np.where(there, weights.reshape(-1, *[1] * (values.ndim - 1)), 0.0)
    return np.asarray((w * np.where(there, values, 0.0)).sum(axis=0) / np.maximum(w.sum(axis=0), 1e-300))


@dataclass(frozen=True)
class NextCheckpoint:
    """From the last scored checkpoint of a training to the next one: the gain in score from the change in features.

    Needs an earlier checkpoint of the test's lineage among the known ones. Without features it is the last score plus the mean
    gain of the other trainings.
    """

    name: str
    wanted: tuple[str, ...] = ()
    uses_items: bool = False

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return (Features(self.name, self.wanted).budgets(data)[0],)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if not training.sees_all:
            return None
        pairs = _pairs(data, training.models, training.models)
        new = _pairs(data, training.models, test.models)
        if len(new) < len(test.models) or len(pairs) < 3:
            return None
        x = Features(self.name, self.wanted).rows(data, "clean", 256)
        y = np.full(data.points["clean"].shape, np.nan)
        y[training.models] = training.logits()
        shape = (len(data.models), len(data.benchmarks), 1)
        gap: Array = np.broadcast_to(np.log(data.steps).reshape(-1, 1, 1), shape)

        def change(rows: Indices) -> Array:
            later, earlier = rows[:, 1], rows[:, 0]
            return np.concatenate([x[later] - x[earlier], gap[later] - gap[earlier]], axis=2)

        def make() -> tuple[PooledRidge, Spread]:
            gain = y[pairs[:, 1]] - y[pairs[:, 0]]
            groups = data.lineages[pairs[:, 1]]
            model = PooledRidge().fit(change(pairs), gain, groups)
            last = data.final[pairs[:, 1]]
            last = last if last.sum() >= 3 else np.ones_like(last)
            return model, Spread.of(model.residuals_[last], groups[last])

        model, spread = training.remember(("next", self.wanted), make)
        z = (y[new[:, 0], :] + model.predict(change(new)))[:, test.targets]
        return Forecast(
            *around(z, np.broadcast_to(spread.quantile * spread.scale[test.targets], z.shape)), budget.passes
        )


def _pairs(data: ZooData, known: Indices, wanted: Indices) -> Indices:
    """(last known earlier checkpoint of the same lineage, checkpoint) for those of `wanted` that have one, [pairs, 2]."""
    rows = []
    for model in wanted:
        earlier = [
            other
            for other in known
            if data.lineages[other] == data.lineages[model] and data.steps[other] < data.steps[model]
        ]
        if earlier:
            rows.append((max(earlier, key=lambda other: data.steps[other]), model))
    return np.array(rows, dtype=np.intp).reshape(-1, 2)
