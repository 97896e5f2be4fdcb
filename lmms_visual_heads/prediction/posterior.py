"""What a fitted predictor knows of a checkpoint: per benchmark the best method that its evidence allows, then all that is known.

Units: points. Shapes: B benchmarks, F columns of a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lmms_visual_heads.prediction import flags
from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES, HIGH, LOW, LeftOutErrors, sampling_interval
from lmms_visual_heads.prediction.evaluation import in_range
from lmms_visual_heads.prediction.fitted import FittedPredictor
from lmms_visual_heads.prediction.gaussian_update import Belief, Conditioned, Known, condition_on, residual_correlation
from lmms_visual_heads.prediction.labelled_items import LabelledItems, Prior, shared_luck_factor, shrunk_direct
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.methods import MEAN, PROBE_HEADS, has_evidence, method_named
from lmms_visual_heads.prediction.model_selection import FittedMethod, best_method
from lmms_visual_heads.tables import parent_benchmark

Array = npt.NDArray[np.float64]

SURPRISING = 2.0
"""From this many times the expected size on, what came is said to contradict the prediction."""

NOTABLE_EXCESS = 2.0
"""Two views that are this many times farther apart than nine of ten left-out scores are worth a flag."""

_SPREAD_OF_CONFIDENCE = 0.3
"""Standard deviation of a confidence over prompts where it is not known."""


@dataclass(frozen=True)
class Cell:
    """One row of a prediction, in points, with its flags and the method behind it.

    `std` is the size of the method's errors on left-out lineages: what weighs the prediction against scores and labels. The
    interval may be wider than that says, because few lineages certify little.
    """

    method: str
    center: float
    low: float
    high: float
    baseline: float
    flags: tuple[str, ...]
    std: float = 0.0

    @property
    def half(self) -> float:
        """The longer side of the interval."""
        return max(self.high - self.center, self.center - self.low)


@dataclass(frozen=True)
class ModelEvidence:
    """What is known of one model: per method its columns [B, F], own prompts per benchmark, known scores, labelled items.

    `world_flags` are the flags of its heads; `prompt_spread` the standard deviation of its confidences, by benchmark.
    """

    model: str
    columns: Mapping[str, tuple[Array, tuple[str, ...]]]
    world_flags: tuple[str, ...]
    prompts: Mapping[str, float] = field(default_factory=dict)
    prompt_spread: Mapping[str, float] = field(default_factory=dict)
    known: Mapping[str, tuple[float, int | None]] = field(default_factory=dict)
    labelled: Mapping[str, LabelledItems] = field(default_factory=dict)


def prior_cell(record: FittedPredictor, evidence: ModelEvidence, benchmark: str) -> Cell:
    """The best usable method's prediction of one benchmark, before any score or label of the model is used."""
    methods = record.models[benchmark]
    b = list(record.benchmarks["benchmark"]).index(benchmark)
    rows = {name: evidence.columns[name][0][b] for name in methods}
    usable = {
        name: fitted
        for name, fitted in methods.items()
        if name == PROBE_HEADS.name or has_evidence(rows[name], evidence.columns[name][1])
    }
    if not usable:
        return _mean_cell(record, evidence, benchmark)
    complete = {name: fitted for name, fitted in usable.items() if not fitted.lacks(rows[name])}
    name = best_method(complete or usable)
    extra = [flags.FEW_LINEAGES] if _n_lineages(record, benchmark) < CERTIFIED_LINEAGES else []
    seen = record.evaluation
    seen = seen[(seen["benchmark"] == benchmark) & (seen["model"] == evidence.model)]
    if len(seen):
        row = seen.iloc[0]
        used = str(row["method"])
        values, header = evidence.columns[used]
        if used == PROBE_HEADS.name or has_evidence(values[b], header):
            center, low, high, baseline = (float(row[key]) for key in ("predicted", "low", "high", "baseline"))
            own = methods.get(used, methods[name])
            extra += [
                flags.IN_TRAINING,
                *_verdict(record, benchmark, used),
                *_missing(evidence, own, rows.get(used)),
            ]
            return Cell(_shown(own, used), center, low, high, baseline, tuple(extra), _error_size(own, rows.get(used)))
    extra += _verdict(record, benchmark, name)
    fitted, values = methods[name], rows[name]
    mean = float(record.benchmarks["mean"].to_numpy(dtype=float)[b])
    overshoot = fitted.overshoot(values)
    if overshoot > 0:
        extra.append(flags.OUTSIDE)
    extra += _missing(evidence, fitted, values)
    X = values[None]
    if fitted.model.is_local and fitted.model.estimator.excess(X)[0] > NOTABLE_EXCESS:
        extra.append(flags.VIEWS_DIFFER)
    lineage = record.lineages.get(evidence.model)
    plain = center = float(fitted.model.predict(X)[0])
    if lineage in fitted.model.left_out:
        extra.append(flags.IN_TRAINING)
        center = float(in_range(fitted.model.left_out[lineage].predict(X))[0])
    elif fitted.model.is_local and lineage is not None:
        extra.append(flags.IN_TRAINING)
        if evidence.model in fitted.models and len(seen):
            residual = fitted.model.errors.residuals[fitted.models.index(evidence.model)]
            center = float(seen["actual"].iloc[0] - residual)
    shift = center - plain
    low, high = fitted.model.intervals(X, record.level, np.array([1.0 + overshoot]))[0] + shift
    low, high = float(np.clip(low, LOW, center)), float(np.clip(high, center, HIGH))
    if is_mean(fitted.model.estimator) and abs(center - mean) < 1e-9:
        center = mean  # the same number summed in another order is no prediction of its own
    size = _error_size(fitted, values) * (1.0 + overshoot)
    cell = Cell(_shown(fitted, name), center, low, high, mean, tuple(extra), size)
    return _fewer_prompts(record, evidence, benchmark, name, cell)


