"""Frames about scores: predictions, left-out predictions, errors. Every number of sections 2 and 3 of the page.

Never draws, never fits. Units: points, 100 * score / the metric's best value, as the predictor gives them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lmms_visual_heads import schema
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.report.formatting import in_words, split_flags

EVALUATION_COLUMNS = ("model", "lineage", "benchmark", "actual", "predicted", "low", "high", "baseline")
BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_LEVEL = 0.95


def points(scores: pd.DataFrame) -> pd.Series:
    """Scores of a score table in points: 100 * score / scale."""
    return 100.0 * scores["score"].astype(float) / scores["scale"].astype(float)


def prediction_frame(predictions: pd.DataFrame, scores: pd.DataFrame | None = None) -> pd.DataFrame:
    """Predictions beside the actual scores where they are known.

    Parameters
    ----------
    predictions : DataFrame
        `schema.PREDICTION_COLUMNS`; predictions of an earlier version have no method.
    scores : DataFrame or None
        Score table.

    Returns
    -------
    DataFrame
        The prediction columns, then actual, n_items (behind it), error and baseline_error (absolute, points), inside
        (1 where actual lies in [low, high], 0 where not, missing where unknown), flags_in_words.

    Raises
    ------
    VisualHeadsError
        When columns are missing.
    """
    predictions = predictions if "method" in predictions.columns else predictions.assign(method="")
    _require(predictions, schema.PREDICTION_COLUMNS, "Predictions")
    frame = predictions[list(schema.PREDICTION_COLUMNS)].copy()
    for name in ("predicted", "low", "high", "level", "baseline"):
        frame[name] = frame[name].astype(float)
    frame["flags"] = [_flag_text(flags) for flags in frame["flags"]]
    if scores is None:
        frame["actual"], frame["n_items"] = np.nan, np.nan
    else:
        known = scores.assign(actual=points(scores))[["model", "benchmark", "actual", "n_items"]]
        known = known.drop_duplicates(["model", "benchmark"], keep="first")
        frame = frame.merge(known, on=["model", "benchmark"], how="left")
        frame["n_items"] = frame["n_items"].astype(float)
    frame["error"] = (frame["predicted"] - frame["actual"]).abs()
    frame["baseline_error"] = (frame["baseline"] - frame["actual"]).abs()
    frame["inside"] = _inside(frame)
    frame["flags_in_words"] = [in_words(split_flags(flags)) for flags in frame["flags"]]
    return frame


def evaluation_frame(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Left-out predictions with their errors; rows without an actual or a predicted score are left out.

    Returns
    -------
    DataFrame
        `EVALUATION_COLUMNS`, then error, baseline_error (absolute, points), inside (1, 0 or missing).
    """
    _require(evaluation, EVALUATION_COLUMNS, "The predictor's evaluation")
    frame = evaluation[list(EVALUATION_COLUMNS)].copy()
    for name in ("actual", "predicted", "low", "high", "baseline"):
        frame[name] = frame[name].astype(float)
    frame = frame.dropna(subset=["actual", "predicted", "baseline"]).reset_index(drop=True)
    frame["error"] = (frame["predicted"] - frame["actual"]).abs()
    frame["baseline_error"] = (frame["baseline"] - frame["actual"]).abs()
    frame["inside"] = _inside(frame)
    return frame


