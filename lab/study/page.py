"""The page of a study: tables out of frames, few words. Nothing is fitted or drawn here. Units: points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lab.study.contestants import PRODUCT
from lab.study.settings import OWN, PAID, PROMPTS
from lab.study.summary import NEAR_CHANCE
from lmms_visual_heads.prediction.methods import METHOD_WORDS

WORDS = {
    PRODUCT: "**the product**",
    "mean": "mean of the other trainings",
    "median": "median of the other trainings",
    "chance": "say chance",
    "direct": "direct scoring",
    "direct, shrunk": "direct scoring, drawn to the references' mean",
    "item response": "item response model, mixed with direct scoring",
    "last score": "last scored checkpoint",
    "last score + gain": "last scored checkpoint + the usual gain",
    **{name: f"only {words}" for name, words in METHOD_WORDS.items() if name != "mean"},
}
"""What the tables call a contestant."""

SETTING_WORDS = {
    "known_training": "known training",
    "temperature": "hidden temperature",
    "corrupted": "corrupted images",
    "stronger": "stronger than every reference",
}
_ORDER = list(WORDS)


@dataclass(frozen=True)
class StudyFrames:
    """Everything that the page says, as frames.

    Attributes
    ----------
    facts : DataFrame
        set, trainings, checkpoints asked about, cells, shares of learnt cells and of cells at chance.
    table, differences, benchmarks, strata : DataFrame
        See `summary`.
    which : dict
        Frames of `head_reliability` by name.
    notes : tuple of str
    """

    facts: pd.DataFrame
    table: pd.DataFrame
    differences: pd.DataFrame
    benchmarks: pd.DataFrame
    strata: pd.DataFrame
    which: Mapping[str, pd.DataFrame]
    notes: tuple[str, ...] = ()


def page(frames: StudyFrames, command: str) -> str:
    """README.md of a study."""
    table = frames.table
    new = table[(table["setting"] == "new_training")]
    paid = table[table["setting"] == "equal_cost"]
    asked = [name for name in dict.fromkeys(table["set"])]
    first = asked[0]
    parts = [
        "# The study: who predicts the scores of new trainings",
        "Small models trained on drawn scenes; nothing is claimed about models that were not measured. One judge, one interface: "
        "the product as a user holds it, each of its methods alone, and baselines. MAE in points; brackets are 95 % intervals over "
        "trainings. Judged are final checkpoints that were not broken on purpose, on benchmarks that do not ask for counting. "
        f"`{OWN}` is judged by leaving its trainings out, every other set after one fit on all of `{OWN}`.",
        f"Remake: `{command}`",
        "## The sets",
        markdown(frames.facts),
        f"A cell is one checkpoint on one benchmark. *Learnt*: more than {NEAR_CHANCE:g} points above chance; *at chance*: within "
        f"{NEAR_CHANCE:g} points of it; the rest lies below. Chance is the share of the most frequent answer.",
        f"## The product, and labels: {PROMPTS} answered prompts of each benchmark, some of them labelled",
        _by_labels(new, PRODUCT, mae_cell),
        "The same labelled items alone, drawn to the references' mean. That costs less: the other prompts are not answered.",
        _by_labels(new, "direct, shrunk", mae_cell),
        "The item response model on the same items, mixed with direct scoring.",
        _by_labels(new, "item response", mae_cell),
        "Scores inside the product's 90 % intervals; brackets: 95 %, each training one trial.",
        _by_labels(new, PRODUCT, coverage_cell),
        "## Learnt cells apart",
        "MAE on learnt cells / on cells at chance.",
        _by_set(new[new["labels"] == 0], split_cell, (PRODUCT, "mean", "median", "chance")),
        _by_labels(new, PRODUCT, split_cell),
        f"## Without labels: everyone, {PROMPTS} answered prompts",
        _by_set(new[new["labels"] == 0], mae_cell),
        f"## Equal cost: only so many prompts of each benchmark are answered (`{first}`)",
        _equal_cost(paid[paid["set"] == first]),
        "## Other settings",
        *[
            f"{words.capitalize()}:\n\n{_by_question(table[table['setting'] == name])}"
            for name, words in SETTING_WORDS.items()
            if (table["setting"] == name).any()
        ],
        "## Differences, training by training",
        "Below 0 the first has the smaller MAE.",
        _differences(frames.differences),
        "## Trainings that were changed on purpose",
        _strata(frames.strata),
        "## Benchmark by benchmark, the counting ones too",
        markdown(frames.benchmarks.round(1)),
        "## Which heads",
        *[f"{name}:\n\n{markdown(frame.round(2))}" for name, frame in frames.which.items()],
        "## Notes",
        "\n".join(f"- {note}" for note in frames.notes) or "None.",
    ]
    return "\n\n".join(parts) + "\n"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; missing cells are a dash."""
    if frame.empty:
        return "Not measured."
    head = "| " + " | ".join(str(name) for name in frame.columns) + " |"
    rule = "|" + "---|" * len(frame.columns)
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join([head, rule, *rows])