def _mean_cell(record: FittedPredictor, evidence: ModelEvidence, benchmark: str) -> Cell:
    """The mean of the fitted trainings, for a model of which nothing is known that a fitted method predicts from."""
    seen = record.evaluation[record.evaluation["benchmark"] == benchmark]
    residuals = (seen["actual"] - seen["baseline"]).to_numpy(dtype=np.float64)
    errors = LeftOutErrors(residuals, seen["lineage"].to_numpy(dtype=np.str_))
    mean = float(record.benchmarks.set_index("benchmark")["mean"].to_dict()[benchmark])
    low, high = errors.interval(mean, np.full(len(residuals), mean), record.level)
    size = float("inf")
    if errors.n_lineages > 1:
        square = float(np.average(residuals**2, weights=lineage_weights(errors.lineages)))
        size = float(np.sqrt(square * (1 + 1 / errors.n_lineages)))
    few = [flags.FEW_LINEAGES] if errors.n_lineages < CERTIFIED_LINEAGES else []
    said = (*few, flags.NO_BETTER, *evidence.world_flags, flags.MISSING)
    return Cell(MEAN, mean, low, high, mean, said, size)


def believe(
    record: FittedPredictor, evidence: ModelEvidence, correlations: dict[tuple[str, ...], Array] | None = None
) -> tuple[dict[str, Cell], Belief]:
    """Cells of all benchmarks and the joint belief behind them, given everything that is known of the model.

    `correlations` keeps what was found for a choice of methods, from one model to the next.
    """
    names = [str(name) for name in record.benchmarks["benchmark"]]
    cells = {name: prior_cell(record, evidence, name) for name in names}
    z = float(stats.norm.ppf((1 + record.level) / 2))
    mean = np.array([cells[name].center for name in names])
    kept = {} if correlations is None else correlations
    chosen = tuple(_stored(record, name, cells[name].method) for name in names)
    if chosen not in kept:
        kept[chosen] = correlation_of(record, dict(zip(names, chosen, strict=True)))
    correlation = kept[chosen]
    known = {b: _with_noise(record, b, *score) for b, score in evidence.known.items()}

    def given(std: list[float]) -> Conditioned:
        return condition_on(
            names, mean, np.array(std), correlation, known, evidence.labelled, record.maps, record.level,
            record.populations,
        )  # fmt: skip

    # Numbers by the errors that were seen; intervals by the wider spread that so many lineages allow to promise.
    found = given([min(cells[name].std, cells[name].half / z) for name in names])
    wide = given([cells[name].half / z for name in names])
    if not known and not found.labels:
        return cells, wide.belief
    belief = Belief(found.belief.benchmarks, found.belief.mean, wide.belief.covariance * wide.surprise**2)
    unrelated = bool(np.array_equal(correlation, np.eye(len(names))))
    said = _said(known, found)
    for b, name in enumerate(names):
        cell = cells[name]
        if name in known:
            points, n_items = evidence.known[name]
            low, high = sampling_interval(points, n_items, record.level)
            cells[name] = Cell("known", points, low, high, cell.baseline, (flags.KNOWN,))
            continue
        own = (*cell.flags, flags.LABELS_CONTRADICT) if wide.surprise > SURPRISING else cell.flags
        if name in found.labels:
            cells[name] = _labelled_cell(record, evidence, cell, name, found, wide, own)
        elif not unrelated:
            center = float(found.belief.mean[b])
            half = z * float(np.sqrt(max(belief.covariance[b, b], 0.0)))
            low, high = max(LOW, center - half), min(HIGH, center + half)
            cells[name] = Cell(f"{cell.method}+{said}", center, low, high, cell.baseline, own)
        elif wide.surprise > 1:
            low = max(LOW, cell.center - wide.surprise * (cell.center - cell.low))
            high = min(HIGH, cell.center + wide.surprise * (cell.high - cell.center))
            cells[name] = replace(cell, low=low, high=high, flags=own)
    return cells, belief


