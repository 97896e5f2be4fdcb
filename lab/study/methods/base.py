"""Methods that need no label, and the one interface of all methods: `predict(training, test, budget)`.

A method sees the scores of the training checkpoints, and of the test checkpoints only what the budget buys. Everything that it
chooses, it chooses on the training lineages. Units: points 0..100; forward passes per benchmark.
Shapes: T test checkpoints, B benchmarks, D target benchmarks, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit

from lab.study.dataset import ZooData
from lab.study.methods.pooled import PooledRidge
from lmms_visual_heads.prediction.agreement import agreement_table
from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES, upper_quantile
from lmms_visual_heads.prediction.lineages import lineage_weights

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

LEVEL = 0.9
"""Wanted coverage of every interval."""

HEAD_PROMPTS, CUT_PROMPTS = 256, 128
"""Own prompts behind head profiles and behind cuts."""


@dataclass(frozen=True)
class Training:
    """What may be fitted on.

    Attributes
    ----------
    data : ZooData
    models : array of int
        Checkpoints whose scores and labels are known.
    scored : bool array [B]
        Benchmarks whose scores are known; a target that is not among them is a new benchmark.
    cache : dict
        Fits that a method makes once for several tests.
    """

    data: ZooData
    models: Indices
    scored: npt.NDArray[np.bool_]
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """Lineages of the training checkpoints."""
        return self.data.lineages[self.models]

    @property
    def final(self) -> npt.NDArray[np.bool_]:
        """Whether the training checkpoints are the end of theirs."""
        return self.data.final[self.models]

    @property
    def n_lineages(self) -> int:
        """Number of lineages."""
        return len(np.unique(self.groups))

    @property
    def sees_all(self) -> bool:
        """Whether every benchmark has scores."""
        return bool(self.scored.all())

    def blocks(self, test: Test) -> npt.NDArray[np.str_]:
        """What is left out together when something is chosen, [n]: lineages, or checkpoints where the test's lineages are known."""
        known = np.isin(self.data.lineages[test.models], self.groups).all()
        return self.data.models[self.models] if known else self.groups

    def logits(self) -> Array:
        """Logits of the known scores, [n, B]; NaN where not known."""
        y = to_logit(self.data.points["clean"][self.models], self.data.n_items)
        return np.where(self.scored, y, np.nan)

    def agreement(self, condition: str, prompts: Sequence[Indices | slice], key: Any, as_if_new: bool = False) -> Array:
        """`agreement_table` of all M checkpoints with the training checkpoints, [M, B]; made once per condition and `key`.

        Nothing but what is asked changes under a condition: the voters are those who answered clean pictures, and so did they.
        """

        def make() -> Array:
            data = self.data
            if condition not in data.replies:
                return np.full((len(data.models), len(data.benchmarks)), np.nan)
            said = [clean.copy() for clean in data.replies["clean"]]
            asked = np.setdiff1d(np.arange(len(data.models)), self.models)
            for here, changed in zip(said, data.replies[condition], strict=True):
                here[asked] = changed[asked]
            points = np.where(self.scored, data.points["clean"][self.models], np.nan)
            return agreement_table(
                said, self.models, points, data.chance, data.n_items, data.lineages, prompts, as_if_new
            )

        table: Array = self.remember(("agreement", condition, key, as_if_new), make)
        return table

    def agreement_on_drawn(self, condition: str, budget: Budget) -> Array:
        """`agreement` on the items that the budget draws."""
        drawn = self.data.chosen(condition, budget.items, int(budget.passes))
        return self.agreement(condition, drawn, (budget.draw, int(budget.passes)))

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once per key."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


class Test(NamedTuple):
    """Checkpoints to be predicted: their numbers [T], the target benchmarks [D], and the condition they are asked under."""

    models: Indices
    targets: Indices
    condition: str = "clean"


class Budget(NamedTuple):
    """Forward passes per benchmark, the items of each benchmark in the order drawn (for all checkpoints), the draw's number."""

    passes: float
    items: list[Indices]
    draw: int = 0


class Forecast(NamedTuple):
    """Predictions and their intervals in points, each [T, D], and the forward passes per benchmark that they took."""

    mean: Array
    low: Array
    high: Array
    passes: float


class Method(Protocol):
    """What the protocol asks of every method."""

    @property
    def name(self) -> str:
        """The words for it in reports."""

    @property
    def uses_items(self) -> bool:
        """Whether it depends on which items are drawn."""

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        """Forward passes per benchmark at which it is judged."""

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        """Predictions; None where it cannot say anything in this setting."""