def mae_cell(row: Mapping[Any, Any]) -> str:
    """MAE with its interval."""
    return f"{row['mae']:.1f} [{row['mae_low']:.1f}, {row['mae_high']:.1f}]"


def coverage_cell(row: Mapping[Any, Any]) -> str:
    """Coverage with its interval, and half the width."""
    return f"{row['coverage']:.0%} [{row['coverage_low']:.0%}, {row['coverage_high']:.0%}], ±{row['width'] / 2:.1f}"


def split_cell(row: Mapping[Any, Any]) -> str:
    """MAE of learnt cells and of those at chance."""
    return f"{row['mae_learnt']:.1f} / {row['mae_at_chance']:.1f}"


Cell = Callable[[Mapping[Any, Any]], str]


def _by_labels(table: pd.DataFrame, contestant: str, cell: Cell) -> str:
    """One row per set, one column per number of labels."""
    part = table[table["contestant"] == contestant]
    return _grid(part, "set", "labels", cell, lambda n: f"{n} labels" if n else "no label")


def _by_set(table: pd.DataFrame, cell: Cell, contestants: Sequence[str] = tuple(_ORDER)) -> str:
    """One row per contestant, one column per set."""
    part = table[table["contestant"].isin(contestants)]
    return _grid(part.assign(contestant=part["contestant"].map(WORDS)), "contestant", "set", cell, str)


def _by_question(table: pd.DataFrame) -> str:
    """One row per contestant and number of labels, one column per set."""
    labels = table["labels"].map(lambda n: f", {n} labels" if n else "")
    part = table.assign(contestant=table["contestant"].map(WORDS) + labels)
    return _grid(part, "contestant", "set", lambda row: f"{mae_cell(row)}, {row['coverage']:.0%} inside", str)


def _equal_cost(table: pd.DataFrame) -> str:
    """One row per contestant, without labels and with all of them; one column per number of prompts."""
    shown = ("direct", "direct, shrunk", "item response", PRODUCT)
    part = table[table["contestant"].isin(shown)]
    named = part["contestant"].map(WORDS) + part["labels"].map(lambda n: ", all labelled" if n else ", none labelled")
    columns = {count: f"{count} prompts" for count in PAID}
    return _grid(part.assign(contestant=named), "contestant", "prompts", mae_cell, lambda n: columns.get(n, str(n)))


def _grid(table: pd.DataFrame, down: str, across: str, cell: Cell, head: Callable[[Any], str]) -> str:
    if table.empty:
        return "Not measured."
    cells = table.assign(text=[cell(row) for row in table.to_dict("records")])
    wide = cells.pivot_table(index=down, columns=across, values="text", aggfunc="first", sort=False)
    order = dict.fromkeys(table[across]) if across == "set" else sorted(set(table[across]))
    return markdown(wide[list(order)].rename(columns=head).reset_index().fillna("-"))


def _differences(found: pd.DataFrame) -> str:
    rows = [
        {
            "set": row["set"],
            "setting": row["setting"].replace("_", " ") + (f", {row['labels']} labels" if row["labels"] else ""),
            "contestant": WORDS[row["contestant"]],
            "beside": WORDS[row["beside"]],
            "MAE": f"{row['mae']:.1f} / {row['mae_beside']:.1f}",
            "difference": f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]",
            "better on": f"{row['better_on']} of {row['n_trainings']}",
        }
        for row in found[found["setting"].isin(("new_training", "known_training"))].to_dict("records")
    ]
    return markdown(pd.DataFrame(rows))


def _strata(strata: pd.DataFrame) -> str:
    if strata.empty:
        return "Not measured."
    return _grid(strata, "stratum", "set", lambda row: f"{mae_cell(row)}, {row['coverage']:.0%} inside", str)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


__all__ = ["SETTING_WORDS", "WORDS", "StudyFrames", "coverage_cell", "mae_cell", "markdown", "page", "split_cell"]
