"""Methods that score some items: direct scoring, an item response model, labels beside answers in one regression.

All F passes go to labelled items, the same for every checkpoint. The items that were scored are part of the benchmark, so what is
known of them is not sampled again. Shapes: T test checkpoints, D targets, n drawn items, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from lab.study.dataset import ZooData
from lab.study.item_response import GRID, ItemResponse, ability_posterior
from lab.study.methods.base import (
    LEVEL,
    Array,
    Budget,
    Forecast,
    Indices,
    Spread,
    Test,
    Training,
    around,
    to_logit,
)
from lab.study.methods.pooled import PooledRidge
from lmms_visual_heads.prediction.lineages import lineage_weights

PASSES = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


def drawn(data: ZooData, condition: str, column: int, benchmark: int, budget: Budget, models: Indices) -> Array:
    """Correctness (0), confidence (1) or entropy (2) of the drawn items, [T, n]."""
    table = data.items[condition][benchmark][column]
    chosen = budget.items[benchmark]
    chosen = chosen[chosen < table.shape[1]][: int(budget.passes)]
    return np.asarray(table[np.ix_(models, chosen)], dtype=np.float64)


def n_items(data: ZooData, condition: str, benchmark: int) -> int:
    """Items of a benchmark under a condition."""
    return int(data.items[condition][benchmark][0].shape[1])


@dataclass(frozen=True)
class Direct:
    """Direct scoring of F items: raw, or drawn towards the benchmark's mean of the training lineages (beta-binomial)."""

    name: str = "direct scoring"
    shrunk: bool = False
    uses_items: bool = True

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return PASSES if "clean" in data.items else ()

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if test.condition not in data.items or (self.shrunk and not training.sees_all):
            return None
        out = np.empty((3, len(test.models), len(test.targets)))
        for position, target in enumerate(test.targets):
            population = n_items(data, test.condition, int(target))
            n = min(int(budget.passes), population)
            share = data.drawn(test.condition, budget.items, budget.draw, int(budget.passes))[test.models, target, 0]
            alpha, beta = (0.5, 0.5)
            if self.shrunk:
                alpha, beta = _beta_prior(training, int(target))
            hits = n * share
            a, b = hits + alpha, n - hits + beta
            mean = a / (a + b) if self.shrunk else share
            rest = max(1.0 - n / population, 0.0)
            low, high = special.betaincinv(a, b, (1 - LEVEL) / 2), special.betaincinv(a, b, (1 + LEVEL) / 2)
            # Of the population only the rest is unknown; its own sampling is in the root.
            narrow = np.sqrt(rest)
            total = (hits + rest * population * mean) / population if rest < 1 else mean
            out[:, :, position] = 100.0 * np.stack(
                [total, total - narrow * (mean - low), total + narrow * (high - mean)]
            )
        np.clip(out, 0.0, 100.0, out=out)
        return Forecast(out[0], np.minimum(out[1], out[0]), np.maximum(out[2], out[0]), budget.passes)


def _beta_prior(training: Training, benchmark: int) -> tuple[float, float]:
    """Beta distribution of the training lineages' scores by moments; final checkpoints, as the new one is."""
    data = training.data
    rows = training.models[data.final[training.models]]
    rows = rows if len(rows) >= 3 else training.models
    share = data.points["clean"][rows, benchmark] / 100.0
    there = np.isfinite(share)
    weights = lineage_weights(data.lineages[rows][there])
    mean = float(np.clip(np.average(share[there], weights=weights), 0.01, 0.99))
    variance = float(np.average((share[there] - mean) ** 2, weights=weights))
    size = np.clip(mean * (1 - mean) / max(variance, 1e-6) - 1.0, 0.5, 1e4)
    return mean * size, (1 - mean) * size


