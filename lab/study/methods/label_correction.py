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

from lab.study.dataset import ZooData
from lab.study.item_response import ability_posterior
from lab.study.methods.base import (
    LEVEL,
    Array,
    Budget,
    Forecast,
    Indices,
    Test,
    Training,
    to_logit,
)
from lab.study.methods.labelled import PASSES, curves, drawn
from lmms_visual_heads.prediction.conformal import upper_quantile
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.regressors.pooled_forest import PooledForest

MODEL_SIZES = np.array([0.1, 0.3, 1.0, 4.0, 16.0, 64.0])
"""Sizes of a model's miscalibration beside the reference's mean size (variances)."""

CELL_SIZES = np.array([0.1, 1.0, 10.0, 100.0])
"""Sizes of one benchmark's beside its model's."""

LEAST_MASS = 0.03
"""What every size of a model keeps of the prior, however rare it was among the reference lineages: nobody has seen every shift."""

_LEVELS = np.linspace(-3.0, 3.0, 21)
_LEAST_CELL_MASS = 0.01
_EM_STEPS = 6


class Balance(NamedTuple):
    """How labels and expectation weigh against each other.

    Attributes
    ----------
    own, shared : float
        Variance of a benchmark's own miscalibration, and of the part that benchmarks share, in units of the squared error that
        the regression expects of itself there.
    noise, rest : float
        The labels' noise, and what labels cannot mend, in units of p (1 - p).
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
    agreement : bool
        Whether agreement with the references' answers on the drawn items enters, too.
    items : bool
        Take out how easy the drawn items are, by the item response model of the reference lineages.
    """

    name: str
    extra: tuple[str, ...] = ()
    agreement: bool = False
    items: bool = True
    uses_items: bool = True

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return PASSES if "clean" in data.items else ()

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if test.condition not in data.items or not training.sees_all:
            return None

        def make() -> tuple[PooledForest, Balance]:
            x = self._rows(training, "clean", budget, training.models)
            points = data.points["clean"][training.models]
            model = PooledForest().fit(x, points, training.groups)
            cells = Cells(
                np.clip((points - model.residuals_) / 100.0, 0.0, 1.0),
                model.spread_ / 100.0,
                self._shares(training, "clean", budget, training.models),
                budget.passes,
            )
            return model, learn_balance(points / 100.0, cells, training.groups, training.final)

        model, balance = training.remember((self.name, budget.passes, budget.draw), make)
        expected, far = model.predict(self._rows(training, test.condition, budget, test.models))
        share = self._shares(training, test.condition, budget, test.models)
        mean, std = corrected(Cells(expected / 100.0, far / 100.0, share, budget.passes), balance)
        half = balance.quantile * std
        limits = [100.0 * np.clip(values[:, test.targets], 0.0, 1.0) for values in (mean, mean - half, mean + half)]
        return Forecast(limits[0], limits[1], limits[2], budget.passes)

    def _rows(self, training: Training, condition: str, budget: Budget, models: Indices) -> Array:
        """What the drawn items say unlabelled, and the labels of the same generator's other benchmarks."""
        data = training.data
        means = data.drawn(condition, budget.items, budget.draw, int(budget.passes))[models]
        said = [to_logit(100.0 * means[:, :, 1], 2000.0), *(means[:, :, column] for column in (2, 3, 4))]
        x = np.stack([*said, _of_relatives(means[:, :, 0], data.generators)], axis=2)
        if self.agreement:
            agreed = training.agreement_on_drawn(condition, budget)[models]
            x = np.concatenate([x, agreed[:, :, None]], axis=2)
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


def _of_relatives(share: Array, generators: npt.NDArray[np.str_]) -> Array:
    """Mean share of right answers on the other benchmarks of the same generator, [T, B]; missing where there is none."""
    others = (generators[:, None] == generators) & ~np.eye(len(generators), dtype=bool)
    there = np.isfinite(share)
    count = there.astype(float) @ others
    total = np.where(there, share, 0.0) @ others
    return np.divide(total, count, out=np.full(share.shape, np.nan), where=count > 0)


class Cells(NamedTuple):
    """Expectation, its standard deviation, and share of right answers on the drawn items, each [T, B], 0..1; items per cell."""

    expected: Array
    far: Array
    share: Array
    n: float

    @property
    def unit(self) -> Array:
        """p (1 - p) of the score, from labels and a little of the expectation; never 0, because nobody is that sure."""
        p = (self.n * self.share + 2.0 * self.expected) / (self.n + 2.0)
        return np.asarray(np.maximum(p * (1.0 - p), 0.25 / (self.n + 2.0)))