def correlation_of(record: FittedPredictor, chosen: Mapping[str, str]) -> Array:
    """Correlation [B, B] of the left-out errors of the chosen methods."""
    columns = {}
    for benchmark, name in chosen.items():
        fitted = record.models[benchmark][name]
        columns[benchmark] = pd.Series(
            fitted.model.errors.residuals[: len(fitted.models)], index=list(fitted.models), dtype=float
        )
    wide = pd.DataFrame(columns)
    if wide.empty:
        return np.eye(len(chosen))
    lineages = np.array([record.lineages.get(str(model), str(model)) for model in wide.index])
    blocks = np.array([parent_benchmark(name) for name in chosen])
    return residual_correlation(wide.to_numpy(dtype=np.float64), lineages, blocks)


def _labelled_cell(
    record: FittedPredictor,
    evidence: ModelEvidence,
    cell: Cell,
    name: str,
    found: Conditioned,
    wide: Conditioned,
    own: tuple[str, ...],
) -> Cell:
    center, after, items = found.labels[name].mean, wide.labels[name], evidence.labelled[name]
    between = record.benchmarks.set_index("benchmark")["between"].to_dict()[name]
    baseline = shrunk_direct(Prior(cell.baseline, max(between, 1.0)), items.correct)
    method = f"{cell.method}+{len(items.correct)} labels"
    wider = 1.0
    if cell.method != MEAN and method_named(_stored(record, name, cell.method)).own_prompts:
        population = record.populations.get(name)
        wider = shared_luck_factor(cell.half / float(stats.norm.ppf((1 + record.level) / 2)), after, items, population)
    low = max(LOW, center - wider * (after.mean - after.low))
    high = min(HIGH, center + wider * (after.high - after.mean))
    # The interval is moved onto another mean; what reached an end of the scale still does.
    low, high = LOW if after.low <= LOW else low, HIGH if after.high >= HIGH else high
    return Cell(method, center, low, high, baseline, (*own, flags.LABELLED))


