"""How far to trust the page, in plain words computed from the numbers. Never claims more than was measured.

Units: points. The verdict compares left-out predictions with the baseline over lineages, never over models of one training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES
from lmms_visual_heads.report.score_frames import direct_scoring_error, equivalent_items, paired_difference

Verdict = Literal["none", "too few", "not better", "worse", "better"]

MIN_LINEAGES_TO_COMPARE = 5
"""Below this many separate trainings the page does not say whether predictions beat the baseline."""

DIRECT_ITEMS = 200
"""Scoring this many items of a benchmark is what a prediction has to compete with."""

SMALL_PARAMETERS = 20_000_000
"""Language models below this are not what people choose between; the page says so."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What the page says about itself.

    Attributes
    ----------
    verdict : str
        "better", "not better", "worse" (than the baseline), "too few" (lineages to tell), "none" (nothing was evaluated).
    sentence : str
        The one sentence on how far to trust the predictions.
    details : tuple of str
        Further sentences, each with the numbers behind it.
    numbers : dict
        error, baseline_error, n_models, n_lineages, n_benchmarks, covered, n_intervals, equivalent_items, …; empty for "none".
    """

    verdict: Verdict
    sentence: str
    details: tuple[str, ...] = ()
    numbers: dict[str, float] | None = None


def trust(
    evaluation: pd.DataFrame | None,
    *,
    level: float | None = None,
    small: bool = False,
    probe_documents: int | None = None,
    benchmark_prompts: int | None = None,
    again: bool = False,
    predicted: bool = False,
) -> Trust:
    """Judge predictions by their leave-one-lineage-out errors.

    Parameters
    ----------
    evaluation : DataFrame or None
        As `score_frames.evaluation_frame` gives it; None without a predictor.
    level : float or None
        Nominal level of the intervals, 0..1.
    small : bool
        Whether the models are the embedded small checkpoints.
    probe_documents : int or None
        Documents of the probe for one model: forward passes that direct scoring could have had instead; None where no
        prediction needs the probe.
    benchmark_prompts : int or None
        Prompts of a benchmark that a model answered for its predictions, labels unused; None where there were none.
    again : bool
        Whether some of them are run again with other images or with heads knocked out.
    predicted : bool
        Whether the page shows predictions at all.

    Returns
    -------
    Trust
    """
    if evaluation is None or evaluation.empty:
        if predicted:
            return Trust(
                "none", "Nothing is known about how far to trust these predictions: no left-out errors came with them."
            )
        return Trust("none", "No prediction was checked against a score here, so this page says nothing about scores.")
    numbers = paired_difference(evaluation)
    numbers["n_benchmarks"] = int(evaluation["benchmark"].nunique())
    verdict = _verdict(numbers)
    sentence = _sentence(verdict, numbers, small)
    details = [
        _difference(numbers),
        _intervals(numbers, level),
        *_direct(evaluation, numbers, probe_documents, benchmark_prompts, again),
    ]
    return Trust(verdict, sentence, tuple(text for text in details if text), numbers)


def is_small(parameters: Sequence[float | None], benchmarks: Sequence[str]) -> bool:
    """Whether all models are tiny and all benchmarks are drawn scenes: the embedded checkpoints, not what people use."""
    known = [value for value in parameters if value is not None and np.isfinite(value)]
    drawn = all(name.startswith("scenes") for name in benchmarks)
    return bool(known) and len(known) == len(parameters) and max(known) < SMALL_PARAMETERS and drawn


def _verdict(numbers: dict[str, float]) -> Verdict:
    if numbers["n_lineages"] < MIN_LINEAGES_TO_COMPARE:
        return "too few"
    if numbers["difference_high"] < 0:
        return "better"
    return "worse" if numbers["difference_low"] > 0 else "not better"


def _sentence(verdict: Verdict, numbers: dict[str, float], small: bool) -> str:
    what = (
        f"{_count(numbers['n_models'], 'small model')} trained on drawn scenes"
        if small
        else _count(numbers["n_models"], "model")
    )
    who = f"{what} from {_count(numbers['n_lineages'], 'separate training')}"
    error, baseline = f"{numbers['error']:.1f}", f"{numbers['baseline_error']:.1f}"
    left_out = "predicting each with its own training left out"
    if verdict == "too few":
        return (
            f"Take the predictions as an illustration only: {who} are too few to tell whether they beat the baseline "
            f"(MAE so far: {error} points, the baseline {baseline})."
        )
    if verdict == "better":
        return (
            f"Trust a prediction to about {error} points: that is its MAE over {who}, {left_out}. "
            f"The baseline, the mean of the others, has {baseline}."
        )
    than = "worse than" if verdict == "worse" else "no better than"
    return (
        f"Do not choose between models by these predictions: over {who}, {left_out}, their MAE is {error} points. "
        f"That is {than} the baseline, the mean of the others ({baseline})."
    )


def _difference(numbers: dict[str, float]) -> str:
    if not np.isfinite(numbers["difference_low"]):
        return ""
    return (
        f"Difference to the baseline over {_count(numbers['n_benchmarks'], 'benchmark')}: {_signed(numbers['difference'])} points "
        f"(95 % interval {_signed(numbers['difference_low'])} to {_signed(numbers['difference_high'])}, "
        "separate trainings drawn with replacement; negative is better than the baseline)."
    )


def _intervals(numbers: dict[str, float], level: float | None) -> str:
    if not numbers["n_intervals"]:
        return "The left-out predictions carry no intervals, so nothing is known about how sure they are."
    held = f"{numbers['covered']:.0f} of {numbers['n_intervals']:.0f} left-out scores lay inside their intervals"
    if level is None or not np.isfinite(level):
        return f"{held}."
    if numbers["n_lineages"] < CERTIFIED_LINEAGES:
        return (
            f"{held}, but {_count(numbers['n_lineages'], 'separate training')} cannot certify the {level:.0%} level: "
            f"that takes at least {CERTIFIED_LINEAGES}. Read the intervals as rough."
        ).replace("%", " %")
    return f"{held}; they were made to hold {level:.0%}.".replace("%", " %")


def _direct(
    evaluation: pd.DataFrame,
    numbers: dict[str, float],
    probe_documents: int | None,
    benchmark_prompts: int | None,
    again: bool,
) -> list[str]:
    """What direct scoring of a few items would have done instead; changes `numbers`."""
    error = numbers["error"]
    few_hundred = direct_scoring_error(evaluation, DIRECT_ITEMS)
    items = numbers["equivalent_items"] = equivalent_items(evaluation, error)
    numbers["direct_items"], numbers["direct_error"] = float(DIRECT_ITEMS), few_hundred
    sentences = []
    buy = "; where a benchmark's labels are at hand, that is the better buy" if few_hundred < error else ""
    if np.isfinite(items):
        worth = "fewer than one item" if items < 1 else f"about {_count(round(items), 'item')}"
        sentences.append(
            f"A prediction is worth {worth} of direct scoring per benchmark; {DIRECT_ITEMS} items would have an MAE of about "
            f"{few_hundred:.1f} points{buy}."
        )
    if probe_documents:
        each = probe_documents / numbers["n_benchmarks"]
        same = numbers["same_cost_error"] = direct_scoring_error(evaluation, each)
        better = "direct scoring is" if same < error else "the probe is"
        sentences.append(
            f"At the probe's cost ({probe_documents:,} questions) one could score {each:,.0f} items of each benchmark "
            f"instead, with an MAE of about {same:.1f} points; at that price {better} the better buy."
        )
    if benchmark_prompts:
        labelled = numbers["benchmark_prompts_error"] = direct_scoring_error(evaluation, benchmark_prompts)
        sentences.append(
            f"For these predictions a model answers {_count(benchmark_prompts, 'prompt')} of a benchmark, labels unused"
            f"{', and some again with other images or with heads knocked out' if again else ''}. Scored with their labels, the "
            f"same prompts would have an MAE of about {labelled:.1f} points; with labels at hand use both: visual-heads predict "
            "--items."
        )
    return sentences


def _count(n: float, word: str) -> str:
    return f"{n:,.0f} {word}{'' if n == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