def to_logit(points: Array, n_items: Array | float) -> Array:
    """Logits of scores of `n_items` items: half an item from the edges at least."""
    n = np.asarray(n_items, dtype=np.float64)
    share = (points / 100.0 * n + 0.5) / (n + 1.0)
    return np.asarray(np.log(share / (1.0 - share)))


def to_points(logits: Array) -> Array:
    """Points of logits."""
    return np.asarray(100.0 * expit(logits), dtype=np.float64)


class Spread(NamedTuple):
    """Left-out errors on the logit scale: standard deviation per benchmark [B], and the quantile of standardised errors."""

    scale: Array
    quantile: float
    pooled: float

    @classmethod
    def of(cls, residuals: Array, groups: npt.NDArray[np.str_], level: float = LEVEL) -> Spread:
        """From residuals [n, B] of lineages that were left out.

        The scale of a benchmark is drawn towards the common one with the weight of ten lineages. The quantile is conformal over
        lineages, each with the same mass and one mass at infinity (arXiv 2306.06342). With fewer than 15 lineages the larger of it
        and Student's t is taken.
        """
        there = np.isfinite(residuals)
        weights = np.where(there, lineage_weights(groups)[:, None], 0.0)
        squares = np.where(there, residuals, 0.0) ** 2 * weights
        pooled = float(squares.sum() / max(weights.sum(), 1e-300))
        own = (squares.sum(axis=0) + 10.0 * pooled) / (weights.sum(axis=0) + 10.0)
        scale = np.sqrt(np.maximum(own, 1e-8))
        n_lineages = len(np.unique(groups))
        size = np.abs(np.where(there, residuals, 0.0)) / scale
        mass = weights / max(weights.sum(), 1e-300) * n_lineages / (n_lineages + 1)
        quantile = upper_quantile(size[there], mass[there], level) if there.any() else float("inf")
        if n_lineages < CERTIFIED_LINEAGES:
            student = stats.t.ppf((1 + level) / 2, max(n_lineages - 1, 1)) * np.sqrt(1 + 1 / n_lineages)
            quantile = max(quantile, float(student))
        return cls(scale, quantile, float(np.sqrt(pooled)))


def around(z: Array, half: Array) -> tuple[Array, Array, Array]:
    """Points of logits and of their interval."""
    return to_points(z), to_points(z - half), to_points(z + half)


@dataclass(frozen=True)
class Features:
    """Regression on declared features: `PooledRidge` on the logit scale.

    Attributes
    ----------
    name : str
    wanted : tuple of str
        Blocks ("own_answers") or single features ("own_answers.confidence"); none: the mean of each benchmark.
    counts : tuple of int
        Numbers of prompts at which answer statistics are judged.
    """

    name: str
    wanted: tuple[str, ...] = ()
    counts: tuple[int, ...] = (256,)
    uses_items: bool = False

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return tuple(self.cost(data, count) for count in self.counts)

    def cost(self, data: ZooData, count: int) -> float:
        """Forward passes per benchmark with `count` prompts behind the answer statistics."""
        evidence = data.evidence()
        total = 0.0
        kinds = {entry.partition(".")[0] for entry in self.wanted}
        answers = [entry for entry in self.wanted if entry.startswith("own_answers")]
        cuts = [entry for entry in self.wanted if entry.startswith("own_causal")]
        plain = 0
        if answers:
            plain = count
            total += (evidence.passes_per_prompt(answers) - 1.0) * count
        if "own_heads" in kinds:
            plain = max(plain, HEAD_PROMPTS)
        if cuts:
            plain = max(plain, CUT_PROMPTS)
            total += (evidence.passes_per_prompt(cuts) - 1.0) * CUT_PROMPTS
        if any(kind.startswith("probe_") for kind in kinds):
            per_prompt = 1.0
            if "probe_answers" in kinds:
                per_prompt += 2.0
            total += 3 * HEAD_PROMPTS * per_prompt / len(data.benchmarks)
            if "probe_causal" in kinds:
                total += 3 * CUT_PROMPTS * (evidence.passes_per_prompt(("own_causal",)) - 1.0) / len(data.benchmarks)
        return total + plain

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        count = next((c for c in self.counts if abs(self.cost(data, c) - budget.passes) < 1e-6), self.counts[-1])
        model, spread = self.fitted(training, count, training.blocks(test))
        x = self.rows(data, test.condition, count)[test.models]
        if self.wanted and not np.isfinite(x).any():
            return None
        final = data.final[test.models]
        z = model.predict(x, final)[:, test.targets]
        widen = 1.0 + 0.5 * model.overshoot(x, final)[:, test.targets]
        half = widen * spread.quantile * spread.scale[test.targets]
        return Forecast(*around(z, half), budget.passes)

    def fitted(self, training: Training, count: int, blocks: npt.NDArray[np.str_]) -> tuple[PooledRidge, Spread]:
        """The regression and its left-out errors; what is left out together are `blocks` [n]."""

        def make() -> tuple[PooledRidge, Spread]:
            x = self.rows(training.data, "clean", count)[training.models]
            model = PooledRidge(per_benchmark=training.sees_all).fit(x, training.logits(), blocks, training.final)
            # A final checkpoint is predicted, so errors on final ones tell how far it may be off.
            final = training.final
            final = final if final.sum() >= 3 else np.ones_like(final)
            spread = Spread.of(model.residuals_[final], training.groups[final])
            if not training.sees_all:
                spread = spread._replace(scale=np.where(training.scored, spread.scale, spread.pooled))
            return model, spread

        key = (self.wanted, count if any(w.startswith("own_answers") for w in self.wanted) else 0)
        found: tuple[PooledRidge, Spread] = training.remember(key, make)
        return found

    def rows(self, data: ZooData, condition: str, count: int) -> Array:
        """Features of all checkpoints, [M, B, F]."""
        if not self.wanted:
            return np.zeros((len(data.models), len(data.benchmarks), 0))
        return data.evidence(count, condition).stack(self.wanted)[0]


