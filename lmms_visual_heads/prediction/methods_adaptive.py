"""Labels that correct what the answers say: how far they are trusted is learnt on the reference lineages, and checked on the spot.

From the labelled items alone come a score's share y and, by regression on the answers' own statistics on the same items, an
expectation m. The luck of the draw is in both, so it cancels in y - m; what is left are the model's own miscalibration e, which
its benchmarks share in part, and the labels' own noise v. Their sizes are learnt on reference lineages that the regression did
not see. The size of e is a mixture: some models and some benchmarks are far off, and the labels of all benchmarks together tell
which. So a shift makes the method fall back to direct scoring by itself.
Shapes: T checkpoints, B benchmarks, K sizes of a model, G levels that its benchmarks share, L sizes of a benchmark.
Units: shares 0..1 inside, points outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.prediction.intervals import upper_quantile
from lmms_visual_heads.prediction.item_response import ability_posterior
from lmms_visual_heads.prediction.methods import (
    LEVEL,
    Array,
    Budget,
    Forecast,
    Indices,
    Test,
    Training,
    to_logit,
)
from lmms_visual_heads.prediction.methods_labelled import PASSES, curves, drawn
from lmms_visual_heads.prediction.pooled_forest import PooledForest
from lmms_visual_heads.prediction.standardising import lineage_weights
from lmms_visual_heads.prediction.zoo_data import ZooData

MODEL_SIZES = np.array([0.1, 0.3, 1.0, 4.0, 16.0, 64.0])
"""Sizes of a model's miscalibration beside the reference's mean size (variances)."""

CELL_SIZES = np.array([0.1, 1.0, 10.0, 100.0])
"""Sizes of one benchmark's beside its model's."""

LEAST_MASS = 0.03
"""What every size of a model keeps of the prior, however rare it was among the reference lineages: nobody has seen every shift."""

_LEVELS = np.linspace(-3.0, 3.0, 21)
_LEAST_CELL_MASS = 0.01
_LEAST_SPREAD = 0.02
_EM_STEPS = 6


class Balance(NamedTuple):
    """Variances in units of m (1 - m).

    Attributes
    ----------
    own, shared, noise, rest : float
        A benchmark's own miscalibration, the part that benchmarks share, the labels' noise, and what labels cannot mend.
    models, cells : array [K], [L]
        Prior of the sizes.
    quantile : float
        Factor on standard deviations that makes intervals cover on reference lineages.
    """

    own: float
    shared: float
    noise: float
    rest: float
    models: Array
    cells: Array
    quantile: float = 1.645


class Posterior(NamedTuple):
    """What is believed of the miscalibration: mean and variance [T, B], and the sizes' shares [T, K] and [T, B, L]."""

    mean: Array
    variance: Array
    models: Array
    cells: Array


@dataclass(frozen=True)
class LabelsCorrectAnswers:
    """All F passes labelled; see the module.

    Attributes
    ----------
    name : str
    extra : tuple of str
        Further declared features for the expectation, such as "own_heads".
    items : bool
        Take out how easy the drawn items are, by the item response model of the reference lineages.
    """

    name: str
    extra: tuple[str, ...] = ()
    items: bool = True
    uses_items: bool = True

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return PASSES if "clean" in data.items else ()

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if test.condition not in data.items or not training.sees_all:
            return None

        def make() -> tuple[PooledForest, Balance]:
            x = self._rows(data, "clean", budget, training.models)
            points = data.points["clean"][training.models]
            model = PooledForest().fit(x, points, training.groups)
            expected = np.clip(points - model.residuals_, 0.0, 100.0) / 100.0
            share = self._shares(training, "clean", budget, training.models)
            return model, learn_balance(points / 100.0, expected, share, training.groups, training.final)

        model, balance = training.remember((self.name, budget.passes, budget.draw), make)
        expected = model.predict(self._rows(data, test.condition, budget, test.models))[0] / 100.0
        share = self._shares(training, test.condition, budget, test.models)
        mean, std = corrected(expected, share, balance)
        half = balance.quantile * std
        limits = [100.0 * np.clip(values[:, test.targets], 0.0, 1.0) for values in (mean, mean - half, mean + half)]
        return Forecast(limits[0], limits[1], limits[2], budget.passes)

    def _rows(self, data: ZooData, condition: str, budget: Budget, models: Indices) -> Array:
        means = data.drawn(condition, budget.items, budget.draw, int(budget.passes))[models]
        x = np.stack([to_logit(100.0 * means[:, :, 1], 2000.0), means[:, :, 2]], axis=2)
        if self.extra:
            x = np.concatenate([x, data.evidence(256, condition).stack(self.extra)[0][models]], axis=2)
        return x

    def _shares(self, training: Training, condition: str, budget: Budget, models: Indices) -> Array:
        """Shares of right answers on the drawn items, [T, B], brought to the whole benchmark's difficulty where `items`."""
        data = training.data
        share = data.drawn(condition, budget.items, budget.draw, int(budget.passes))[models][:, :, 0]
        if not self.items or condition == "corrupted":
            return share
        out = share.copy()
        for target in range(share.shape[1]):
            probabilities = curves(training, target)
            chosen = budget.items[target][: int(budget.passes)]
            post = ability_posterior(probabilities[:, chosen], drawn(data, condition, 0, target, budget, models))
            out[:, target] += post @ (probabilities.mean(axis=1) - probabilities[:, chosen].mean(axis=1))
        return out