def learn_balance(score: Array, cells: Cells, groups: npt.NDArray[np.str_], final: npt.NDArray[np.bool_]) -> Balance:
    """Sizes of miscalibration and noise from reference lineages.

    Parameters
    ----------
    score : array [n, B]
        Actual scores, 0..1, NaN where missing.
    cells : Cells
        With expectations by a regression that did not see the lineage.
    groups : array [n]
    final : bool array [n]
        Checkpoints on which the intervals are calibrated.

    Notes
    -----
    With e the miscalibration, u the luck that both share and v the labels' own noise, score = m - e - u up to sign: the products
    of the three differences have means var(e), var(v) and var(u).
    """
    off, seen, luck = score - cells.expected, cells.share - cells.expected, cells.share - score
    there = np.isfinite(off) & np.isfinite(seen)
    weights = np.where(there, lineage_weights(groups)[:, None], 0.0)

    def average(values: Array) -> float:
        return float((weights * np.where(there, values, 0.0)).sum() / max(weights.sum(), 1e-300))

    own = max(average(off * seen / cells.far**2), 0.02)
    noise = max(average(seen * luck) / average(cells.unit), 0.1 / cells.n)
    rest = max(average(-off * luck) / average(cells.unit), 1e-5)
    scaled = np.where(there, off / cells.far, 0.0)
    pairs = (scaled.sum(axis=1) ** 2 - (scaled**2).sum(axis=1)) / np.maximum(
        there.sum(axis=1) * (there.sum(axis=1) - 1), 1
    )
    of_lineage = lineage_weights(groups)
    shared = float(np.clip(np.average(pairs, weights=of_lineage), 0.02 * own, 0.9 * own))
    k, c = len(MODEL_SIZES), len(CELL_SIZES)
    balance = Balance(own - shared, shared, noise, rest, np.full(k, 1 / k), np.full(c, 1 / c))
    known = cells._replace(share=np.where(there, cells.share, np.nan))
    for _ in range(_EM_STEPS):
        belief = posterior(known, balance)
        models = np.average(belief.models, axis=0, weights=of_lineage)
        within = (weights[:, :, None] * belief.cells).sum(axis=(0, 1)) / max(weights.sum(), 1e-300)
        balance = balance._replace(models=_at_least(models, LEAST_MASS), cells=_at_least(within, _LEAST_CELL_MASS))
    mean, std = corrected(cells, balance)
    sizes = np.abs(score - mean) / std
    judged = final if final.sum() >= 3 else np.ones_like(final)
    keep = there & judged[:, None]
    w = np.where(keep, weights, 0.0)
    n_lineages = len(np.unique(groups))
    mass = w[keep] / w[keep].sum() * n_lineages / (n_lineages + 1)
    return balance._replace(quantile=upper_quantile(sizes[keep], mass, LEVEL))


def corrected(cells: Cells, balance: Balance) -> tuple[Array, Array]:
    """Posterior mean and standard deviation of the scores, each [T, B], 0..1."""
    belief = posterior(cells, balance)
    mean = cells.expected + cells.far * belief.mean
    return mean, np.sqrt(cells.far**2 * belief.variance + balance.rest * cells.unit + 1e-6)


def posterior(cells: Cells, balance: Balance) -> Posterior:
    """What the labels say about the miscalibration, in units of `cells.far`; a share may be missing."""
    t = (cells.share - cells.expected) / cells.far
    noise = (balance.noise * np.where(np.isfinite(t), cells.unit, 1.0) / cells.far**2)[:, None, None, None, :]
    there = np.isfinite(t)[:, None, None, None, :]
    seen = np.where(np.isfinite(t), t, 0.0)[:, None, None, None, :]
    size = MODEL_SIZES[:, None, None, None]
    level = np.sqrt(size * balance.shared) * _LEVELS[:, None, None]
    own = size * CELL_SIZES[:, None] * balance.own
    total = own + noise
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
    sizes = np.moveaxis(weight.sum(axis=(1, 2)), 1, 2)
    return Posterior(first, np.maximum(second - first**2, 0.0), joint.sum(axis=2), sizes)


def _at_least(mass: Array, least: float) -> Array:
    held = np.maximum(mass, least)
    return np.asarray(held / held.sum())