def _with_noise(record: FittedPredictor, benchmark: str, points: float, n_items: int | None) -> Known:
    """A known score with the variance of drawing its items, none where it was measured over the whole benchmark."""
    if not n_items:
        return Known(points, 0.0)
    p = float(np.clip(points / 100, 0.02, 0.98))
    population = record.populations.get(benchmark)
    left = 1.0 if population is None else max(1 - n_items / population, 0.0)
    return Known(points, 1e4 * p * (1 - p) / n_items * left)


def _n_lineages(record: FittedPredictor, benchmark: str) -> int:
    return int(record.errors.set_index("benchmark")["n_lineages"].to_dict()[benchmark])


def _verdict(record: FittedPredictor, benchmark: str, name: str) -> list[str]:
    """Whether the method was no better than the baseline: by the nested errors where it is the one that was chosen."""
    judged = record.methods
    row = judged[(judged["benchmark"] == benchmark) & (judged["method"] == name)].iloc[0]
    errors = record.errors.set_index("benchmark").loc[benchmark] if row["chosen"] else row
    stored = record.models[benchmark].get(name)
    empty = stored is not None and is_mean(stored.model.estimator)
    return [flags.NO_BETTER] if empty or errors["error"] >= errors["baseline_error"] else []


def _missing(evidence: ModelEvidence, fitted: FittedMethod, values: Array | None) -> list[str]:
    lacks = values is not None and fitted.lacks(values)
    return [*evidence.world_flags, *([flags.MISSING] if lacks else [])]


def _fewer_prompts(record: FittedPredictor, evidence: ModelEvidence, benchmark: str, name: str, cell: Cell) -> Cell:
    """Wider where the model answered fewer own prompts than the fitted ones: its statistics are that much noisier."""
    usual, own = record.prompt_counts.get(benchmark, np.nan), evidence.prompts.get(benchmark, np.nan)
    if not method_named(name).own_prompts or not np.isfinite(usual) or not own < usual:
        return cell
    variance = evidence.prompt_spread.get(benchmark, _SPREAD_OF_CONFIDENCE) ** 2
    extra = 1e4 * variance * (1 / max(own, 1.0) - 1 / usual)
    std = max(cell.half, 1e-9) / float(stats.norm.ppf((1 + record.level) / 2))
    factor = float(np.sqrt(1 + extra / std**2))
    low = max(LOW, cell.center - factor * (cell.center - cell.low))
    high = min(HIGH, cell.center + factor * (cell.high - cell.center))
    more = (flags.FEWER_PROMPTS,) if 2 * own < usual else ()
    return replace(cell, low=low, high=high, flags=(*cell.flags, *more), std=factor * cell.std)


def _error_size(fitted: FittedMethod, row: Array | None) -> float:
    """Standard deviation of the method's error on a new lineage, at a row [F] where the method tells rows apart, points.

    Infinite where no lineage was left out.
    """
    errors = fitted.model.errors
    if fitted.model.is_local and row is not None:
        return float(fitted.model.estimator.std(row[None])[0])
    if errors.n_lineages < 2:
        return float("inf")
    square = float(np.average(errors.residuals**2, weights=lineage_weights(errors.lineages)))
    return float(np.sqrt(square * (1 + 1 / errors.n_lineages)))


def is_mean(estimator: Any) -> bool:
    """Whether a fitted estimator found nothing in its features and predicts the mean; others than ours never say so."""
    return bool(getattr(estimator, "predicts_mean", False))


def _shown(fitted: FittedMethod, name: str) -> str:
    return MEAN if is_mean(fitted.model.estimator) else name


def _stored(record: FittedPredictor, benchmark: str, shown: str) -> str:
    """The fitted method behind a shown one: a mean is that of the best method."""
    methods = record.models[benchmark]
    return shown if shown in methods else best_method(methods)


def _said(known: Mapping[str, Known], found: Conditioned) -> str:
    """How other benchmarks entered a row."""
    parts = [f"{len(known)} known"] if known else []
    return "+".join([*parts, *([f"{len(found.labels)} labelled"] if found.labels else [])])


__all__ = ["SURPRISING", "Cell", "ModelEvidence", "believe", "correlation_of", "is_mean", "prior_cell"]
