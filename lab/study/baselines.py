"""What a prediction has to beat, as estimators: constants, scoring some items, an item response model, the last score carried on.

They have the product's interface and give its columns, so that one judge judges all. Nothing here looks at an answer or a head.
Units: points, 0..100. Shapes: R references, T asked models, B benchmarks, n labelled items, N items, K abilities of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats
from sklearn.base import BaseEstimator

from lab.study.item_response import GRID, ItemResponse, ability_posterior
from lmms_visual_heads.prediction.conformal import HIGH, LOW, upper_quantile
from lmms_visual_heads.prediction.labelled_items import Prior, shrunk_direct
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.schema import PREDICTION_COLUMNS

Array = npt.NDArray[np.float64]


class Baseline(BaseEstimator):
    """Shared by the baselines: the references' scores as learnt, and rows in the product's columns.

    Parameters
    ----------
    level : float
        Wanted coverage of the intervals, 0..1.

    Attributes
    ----------
    points_ : DataFrame [R, B]
        The references' scores.
    groups_ : Series [R]
        Training of every reference.
    mean_, between_ : Series [B]
        Mean over trainings of the references' scores, and the standard deviation between trainings.
    population_ : Series [B]
        Most items behind a score: the whole benchmark.
    """

    def __init__(self, level: float = 0.9) -> None:
        self.level = level

    def fit(
        self, measurements: Any, scores: pd.DataFrame, *, groups: Mapping[str, str], items: pd.DataFrame | None = None
    ) -> Self:
        """Learn from the references' scores (`schema.SCORE_COLUMNS`), their trainings and, where it needs them, their items."""
        table = scores.assign(points=100.0 * scores["score"] / scores["scale"])
        self.points_ = table.pivot(index="model", columns="benchmark", values="points")
        self.groups_ = pd.Series({model: groups[model] for model in self.points_.index})
        by_training = self.points_.groupby(self.groups_).mean()
        self.mean_, self.between_ = by_training.mean(), by_training.std(ddof=1).fillna(HIGH - LOW)
        self.population_ = scores.groupby("benchmark")["n_items"].max().astype(float)
        self._learn(measurements, items)
        return self

    def predict(
        self, measurements: Any, *, known_scores: pd.DataFrame | None = None, items: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """`schema.PREDICTION_COLUMNS`; no row where the baseline has nothing to say."""
        rows = [
            (model, benchmark, *values, self.level, float(self.mean_[benchmark]), "", self._words)
            for model, benchmark, values in self._rows(measurements, items)
        ]
        return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))

    @property
    def _words(self) -> str:
        return type(self).__name__

    def _learn(self, measurements: Any, items: pd.DataFrame | None) -> None:
        """What a baseline learns beside the scores."""

    def _rows(
        self, measurements: Any, items: pd.DataFrame | None
    ) -> Iterator[tuple[str, str, tuple[float, float, float]]]:
        """Model, benchmark, and the prediction with its limits."""
        raise NotImplementedError

    def _quantile(self, sizes: pd.Series) -> float:
        """Size of an error [R] that holds on a new training, each training of the same mass and the new one infinitely far off."""
        known = sizes.dropna()
        weights = lineage_weights(self.groups_[known.index])
        n = len(set(self.groups_[known.index]))
        return min(upper_quantile(known.to_numpy(dtype=float), weights / (n + 1), self.level), HIGH - LOW)


class Constant(Baseline):
    """One number per benchmark for every model.

    Parameters
    ----------
    strategy : {"mean", "median", "chance"}
        Of the references' final checkpoints, one each training; or what guessing scores.
    chance : mapping or None
        benchmark -> points of the most frequent answer.
    level : float
    """

    def __init__(self, strategy: str = "mean", chance: Mapping[str, float] | None = None, level: float = 0.9) -> None:
        super().__init__(level)
        self.strategy = strategy
        self.chance = chance

    def _learn(self, measurements: Any, items: pd.DataFrame | None) -> None:
        steps = training_steps(measurements).reindex(self.points_.index)
        final = steps["step"] == steps["steps"]
        points = self.points_[final] if final.any() else self.points_
        by_training = points.groupby(self.groups_).mean()
        if self.strategy == "chance":
            self.constant_ = pd.Series(dict(self.chance or {})).reindex(points.columns)
        else:
            self.constant_ = by_training.mean() if self.strategy == "mean" else by_training.median()
        self.half_ = (points - self.constant_).abs().apply(self._quantile)

    @property
    def _words(self) -> str:
        return self.strategy

    def _rows(
        self, measurements: Any, items: pd.DataFrame | None
    ) -> Iterator[tuple[str, str, tuple[float, float, float]]]:
        for model in measurements.models:
            for benchmark, value, half in zip(self.constant_.index, self.constant_, self.half_, strict=True):
                yield model, str(benchmark), _around(float(value), float(half))


