"""What was judged -> frames of numbers: MAE with intervals, learnt cells apart, coverage counted by trainings, paired differences.

The training is the unit everywhere. A cell is one final checkpoint on one benchmark. Units: points. Never draws, never fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lab.study import metrics
from lab.study.contestants import PRODUCT

KEY = ["set", "setting", "prompts", "labels", "contestant"]

NEAR_CHANCE = 5.0
"""A score at most this far from guessing, points, is at chance; one above that is learnt, one below is neither."""

PAIRS = (
    ("probe_heads", "median"), ("own_causal", "median"), ("own_causal", "probe_heads"), ("own_answers_trees", "own_causal"),
    ("own_agreement_trees", "own_answers_trees"), ("own_answers_heads", "own_answers_curve"),
    ("own_answers_causal", "own_answers_free"), ("probe_heads", "training"), ("probe_heads", "probe_accuracy"),
    ("product", "mean"), ("product", "median"), ("product", "chance"), ("product", "direct, shrunk"), ("product", "item response"),
    ("product", "last score + gain"),
)  # fmt: skip
"""What is compared training by training: a contestant, and whom it stands beside."""


def primary(judged: pd.DataFrame) -> pd.DataFrame:
    """Trainings that were not broken on purpose, benchmarks that do not ask for counting; as `with_errors`."""
    part = judged[(judged["stratum"] != "broken") & ~judged["counting"].astype(bool)]
    return with_errors(part)


def with_errors(judged: pd.DataFrame) -> pd.DataFrame:
    """With the absolute error, whether the score is learnt or at chance, and whether it lies in its interval."""
    inside = (judged["actual"] >= judged["low"]) & (judged["actual"] <= judged["high"])
    above = judged["actual"] - judged["chance"]
    return judged.assign(
        error=(judged["predicted"] - judged["actual"]).abs(),
        learnt=above > NEAR_CHANCE,
        at_chance=above.abs() <= NEAR_CHANCE,
        inside=inside,
    )


def summary(judged: pd.DataFrame, by: Sequence[str] = KEY) -> pd.DataFrame:
    """One row per set, setting, prompts, labels and contestant.

    Parameters
    ----------
    judged : DataFrame
        As `primary` gives it.
    by : sequence of str
        What a row is about.

    Returns
    -------
    DataFrame
        `by`; mae with mae_low and mae_high (95 %, trainings drawn with replacement); mae_learnt and mae_at_chance;
        coverage with coverage_low and coverage_high (95 %, each training one trial); width; rho (Spearman's, over trainings, mean
        over benchmarks); n_trainings, n_cells; learnt and at_chance (shares of the cells).
    """
    rows = []
    for key, part in judged.groupby(list(by), sort=False, observed=True):
        training = part["training"].to_numpy(dtype=str)
        mae = metrics.bootstrap(metrics.by_lineage(part["error"], training))
        covered = metrics.coverage(part["inside"].astype(float), training)
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "mae": mae.value,
                "mae_low": mae.low,
                "mae_high": mae.high,
                "mae_learnt": float(part["error"][part["learnt"]].mean()),
                "mae_at_chance": float(part["error"][part["at_chance"]].mean()),
                "coverage": covered.value,
                "coverage_low": covered.low,
                "coverage_high": covered.high,
                "width": float(metrics.by_lineage(part["high"] - part["low"], training).mean()),
                "rho": metrics.rank_correlations(_wide(part, "actual"), _wide(part, "predicted"))[0],
                "n_trainings": part["training"].nunique(),
                "n_cells": int(part.groupby(["model", "benchmark"]).ngroups),
                "learnt": float(part["learnt"].mean()),
                "at_chance": float(part["at_chance"].mean()),
            }
        )
    return pd.DataFrame(rows)


def _wide(part: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    """A column as a matrix: trainings down, benchmarks across, means over draws."""
    return part.pivot_table(index="training", columns="benchmark", values=column, sort=True).to_numpy(dtype=float)


def differences(judged: pd.DataFrame, pairs: Iterable[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """Paired differences of the MAE, training by training; what uses no label stands beside what does at the same prompts.

    Returns
    -------
    DataFrame
        set, setting, prompts, labels, contestant, beside, mae, mae_beside, difference (mae - mae_beside) with low and high (95 %,
        trainings drawn with replacement), better_on (trainings on which `contestant` errs less), n_trainings.
    """
    means = judged.groupby([*KEY, "training"], sort=False, observed=True)["error"].mean()
    rows = []
    for key, part in means.groupby(KEY[:-1], sort=False):
        wide = part.reset_index().pivot(index="training", columns="contestant", values="error")
        for contestant, beside in pairs:
            if contestant not in wide or beside not in wide:
                continue
            both = wide[[contestant, beside]].dropna()
            gap = both[contestant] - both[beside]
            value, low, high = metrics.bootstrap(gap.to_numpy(dtype=float))
            rows.append(
                {
                    **dict(zip(KEY[:-1], key, strict=True)),
                    "contestant": contestant,
                    "beside": beside,
                    "mae": float(both[contestant].mean()),
                    "mae_beside": float(both[beside].mean()),
                    "difference": value,
                    "low": low,
                    "high": high,
                    "better_on": int((gap < 0).sum()),
                    "n_trainings": len(both),
                }
            )
    return pd.DataFrame(rows)


def by_benchmark(judged: pd.DataFrame) -> pd.DataFrame:
    """MAE of the product, the mean and guessing on every benchmark, new trainings without labels; counting benchmarks, too."""
    part = with_errors(
        judged[(judged["stratum"] != "broken") & (judged["setting"] == "new_training") & (judged["labels"] == 0)]
    )
    part = part[part["contestant"].isin((PRODUCT, "mean", "chance"))]
    table = part.pivot_table(index=["set", "benchmark"], columns="contestant", values="error", sort=False)
    spread = part[part["contestant"] == PRODUCT].groupby(["set", "benchmark"], sort=False)
    facts = spread.agg(actual=("actual", "mean"), spread=("actual", "std"), learnt=("learnt", "mean"))
    return facts.join(table).reset_index()


def by_stratum(judged: pd.DataFrame) -> pd.DataFrame:
    """`summary` of the product by what was done to a training on purpose, new trainings without labels."""
    part = judged[~judged["counting"].astype(bool) & (judged["setting"] == "new_training") & (judged["labels"] == 0)]
    return summary(with_errors(part[part["contestant"] == PRODUCT]), ["set", "stratum"])


__all__ = [
    "KEY",
    "NEAR_CHANCE",
    "PAIRS",
    "by_benchmark",
    "by_stratum",
    "differences",
    "primary",
    "summary",
    "with_errors",
]
