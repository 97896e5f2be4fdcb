"""What to score next: how many items of which benchmark lower the expected error most per forward pass.

Scoring n items of a benchmark is an observation with variance 10^4 p (1 - p) / n (points squared). Greedy: every step takes the
batch that lowers the mean expected absolute error of all benchmarks most per forward pass. D benchmarks; units: points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.gaussian_mixture import complete, shrunk
from lmms_visual_heads.prediction.gaussian_update import Belief, observe
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.predictor import BenchmarkPredictor
from lmms_visual_heads.prediction.score_mixture import JointScores
from lmms_visual_heads.tables import check_scores, parent_benchmark

Array = npt.NDArray[np.float64]

PLAN_COLUMNS = ("step", "benchmark", "items", "forward_passes", "error_before", "error_after")
_RESIDUAL_SHRINKAGE = 0.35
_FEWEST_MODELS = 3
_ERROR_OF_STD = float(np.sqrt(2 / np.pi))
_P_BOUNDS = (0.02, 0.98)


def expected_error(covariance: Array) -> float:
    """Mean expected absolute error over benchmarks, points: sqrt(2 / pi) times the mean standard deviation (Gaussian)."""
    return _ERROR_OF_STD * float(np.sqrt(np.maximum(np.diag(covariance), 0.0)).mean())


def item_variance(mean: Array) -> Array:
    """Variance of one right-or-wrong item in points squared, 10^4 p (1 - p), p kept within 0.02..0.98."""
    p = np.clip(np.asarray(mean, dtype=np.float64) / 100, *_P_BOUNDS)
    return 1e4 * p * (1 - p)


def plan_items(
    belief: Belief, budget: int = 512, batch: int = 16, largest: int | None = None, cost: Array | None = None
) -> pd.DataFrame:
    """Greedy plan.

    Parameters
    ----------
    belief : Belief
    budget : int
        Forward passes in all; one per item.
    batch : int
        Items that are added at once.
    largest : int or None
        Most items of one benchmark; None: no limit.
    cost : array [D] or None
        What a forward pass costs on each benchmark (operations, say); None: the same on all. Gains are per cost.

    Returns
    -------
    DataFrame
        `PLAN_COLUMNS`. Batches of one benchmark that follow one another are one step. Errors: expected mean absolute
        error over all benchmarks, points.
    """
    if budget < 1 or batch < 1:
        raise VisualHeadsError(f"Budget and batch must be at least 1; {budget} and {batch} came.")
    covariance, used = np.array(belief.covariance, dtype=np.float64), np.zeros(len(belief.mean), dtype=np.int64)
    one = item_variance(belief.mean)
    each = np.ones(len(used)) if cost is None else np.asarray(cost, dtype=np.float64)
    if each.shape != used.shape or not (each > 0).all():
        raise VisualHeadsError(
            "Every benchmark needs the cost of a forward pass, above 0. Leave the costs out otherwise."
        )
    rows: list[dict[str, Any]] = []
    left, error = budget, expected_error(covariance)
    while left > 0:
        room = np.full(len(used), left) if largest is None else np.minimum(left, largest - used)
        items = np.minimum(batch, room)
        gains = _gains(covariance, one, items) / each
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        n = int(items[best])
        covariance = observe(covariance, best, one[best] / n)
        before, error = error, expected_error(covariance)
        used[best] += n
        left -= n
        name = belief.benchmarks[best]
        if rows and rows[-1]["benchmark"] == name:
            rows[-1] |= {"items": rows[-1]["items"] + n, "forward_passes": budget - left, "error_after": error}
        else:
            rows.append(dict(zip(PLAN_COLUMNS, (len(rows) + 1, name, n, budget - left, before, error), strict=True)))
    return pd.DataFrame(rows, columns=list(PLAN_COLUMNS))


def _gains(covariance: Array, one: Array, items: npt.NDArray[np.int64]) -> Array:
    """Expected error saved per forward pass by the next batch of every benchmark [D]; 0 where nothing may be added."""
    variance = np.maximum(np.diag(covariance), 0.0)
    may = (items > 0) & (variance > 0)
    noise = np.divide(one, items, out=np.ones_like(one), where=items > 0)
    after = variance[:, None] - covariance**2 / (variance + noise)
    saved = np.sqrt(variance).mean() - np.sqrt(np.maximum(after, 0.0)).mean(axis=0)
    return np.where(may, _ERROR_OF_STD * saved / np.maximum(items, 1), 0.0)


def belief_of_scores(table: pd.DataFrame, known: pd.DataFrame | None = None, families: Any = None) -> Belief:
    """Belief about a new model out of a score table alone: `JointScores`, conditioned on the model's known scores.

    Parameters
    ----------
    table : DataFrame
        `tables.SCORE_COLUMNS`, reference models.
    known : DataFrame or None
        The same, of one model; that model's own rows are taken out of `table`.
    families : mapping or None
        model -> family.

    Raises
    ------
    VisualHeadsError
        Fewer than three reference models, known scores of several models or in another metric or scale.
    """
    clean = check_scores(table)
    given = _one_model(known)
    if given is not None:
        clean = clean[clean["model"] != given["model"].iloc[0]]
        _same_units(clean, given)
    points = clean.assign(points=100 * clean["score"] / clean["scale"])
    wide = points.pivot(index="model", columns="benchmark", values="points")
    wide = wide.loc[:, wide.notna().sum() >= 2]
    wide = wide[wide.notna().any(axis=1)]
    names = [str(name) for name in wide.columns]
    if not names:
        raise VisualHeadsError("No benchmark has the scores of two reference models. Add models to the score table.")
    groups = None if families is None else [families.get(model, model) for model in wide.index]
    joint = JointScores().fit(wide.to_numpy(dtype=np.float64), groups, [parent_benchmark(name) for name in names])
    values, noise = _known_values(given, names)
    mean, covariance = joint.covariance(values, noise=noise)
    return Belief(tuple(names), mean, covariance)


def belief_of_predictor(
    predictor: BenchmarkPredictor, known: pd.DataFrame | None = None, predicted: pd.DataFrame | None = None
) -> Belief:
    """Belief about a new model out of a predictor: covariance of its errors on lineages that were left out.

    Every lineage counts equally. Without `predicted` the mean is that of the fitted models (it sets the noise of an item only).

    Parameters
    ----------
    predictor : BenchmarkPredictor
    known : DataFrame or None
        Score table of one model.
    predicted : DataFrame or None
        Rows of `predictor.predict` for one model.
    """
    evaluation = predictor.evaluation_
    errors = (evaluation["actual"] - evaluation["predicted"]).rename("error")
    wide = evaluation.assign(error=errors).pivot(index="model", columns="benchmark", values="error")
    if len(wide) < _FEWEST_MODELS:
        raise VisualHeadsError(
            f"A plan needs left-out errors of at least {_FEWEST_MODELS} models; the predictor has {len(wide)}. Fit on more."
        )
    names = [str(name) for name in wide.columns]
    lineages = np.array([predictor.lineages_.get(str(model), str(model)) for model in wide.index])
    blocks = np.array([parent_benchmark(name) for name in names])
    filled, spread = complete(wide.to_numpy(dtype=np.float64), blocks, _RESIDUAL_SHRINKAGE, 0.5)
    weights = lineage_weights(lineages)
    weights = weights / weights.sum()
    matrix = (filled * weights[:, None]).T @ filled
    if spread is not None:
        matrix = matrix + np.einsum("m,mde->de", weights, spread)
    covariance = shrunk(matrix, blocks, _RESIDUAL_SHRINKAGE, 0.5)
    mean = evaluation.groupby("benchmark")["actual"].mean().loc[names].to_numpy(dtype=np.float64)
    if predicted is not None:
        by_name = predicted.set_index("benchmark")["predicted"]
        mean = by_name.loc[names].to_numpy(dtype=np.float64)
    given = _one_model(known)
    if given is not None:
        _same_units(predictor.benchmarks_, given)
    values, noise = _known_values(given, names)
    for position in np.flatnonzero(np.isfinite(values)):
        column = covariance[:, position]
        total = column[position] + noise[position]
        if total > 0:
            mean = mean + column * (values[position] - mean[position]) / total
            covariance = observe(covariance, int(position), float(noise[position]))
    return Belief(tuple(names), np.clip(mean, 0.0, 100.0), covariance)


def _one_model(known: pd.DataFrame | None) -> pd.DataFrame | None:
    if known is None:
        return None
    given = check_scores(known, "the table of known scores")
    models = given["model"].unique()
    if len(models) != 1:
        raise VisualHeadsError(
            f"A plan is for one model; the known scores name {len(models)} ({', '.join(map(str, models[:3]))}). Choose one with "
            "--model."
        )
    return given


def _same_units(reference: pd.DataFrame, given: pd.DataFrame) -> None:
    """Known scores are in the reference's metric and scale."""
    first = reference.drop_duplicates("benchmark").set_index("benchmark")
    for row in given.to_dict("records"):
        if row["benchmark"] not in first.index:
            continue
        for name in ("metric", "scale"):
            wanted = first[name].to_dict()[row["benchmark"]]
            if row[name] != wanted:
                raise VisualHeadsError(
                    f"Known scores must be in the reference's {name}; {row['benchmark']} has {row[name]} and the reference "
                    f"{wanted}. Write both tables with visual-heads scores."
                )