class DirectScoring(Baseline):
    """The labelled items' share of right answers, as it is or drawn towards the references' mean.

    Parameters
    ----------
    shrunk : bool
        Blend by precision with the references' mean and spread: what the product names as its baseline beside labels.
    level : float
    """

    def __init__(self, shrunk: bool = False, level: float = 0.9) -> None:
        super().__init__(level)
        self.shrunk = shrunk

    def _rows(
        self, measurements: Any, items: pd.DataFrame | None
    ) -> Iterator[tuple[str, str, tuple[float, float, float]]]:
        for model, benchmark, part in _labelled(measurements, items, self.points_.columns):
            labels = part["correct"].to_numpy(dtype=float)
            n, hits = len(labels), float(labels.sum())
            # What is scored of the benchmark is known: only the rest is a draw.
            narrow = float(np.sqrt(max(1.0 - n / self.population_[benchmark], 0.0)))
            if self.shrunk:
                prior = Prior(float(self.mean_[benchmark]), max(float(self.between_[benchmark]), 1.0))
                p = (hits + 1) / (n + 2)
                precision = n / (1e4 * p * (1 - p)) + prior.std**-2
                half = float(stats.norm.ppf((1 + self.level) / 2)) * precision**-0.5
                yield model, benchmark, _around(shrunk_direct(prior, labels), narrow * half)
                continue
            share = hits / n
            tails = [special.betaincinv(hits + 0.5, n - hits + 0.5, (1 + side * self.level) / 2) for side in (-1, 1)]
            low, high = (100.0 * (share + narrow * (tail - share)) for tail in tails)
            yield model, benchmark, (100.0 * share, min(low, 100.0 * share), max(high, 100.0 * share))


class ItemResponseScoring(Baseline):
    """Two-parameter item response model mixed with direct scoring, as gp-IRT does (Polo et al. 2024, arXiv 2402.14992).

    The model's estimate is what the labelled items show and what the ability behind them expects of the rest. How much of each
    enters is what had the smallest squared error on the references with the same labelled items, and so is the interval.
    Needs the references' items.
    """

    def _learn(self, measurements: Any, items: pd.DataFrame | None) -> None:
        self.models_: dict[str, tuple[Array, pd.DataFrame, Array]] = {}
        if items is None:
            return
        for benchmark, part in items.groupby("benchmark", observed=True):
            answers = part.pivot(index="model", columns="doc_id", values="correct").dropna()
            weights = lineage_weights(self.groups_[answers.index.astype(str)])
            learnt = ItemResponse.fit(answers.to_numpy(), weights)
            centre = float(np.average(learnt.abilities, weights=weights))
            spread = max(float(np.sqrt(np.average((learnt.abilities - centre) ** 2, weights=weights))), 0.1)
            prior = np.asarray(stats.t.logpdf(GRID, 5, loc=centre, scale=spread))
            self.models_[str(benchmark)] = learnt.probabilities(), answers, prior

    def _rows(
        self, measurements: Any, items: pd.DataFrame | None
    ) -> Iterator[tuple[str, str, tuple[float, float, float]]]:
        mixtures: dict[tuple[str, bytes], tuple[float, float]] = {}
        for model, benchmark, part in _labelled(measurements, items, pd.Index(list(self.models_))):
            curves, answers, prior = self.models_[benchmark]
            chosen = answers.columns.get_indexer(pd.Index(part["doc_id"]))
            labels = part["correct"].to_numpy(dtype=float)[chosen >= 0]
            chosen = chosen[chosen >= 0]
            key = benchmark, chosen.tobytes()
            if key not in mixtures:
                mixtures[key] = self._mixture(curves, answers, prior, chosen)
            share, half = mixtures[key]
            expected = float(_expected(curves, labels[None], chosen, prior)[0])
            yield model, benchmark, _around(100.0 * (expected + share * (float(labels.mean()) - expected)), half)

    def _mixture(
        self, curves: Array, answers: pd.DataFrame, prior: Array, chosen: npt.NDArray[np.intp]
    ) -> tuple[float, float]:
        """Share of direct scoring, 0..1, and half-width of the interval, points."""
        table = answers.to_numpy(dtype=float)
        weights = lineage_weights(self.groups_[answers.index.astype(str)])
        expected = _expected(curves, table[:, chosen], chosen, prior)
        gap, off = table[:, chosen].mean(axis=1) - expected, table.mean(axis=1) - expected
        square = float(weights @ gap**2)
        share = float(np.clip(weights @ (gap * off) / square, 0.0, 1.0)) if square > 0 else 0.0
        errors = pd.Series(100.0 * np.abs(share * gap - off), index=answers.index.astype(str))
        return share, self._quantile(errors)