def error_frame(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error per benchmark, predictor and baseline, with the paired difference over lineages.

    Parameters
    ----------
    evaluation : DataFrame
        As `evaluation_frame` gives it.

    Returns
    -------
    DataFrame
        benchmark, n_models, n_lineages, error, baseline_error, difference (error - baseline_error), difference_low,
        difference_high (95 % interval, lineages drawn with replacement; missing below two lineages), covered, n_intervals.
    """
    names = ["benchmark", "n_models", "n_lineages", "error", "baseline_error", "difference", "difference_low"]
    rows = [
        {"benchmark": benchmark, **paired_difference(part)}
        for benchmark, part in evaluation.groupby("benchmark", sort=False)
    ]
    return pd.DataFrame(rows, columns=[*names, "difference_high", "covered", "n_intervals"])


def method_frame(methods: pd.DataFrame | None) -> pd.DataFrame | None:
    """What the scores could be predicted from, and how well that did beside the baseline, the best first; None without a choice.

    Parameters
    ----------
    methods : DataFrame or None
        A predictor's `methods_`: benchmark, method, error, baseline_error, chosen.

    Returns
    -------
    DataFrame
        method, words, n_benchmarks (it was tried on), error and baseline_error (means over these on left-out trainings, points),
        chosen_for (names, joined by commas).
    """
    if methods is None:
        return None
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    rows = [
        {
            "method": name,
            "words": METHOD_WORDS.get(str(name), str(name)),
            "n_benchmarks": part["benchmark"].nunique(),
            "error": part["error"].mean(),
            "baseline_error": part["baseline_error"].mean(),
            "chosen_for": ", ".join(part["benchmark"][part["chosen"].astype(bool)]),
        }
        for name, part in methods.groupby("method", sort=False)
    ]
    columns = ["method", "words", "n_benchmarks", "error", "baseline_error", "chosen_for"]
    frame = pd.DataFrame(rows, columns=columns)
    # Not every kind could be tried on every benchmark, and some are easier than others.
    return frame.loc[(frame["error"] / frame["baseline_error"]).sort_values(kind="stable").index].reset_index(drop=True)


def paired_difference(evaluation: pd.DataFrame) -> dict[str, float]:
    """Error, baseline's error and their difference over the rows given, every lineage counting the same.

    The interval draws lineages with replacement (2,000 draws, fixed seed), because models of one training are not independent.
    """
    lineages = evaluation["lineage"]
    difference = evaluation["error"] - evaluation["baseline_error"]
    per_lineage = difference.groupby(lineages, sort=True).mean().to_numpy(float)
    low = high = float("nan")
    if len(per_lineage) >= 2:
        drawn = np.random.default_rng(0).integers(0, len(per_lineage), size=(BOOTSTRAP_DRAWS, len(per_lineage)))
        tail = (1 - BOOTSTRAP_LEVEL) / 2
        low, high = (float(value) for value in np.quantile(per_lineage[drawn].mean(axis=1), [tail, 1 - tail]))
    inside = evaluation["inside"].dropna()
    return {
        "n_models": int(evaluation["model"].nunique()),
        "n_lineages": len(per_lineage),
        "error": lineage_mean(evaluation["error"], lineages),
        "baseline_error": lineage_mean(evaluation["baseline_error"], lineages),
        "difference": float(per_lineage.mean()),
        "difference_low": low,
        "difference_high": high,
        "covered": float(inside.sum()),
        "n_intervals": len(inside),
    }


def lineage_mean(values: pd.Series, lineages: pd.Series) -> float:
    """Mean of `values` in which every lineage counts the same, as in the predictor's own table of errors."""
    return float(values.groupby(lineages).mean().mean())


def direct_scoring_error(evaluation: pd.DataFrame, n_items: float) -> float:
    """Mean absolute error, in points, of scoring `n_items` random items instead of all of them.

    For right-or-wrong items the sampling error of a share p has standard deviation sqrt(p (1 - p) / n); the mean absolute
    value of a normal deviate is sqrt(2 / pi) of it. Over the actual scores (points), every lineage counting the same.
    """
    share = (evaluation["actual"].astype(float) / 100.0).clip(0.0, 1.0)
    return lineage_mean((2.0 / np.pi * share * (1.0 - share) / n_items) ** 0.5 * 100.0, evaluation["lineage"])


def equivalent_items(evaluation: pd.DataFrame, error: float) -> float:
    """Items of each benchmark whose direct scoring has an MAE of `error` points; inverse of `direct_scoring_error`."""
    if not error > 0:
        return float("inf")
    return (direct_scoring_error(evaluation, 1.0) / error) ** 2


def _inside(frame: pd.DataFrame) -> pd.Series:
    known = frame[["actual", "low", "high"]].notna().all(axis=1)
    return ((frame["actual"] >= frame["low"]) & (frame["actual"] <= frame["high"])).astype(float).where(known)


def _flag_text(flags: object) -> str:
    if flags is None or (isinstance(flags, float) and np.isnan(flags)):
        return ""
    return flags if isinstance(flags, str) else ";".join(str(flag) for flag in flags)  # type: ignore[attr-defined]


def _require(frame: pd.DataFrame, names: tuple[str, ...], what: str) -> None:
    lacking = [name for name in names if name not in frame.columns]
    if lacking:
        raise VisualHeadsError(
            f"{what} must have the columns {', '.join(names)}; {', '.join(lacking)} is missing. "
            "Make the table again with this version."
        )