def learn_balance(
    score: Array, expected: Array, share: Array, groups: npt.NDArray[np.str_], final: npt.NDArray[np.bool_]
) -> Balance:
    """Sizes of miscalibration and noise from reference lineages.

    Parameters
    ----------
    score, expected, share : array [n, B]
        Actual score, expectation by a regression that did not see the lineage, labels' share; 0..1, NaN where missing.
    groups : array [n]
    final : bool array [n]
        Checkpoints on which the intervals are calibrated.
    """
    root = np.sqrt(np.maximum(expected * (1 - expected), _LEAST_SPREAD))
    a, t = (score - expected) / root, (share - expected) / root
    there = np.isfinite(a) & np.isfinite(t)
    weights = np.where(there, lineage_weights(groups)[:, None], 0.0)
    a, t = np.where(there, a, 0.0), np.where(there, t, 0.0)

    def average(values: Array) -> float:
        return float((weights * values).sum() / max(weights.sum(), 1e-300))

    own = max(average(a * t), 1e-5)
    noise = max(average(t * t) - own, 1e-4)
    rest = max(average(a * a) - own, 1e-6)
    pairs = (a.sum(axis=1) ** 2 - (a**2).sum(axis=1)) / np.maximum(there.sum(axis=1) * (there.sum(axis=1) - 1), 1)
    of_lineage = lineage_weights(groups)
    shared = float(np.clip(np.average(pairs, weights=of_lineage), 0.02 * own, 0.9 * own))
    k, cells = len(MODEL_SIZES), len(CELL_SIZES)
    balance = Balance(own - shared, shared, noise, rest, np.full(k, 1 / k), np.full(cells, 1 / cells))
    known = np.where(there, t, np.nan)
    for _ in range(_EM_STEPS):
        belief = posterior(known, balance)
        models = np.average(belief.models, axis=0, weights=of_lineage)
        within = (weights[:, :, None] * belief.cells).sum(axis=(0, 1)) / max(weights.sum(), 1e-300)
        balance = balance._replace(models=_at_least(models, LEAST_MASS), cells=_at_least(within, _LEAST_CELL_MASS))
    mean, std = corrected(expected, share, balance)
    off = np.abs(score - mean) / std
    keep = there & final[:, None] if final.sum() >= 3 else there
    w = np.where(keep, weights, 0.0)
    n_lineages = len(np.unique(groups))
    mass = w[keep] / w[keep].sum() * n_lineages / (n_lineages + 1)
    return balance._replace(quantile=upper_quantile(off[keep], mass, LEVEL))


def corrected(expected: Array, share: Array, balance: Balance) -> tuple[Array, Array]:
    """Posterior mean and standard deviation of the scores, each [T, B], 0..1."""
    root = np.sqrt(np.maximum(expected * (1 - expected), _LEAST_SPREAD))
    belief = posterior((share - expected) / root, balance)
    return expected + root * belief.mean, root * np.sqrt(belief.variance + balance.rest)


def posterior(t: Array, balance: Balance) -> Posterior:
    """What the labels' standardised distances t = (y - m) / sqrt(m (1 - m)), [T, B], say; NaN where there is no label."""
    there = np.isfinite(t)[:, None, None, None, :]
    seen = np.where(np.isfinite(t), t, 0.0)[:, None, None, None, :]
    size = MODEL_SIZES[:, None, None, None]
    level = np.sqrt(size * balance.shared) * _LEVELS[:, None, None]
    own = size * CELL_SIZES[:, None] * balance.own
    total = own + balance.noise
    # [T, K, G, L, B]
    logs = np.where(there, -0.5 * ((seen - level) ** 2 / total + np.log(total)), 0.0) + np.log(balance.cells)[:, None]
    top = logs.max(axis=3, keepdims=True)
    share = np.exp(logs - top)
    mass = share.sum(axis=3, keepdims=True)
    share /= mass
    of_level = (np.log(mass) + top).sum(axis=(3, 4)) - 0.5 * _LEVELS**2
    joint = of_level + np.log(balance.models)[:, None]
    joint = np.exp(joint - joint.max(axis=(1, 2), keepdims=True))
    joint /= joint.sum(axis=(1, 2), keepdims=True)
    gain = np.where(there, own / total, 0.0)
    mean = level + gain * (seen - level)
    spread = own * (1.0 - gain)
    weight = joint[:, :, :, None, None] * share
    first = (weight * mean).sum(axis=(1, 2, 3))
    second = (weight * (mean**2 + spread)).sum(axis=(1, 2, 3))
    cells = np.moveaxis(weight.sum(axis=(1, 2)), 1, 2)
    return Posterior(first, np.maximum(second - first**2, 0.0), joint.sum(axis=2), cells)


def _at_least(mass: Array, least: float) -> Array:
    held = np.maximum(mass, least)
    return np.asarray(held / held.sum())