@dataclass(frozen=True)
class RawConfidence:
    """The mean confidence on F own prompts, nothing fitted but the interval."""

    name: str = "raw confidence"
    passes: tuple[float, ...] = (8, 16, 32, 64, 128, 256, 512)
    uses_items: bool = True

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return self.passes if "clean" in data.items else ()

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if test.condition not in data.items:
            return None
        z = self._logits(training, test.condition, budget)
        if not np.isfinite(z[test.models]).any():
            return None
        known = training.logits()
        residuals = known - self._logits(training, "clean", budget)[training.models]
        spread = Spread.of(residuals[:, training.scored], training.groups)
        half = np.full((len(test.models), len(test.targets)), spread.quantile * spread.pooled)
        return Forecast(*around(z[np.ix_(test.models, test.targets)], half), budget.passes)

    def _logits(self, training: Training, condition: str, budget: Budget) -> Array:
        confidence = training.data.drawn(condition, budget.items, budget.draw, int(budget.passes))[:, :, 1]
        return to_logit(100.0 * confidence, 2000.0)


@dataclass(frozen=True)
class RawAgreement(RawConfidence):
    """The agreement with the references' answers on F own prompts, nothing fitted but the interval."""

    name: str = "raw agreement"

    def _logits(self, training: Training, condition: str, budget: Budget) -> Array:
        return to_logit(100.0 * training.agreement_on_drawn(condition, budget), 2000.0)


@dataclass(frozen=True)
class BestOther:
    """The score on the one other benchmark that predicts the target best among the training lineages."""

    name: str = "best other benchmark"
    uses_items: bool = False

    def budgets(self, data: ZooData) -> tuple[float, ...]:
        return (float(np.mean(data.n_items)) / len(data.benchmarks),)

    def predict(self, training: Training, test: Test, budget: Budget) -> Forecast | None:
        data = training.data
        if not training.sees_all or test.condition != "clean":
            return None
        y, groups = training.logits(), training.groups
        all_logits = to_logit(data.points["clean"], data.n_items)
        out = np.empty((3, len(test.models), len(test.targets)))
        for position, target in enumerate(test.targets):
            best: tuple[float, Any] = (float("inf"), None)
            for other in np.flatnonzero(data.twins != data.twins[target]):

                def make(other: int = int(other), target: int = int(target)) -> PooledRidge:
                    return _on_one(y[:, other], y[:, target], groups, training.final)

                model = training.remember(("other", int(other), int(target)), make)
                error = float(np.nanmean(model.residuals_**2))
                if error < best[0]:
                    best = (error, (model, other))
            if best[1] is None:
                return None
            model, other = best[1]
            z = model.predict(all_logits[test.models][:, [other]][:, :, None], data.final[test.models])
            spread = Spread.of(model.residuals_, groups)
            out[:, :, position] = np.stack(around(z, np.full_like(z, spread.quantile * spread.scale[0])))[:, :, 0]
        return Forecast(out[0], out[1], out[2], budget.passes)


def _on_one(x: Array, y: Array, groups: npt.NDArray[np.str_], final: npt.NDArray[np.bool_]) -> PooledRidge:
    return PooledRidge(penalties=(1e-4, 0.1), deviations=(0.0,)).fit(x[:, None, None], y[:, None], groups, final)