class CarryForward(Baseline):
    """A known training's last scored checkpoint, plus the gain that is usual from there to the end.

    Parameters
    ----------
    gain : bool
        Add the other trainings' mean gain from their last scored earlier checkpoint to their final one.
    level : float
    """

    def __init__(self, gain: bool = True, level: float = 0.9) -> None:
        super().__init__(level)
        self.gain = gain

    def _learn(self, measurements: Any, items: pd.DataFrame | None) -> None:
        steps = training_steps(measurements).reindex(self.points_.index)
        order = steps.sort_values("step").index
        self.steps_ = steps["step"]
        self.last_ = {str(group): list(part.index) for group, part in steps.loc[order].groupby(self.groups_[order])}
        gains = {
            models[-1]: self.points_.loc[models[-1]] - self.points_.loc[models[-2]]
            for models in self.last_.values()
            if len(models) > 1 and steps["step"][models[-1]] == steps["steps"][models[-1]]
        }
        gained = pd.DataFrame(gains).T.reindex(columns=self.points_.columns).astype(float)
        self.usual_ = gained.mean() if self.gain else 0.0 * self.mean_
        others = (gained.sum() - gained) / (gained.notna().sum() - 1) if self.gain else 0.0
        self.half_ = (gained - others).abs().apply(self._quantile)

    def _rows(
        self, measurements: Any, items: pd.DataFrame | None
    ) -> Iterator[tuple[str, str, tuple[float, float, float]]]:
        asked = training_steps(measurements)
        for model in measurements.models:
            earlier = [
                name
                for name in self.last_.get(str(asked["lineage"].get(model)), [])
                if self.steps_[name] < asked["step"][model]
            ]
            if not earlier:
                continue
            for benchmark, points in self.points_.loc[earlier[-1]].dropna().items():
                center = float(np.clip(points + self.usual_[benchmark], LOW, HIGH))
                yield model, str(benchmark), _around(center, float(self.half_[benchmark]))


def training_steps(measurements: Any) -> pd.DataFrame:
    """lineage, step and steps of the measured checkpoints, by model; missing where it is not known."""
    known = measurements.checkpoints
    return known.set_index("model").reindex(columns=["lineage", "step", "steps"])


def _expected(curves: Array, labels: Array, chosen: npt.NDArray[np.intp], prior: Array) -> Array:
    """Share of all items [T] that the model expects to be right, after labels [T, n] of the chosen ones."""
    weights = ability_posterior(curves[:, chosen], labels, prior)
    rest = np.delete(curves, chosen, axis=1).sum(axis=1)
    return np.asarray((labels.sum(axis=1) + weights @ rest) / curves.shape[1])


def _around(center: float, half: float) -> tuple[float, float, float]:
    return center, max(center - half, LOW), min(center + half, HIGH)


def _labelled(
    measurements: Any, items: pd.DataFrame | None, benchmarks: pd.Index
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Labelled items of every asked model and known benchmark."""
    if items is None:
        return
    models = set(measurements.models)
    for (model, benchmark), part in items.groupby(["model", "benchmark"], sort=True, observed=True):
        if model in models and benchmark in benchmarks:
            yield str(model), str(benchmark), part


__all__ = ["CarryForward", "Constant", "DirectScoring", "ItemResponseScoring", "training_steps"]