@dataclass(frozen=True)
class ItemResponseScoring:
    """Item response model: posterior of the ability from F labelled items, beginning with the training lineages' abilities."""

    name: str = "item response model"
    uses_items: bool = True

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return PASSES if "clean" in data.items else ()

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if not training.sees_all or test.condition == "corrupted" or "clean" not in data.items:
            return None
        out = np.empty((3, len(test.models), len(test.targets)))
        for position, target in enumerate(test.targets):
            probabilities = curves(training, int(target))
            mean, low, high = self._score(training, test, budget, int(target), probabilities)
            out[:, :, position] = 100.0 * np.stack([mean, low, high])
        return Forecast(out[0], out[1], out[2], budget.passes)

    def _score(
        self, training: Training, test: Test, budget: Budget, target: int, probabilities: Array
    ) -> tuple[Array, Array, Array]:
        data = training.data
        chosen = budget.items[target][: int(budget.passes)]
        y = drawn(data, test.condition, 0, target, budget, test.models)
        abilities = fitted_items(training, target).abilities
        weights = lineage_weights(training.groups)
        centre = float(np.average(abilities, weights=weights))
        spread = max(float(np.sqrt(np.average((abilities - centre) ** 2, weights=weights))), 0.1)
        post = ability_posterior(probabilities[:, chosen], y, stats.t.logpdf(GRID, 5, loc=centre, scale=spread))
        rest = np.setdiff1d(np.arange(probabilities.shape[1]), chosen)
        curve = (y.sum(axis=1)[:, None] + probabilities[:, rest].sum(axis=1)) / probabilities.shape[1]
        mean = (post * curve).sum(axis=1)
        own = (probabilities[:, rest] * (1 - probabilities[:, rest])).sum(axis=1) / probabilities.shape[1] ** 2
        std = np.sqrt((post * (curve - mean[:, None]) ** 2).sum(axis=1) + (post * own).sum(axis=1))
        half = stats.norm.ppf((1 + LEVEL) / 2) * std
        return mean, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def fitted_items(training: Training, benchmark: int) -> ItemResponse:
    """The item response model of one benchmark, fitted on the training checkpoints once."""

    def make() -> ItemResponse:
        answers = training.data.items["clean"][benchmark][0][training.models]
        there = np.isfinite(answers).all(axis=1)
        weights = lineage_weights(training.groups)
        return ItemResponse.fit(answers[there], weights[there])

    found: ItemResponse = training.remember(("items", benchmark), make)
    return found


def curves(training: Training, benchmark: int) -> Array:
    """P(correct) at the grid's abilities, [K, N]."""
    found: Array = training.remember(("curves", benchmark), lambda: fitted_items(training, benchmark).probabilities())
    return found


@dataclass(frozen=True)
class LabelledRegression:
    """One regression on the labels' score and the answers' own statistics on the same items, as the reference lineages teach it.

    Because the items are the same for every checkpoint, the regression learns how easy they are and how much of the labels' luck
    the confidences explain.

    Attributes
    ----------
    with_answers : bool
        Confidence and entropy of the labelled items beside the labels.
    extra : tuple of str
        Further features, such as "own_heads".
    items : bool
        The item response model's estimate beside the plain share.
    """

    name: str = "labels + answers"
    with_answers: bool = True
    extra: tuple[str, ...] = ()
    items: bool = True
    uses_items: bool = True

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return PASSES if "clean" in data.items else ()

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if test.condition not in data.items or not training.sees_all:
            return None

        def make() -> tuple[PooledRidge, Spread]:
            x = self._rows(training, "clean", budget, training.models)
            model = PooledRidge(deviations=(0.0, 0.2)).fit(x, training.logits(), training.groups, training.final)
            final = data.final[training.models]
            return model, Spread.of(model.residuals_[final], training.groups[final])

        model, spread = training.remember((self.name, budget.passes, budget.draw), make)
        x = self._rows(training, test.condition, budget, test.models)
        final = data.final[test.models]
        z = model.predict(x, final)[:, test.targets]
        widen = 1.0 + 0.5 * model.overshoot(x, final)[:, test.targets]
        return Forecast(*around(z, widen * spread.quantile * spread.scale[test.targets]), budget.passes)

    def _rows(self, training: Training, condition: str, budget: Budget, models: Indices) -> Array:
        data = training.data
        means = data.drawn(condition, budget.items, budget.draw, int(budget.passes))[models]
        n = np.array(
            [min(int(budget.passes), n_items(data, condition, b)) for b in range(len(data.benchmarks))], dtype=float
        )
        features = [to_logit(100.0 * means[:, :, 0], n)]
        if self.items:
            features.append(self._abilities(training, condition, budget, models))
        if self.with_answers:
            features += [to_logit(100.0 * means[:, :, 1], 2000.0), means[:, :, 2]]
        x = np.stack(features, axis=2)
        if self.extra:
            x = np.concatenate([x, data.evidence(256, condition).stack(self.extra)[0][models]], axis=2)
        return x

    @staticmethod
    def _abilities(training: Training, condition: str, budget: Budget, models: Indices) -> Array:
        """Logit of the score that the item response model expects from these labels, [T, B]."""
        out = np.empty((len(models), len(training.data.benchmarks)))
        for target in range(out.shape[1]):
            probabilities = curves(training, target)
            y = drawn(training.data, condition, 0, target, budget, models)
            chosen = budget.items[target]
            chosen = chosen[chosen < training.data.items[condition][target][0].shape[1]][: int(budget.passes)]
            post = ability_posterior(probabilities[:, chosen], y)
            out[:, target] = to_logit(100.0 * (post @ probabilities.mean(axis=1)), 2000.0)
        return out


__all__: list[Any] = [
    "PASSES",
    "Direct",
    "ItemResponseScoring",
    "LabelledRegression",
    "curves",
    "drawn",
    "fitted_items",
]