def _known_values(given: pd.DataFrame | None, names: list[str]) -> tuple[Array, Array]:
    """Known points [D] (NaN: not known) and the variance of each from its number of items (0 where that is not told)."""
    values, noise = np.full(len(names), np.nan), np.zeros(len(names))
    at = {name: position for position, name in enumerate(names)}
    for row in [] if given is None else given.to_dict("records"):
        position = at.get(str(row["benchmark"]))
        if position is not None:
            values[position] = 100 * float(row["score"]) / float(row["scale"])
            if not pd.isna(row["n_items"]) and row["n_items"] > 0:
                noise[position] = float(item_variance(values[[position]])[0]) / float(row["n_items"])
    return values, noise


def relative_cost(flops: Mapping[str, float], benchmarks: Sequence[str]) -> Array | None:
    """Cost of an item of each benchmark [D] in units of their mean; one that is not told costs the mean. None: none is told."""
    told = np.array([flops.get(name, np.nan) for name in benchmarks], dtype=np.float64)
    if not np.isfinite(told).any():
        return None
    mean = float(np.nanmean(told))
    return np.where(np.isfinite(told), told / mean, 1.0)


__all__ = [
    "PLAN_COLUMNS",
    "Belief",
    "belief_of_predictor",
    "belief_of_scores",
    "expected_error",
    "item_variance",
    "observe",
    "plan_items",
    "relative_cost",
]
