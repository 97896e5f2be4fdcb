"""The page of the zoo study: plain words around the tables. Every number comes out of a frame; nothing is fitted or drawn here.

Units: points, forward passes per benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lab.study.methods.registry import BEST_LABEL_FREE, BEST_LABELLED
from lab.study.summary import crossing, curve, passes_for
from lab.study.tables import SETTING_WORDS, ZOO

PAGE_SETTINGS = (
    "new_lineage", "known_training", "new_benchmark", "shift_temperature", "shift_corrupted", "shift_stronger",
)  # fmt: skip

_SHOWN: tuple[tuple[str, float | None], ...] = (
    ("mean of points", None), ("median of points", None),
    ("mean", None), ("metadata", None), ("training loss", None), ("probe accuracy", None), ("cheap", None),
    ("best other benchmark", None), ("probe heads", None), ("probe heads, process", None), ("probe causal heads", None),
    ("probe answers", None), ("own heads", None), ("own causal heads", None), ("all heads cut", None),
    ("raw confidence", 256.0), ("own answers, one pass", 16.0), ("own answers, one pass", 256.0), ("own answers", None),
    ("own answers, process", None), ("own answers + own heads", None), ("own answers + own causal heads", None),
    ("cheap + probe heads", None), ("cheap + own answers", None), ("everything without labels", None),
    ("training loss, forest", None), ("probe accuracy, forest", None), ("cheap, forest", None), ("probe heads, forest", None),
    ("own heads, forest", None), ("own causal heads, forest", None), ("own answers, one pass, forest", 16.0),
    ("own answers, one pass, forest", 256.0), ("own answers, forest", None), ("own answers + own heads, forest", None),
    ("own answers + own causal heads, forest", None), ("cheap + probe heads, forest", None),
    ("everything without labels, forest", None), ("raw agreement", 16.0), ("raw agreement", 256.0), ("agreement, forest", None),
    ("answers + agreement, forest", None), (BEST_LABEL_FREE, 16.0), (BEST_LABEL_FREE, 64.0), (BEST_LABEL_FREE, 256.0),
    ("own answers + agreement, forest", None), ("answers + agreement + own heads, forest", None),
    ("answers + agreement + own causal heads, forest", None),
    ("last score", None), ("last score + training loss", None), ("last score + probe accuracy", None),
    ("last score + probe heads", None), ("last score + own heads", None), ("last score + own causal heads", None),
    ("last score + own answers", None),
)  # fmt: skip


@dataclass(frozen=True)
class StudyFrames:
    """Everything that the page says, as frames.

    Attributes
    ----------
    facts : dict
        Counts of the zoo: lineages, checkpoints, benchmarks, items, primary, floor.
    table, counting, strata, benchmarks, heads, labels, targets : DataFrame
        See `study_tables` and `trial_frames`.
    which : dict
        Frames of `which_heads`: split_half, stability, depths, features, repeats.
    lock_box : DataFrame or None
    notes : tuple of str
    """

    facts: Mapping[str, Any]
    table: pd.DataFrame
    counting: pd.DataFrame
    strata: pd.DataFrame
    benchmarks: pd.DataFrame
    heads: pd.DataFrame
    labels: pd.DataFrame
    targets: pd.DataFrame
    which: Mapping[str, pd.DataFrame]
    lock_box: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()


def page(frames: StudyFrames, command: str) -> str:
    """README.md of the study."""
    facts = frames.facts
    parts = [
        "# Predicting scores of small models: the study of the zoo",
        f"All numbers here are about {ZOO} ({facts['lineages']} separate trainings, {facts['checkpoints']} checkpoints, "
        f"{facts['benchmarks']} benchmarks of {facts['items']} items). Nothing is claimed about models that were not measured. "
        "The unit is the training (lineage): what is predicted is left out with all its checkpoints, and what a method "
        "chooses it chooses inside the others. Which forests there are, agreement, the two views and how labels are trusted were "
        "chosen on this zoo as a whole: its own numbers are a little kind to them, the lock-box is free of that. "
        "Scored are final checkpoints of the "
        f"{facts['primary']} trainings that were not broken on purpose; counting benchmarks stand apart. Error: mean absolute "
        "error in points; brackets: 95 % intervals, lineages drawn with replacement. The scores themselves are known to "
        f"{facts['floor']:.1f} points only (items' sampling). `mean` averages logits, as the regressions do; `mean of points` and "
        "`median of points` are the constants to beat. Labelled items are drawn once or a few times, the same for all models: "
        "brackets do not hold the luck of that draw. Passes of the reference models are not counted.",
    ]
    if frames.lock_box is not None:
        parts.insert(1, _lock_box(frames.lock_box))
    parts += [
        "## In words",
        "\n".join(f"- {sentence}" for sentence in sentences(frames)),
        "## Targets",
        markdown(frames.targets.assign(met=frames.targets["met"].map({True: "met", False: "**missed**"}).fillna("-"))),
        "## Error against forward passes",
        "![Error against forward passes per benchmark](passes.svg)",
        _passes_table(frames.table),
        "## Methods and settings",
        _settings_table(frames.table),
        "R2, rank correlations, regret, interval score, coverage and the permutation test of every method, budget and setting: "
        "[settings.csv](settings.csv).",
        _quality_table(frames.table, "new_lineage"),
        "## Do heads matter?",
        "Difference: error of the first method less that of the second, lineage by lineage; below 0 the first errs less.",
        "![Differences with intervals](heads.svg)",
        _difference_table(frames.heads),
        "## Labelled items",
        _difference_table(frames.labels[frames.labels["setting"] != "known_training"]),
        "## Which heads",
        *_which(frames.which),
        "## Coverage of 90 % intervals",
        "Clopper and Pearson's 95 % interval, each lineage one trial.",
        _coverage_table(frames.table),
        "## Trainings that were changed on purpose",
        _strata_table(frames.strata),
        "## Counting benchmarks apart",
        _short_table(frames.counting),
        "## Benchmark by benchmark",
        markdown(frames.benchmarks.reset_index().round(1)),
        "## Trainings repeated from scratch",
        _repeats(frames.which["repeats"]),
        "## Notes",
        "\n".join(f"- {note}" for note in dict.fromkeys(frames.notes)) or "None.",
        f"Remake: `{command}`",
    ]
    return "\n\n".join(parts) + "\n"


def sentences(frames: StudyFrames) -> list[str]:
    """What the tables say, generated: crossing points, what heads add, what labels add."""
    table, said = frames.table, []
    for setting in PAGE_SETTINGS:
        free = curve(table, setting, BEST_LABEL_FREE)
        direct = curve(table, setting, "direct scoring, shrunk")
        direct = direct if len(direct) else curve(table, setting, "direct scoring")
        if free.empty or direct.empty:
            continue
        error = float(free["error"].iloc[-1])
        needed = passes_for(direct, error)
        cross = crossing(table, setting, BEST_LABEL_FREE, "direct scoring, shrunk")
        first = (
            f"{SETTING_WORDS[setting].capitalize()}, {ZOO}: {BEST_LABEL_FREE} (no labels, {free['passes'].iloc[-1]:.0f} prompts) "
            f"errs by {error:.1f} points; direct scoring needs {_passes(needed)} labelled items of each benchmark to do as well."
        )
        second = ""
        if np.isfinite(cross):
            second = f" At equal cost, scoring items is the better buy from {_passes(cross)} passes per benchmark on."
        elif cross == np.inf:
            second = " At equal cost, scoring items is not the better buy anywhere up to 512 passes."
        said.append(first + second)
    for name in ("probe heads, forest", "own heads, forest", "own causal heads, forest", "all heads cut"):
        part = curve(table, "new_lineage", name)
        direct = curve(table, "new_lineage", "direct scoring, shrunk")
        if len(part) and len(direct):
            error, cost = float(part["error"].iloc[-1]), float(part["passes"].iloc[-1])
            needed = passes_for(direct, error)
            verdict = "so scoring items is the better buy" if needed < cost else "so it is the better buy"
            said.append(
                f"New lineage, {ZOO}: {name} err by {error:.1f} points at {cost:.0f} passes per benchmark; scoring "
                f"{_passes(needed)} items does as well, {verdict}."
            )
    for row in frames.heads[frames.heads["setting"].isin(["new_lineage", "known_training"])].to_dict("records"):
        if (row["method"], row["beside"]) in _TOLD:
            said.append(_told(row))
    for row in frames.labels[frames.labels["setting"] == "new_lineage"].to_dict("records"):
        if row["beside"].startswith("direct") and row["error_beside"] > 0 and _told_passes(row["method"]):
            said.append(
                f"New lineage, {ZOO}: {row['method']} err by {row['error']:.2f} points, shrunk direct scoring at the same cost by "
                f"{row['error_beside']:.2f} (ratio {row['error'] / row['error_beside']:.2f}; difference {row['difference']:+.2f} "
                f"[{row['low']:+.2f}, {row['high']:+.2f}])."
            )
    return said


_TOLD = {
    ("training loss, forest", "median of points"), ("probe heads, forest", "median of points"),
    ("own heads, forest", "median of points"), ("own causal heads, forest", "median of points"),
    ("probe heads", "mean"), ("own heads", "mean"), ("own causal heads", "own heads"),
    ("own causal heads", "raw confidence (256 passes)"),
    ("own answers", "own causal heads"), ("own answers + own heads", "own answers"),
    ("own answers + own causal heads", "own answers"), ("cheap + probe heads", "cheap"),
    ("last score + probe heads", "last score"), ("probe heads, process", "training loss, process"),
    ("probe heads, forest", "training loss, forest"), ("own causal heads, forest", "own heads, forest"),
    ("own answers, forest", "own causal heads, forest"), ("own answers + own heads, forest", "own answers, forest"),
    ("own answers + own causal heads, forest", "own answers, forest"), ("cheap + probe heads, forest", "cheap, forest"),
    (BEST_LABEL_FREE, "own answers, forest"), (BEST_LABEL_FREE, "raw agreement (256 passes)"),
    ("answers + agreement + own heads, forest", "answers + agreement, forest"),
    ("answers + agreement + own causal heads, forest", "answers + agreement, forest"),
}  # fmt: skip


def _told_passes(method: str) -> bool:
    return any(f"({n} passes)" in method for n in (16, 32, 128))


def _told(row: Mapping[Any, Any]) -> str:
    setting = SETTING_WORDS[row["setting"]].capitalize()
    limits = f"{row['difference']:+.2f} points [{row['low']:+.2f}, {row['high']:+.2f}]"
    if row["high"] < 0:
        verdict = f"{row['method']} errs less than {row['beside']}"
    elif row["low"] > 0:
        verdict = f"{row['method']} errs more than {row['beside']}"
    else:
        verdict = f"{row['method']} cannot be told apart from {row['beside']}"
    return f"{setting}, {ZOO}: {verdict} ({row['error']:.1f} against {row['error_beside']:.1f}; {limits})."


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; missing cells are a dash."""
    if frame.empty:
        return "Not measured."
    head = "| " + " | ".join(str(name) for name in frame.columns) + " |"
    rule = "|" + "---|" * len(frame.columns)
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join([head, rule, *rows])


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _passes(value: float) -> str:
    if value == 0:
        return "fewer than 8"
    return "more than 512" if not np.isfinite(value) else f"about {value:.0f}"


def pick(table: pd.DataFrame, setting: str, method: str, passes: float | None) -> dict[Any, Any] | None:
    """A method's row of `summary` at a budget (None: its largest); None where it was not judged."""
    part = table[(table["setting"] == setting) & (table["method"] == method)]
    part = part[part["passes"] == (part["passes"].max() if passes is None else passes)]
    return None if part.empty else part.iloc[0].to_dict()


def _settings_table(table: pd.DataFrame) -> str:
    rows = []
    for method, passes in _SHOWN:
        found = {setting: pick(table, setting, method, passes) for setting in PAGE_SETTINGS}
        known = [row for row in found.values() if row is not None]
        if known:
            cells = {SETTING_WORDS[s]: with_limits(row) if row is not None else "-" for s, row in found.items()}
            rows.append({"method": method, "passes": f"{known[0]['passes']:.0f}", **cells})
    return markdown(pd.DataFrame(rows))


def with_limits(row: Any) -> str:
    """An error with its 95 % interval."""
    return f"{row['error']:.1f} [{row['error_low']:.1f}, {row['error_high']:.1f}]"


def _passes_table(table: pd.DataFrame) -> str:
    pieces = []
    names = (
        "direct scoring", "direct scoring, shrunk", "item response model", "raw confidence", "own answers, one pass",
        "own answers, one pass, forest", "raw agreement", "agreement, forest", "answers + agreement, forest", BEST_LABEL_FREE,
        "labels in a regression", "labels + answers in a regression",
        "labels correcting answers", BEST_LABELLED, f"{BEST_LABELLED} + own heads",
    )  # fmt: skip
    counts = (8, 16, 32, 64, 128, 256, 512)
    for setting in PAGE_SETTINGS:
        rows = []
        for name in names:
            points = curve(table, setting, name).set_index("passes")["error"]
            if len(points):
                rows.append(
                    {"method": name, **{str(n): f"{points[n]:.1f}" if n in points.index else "-" for n in counts}}
                )
        if rows:
            shown = markdown(pd.DataFrame(rows))
            pieces.append(f"{SETTING_WORDS[setting].capitalize()}; columns: forward passes per benchmark.\n\n{shown}")
    return "\n\n".join(pieces)


def _quality_table(table: pd.DataFrame, setting: str) -> str:
    rows = []
    shown = [*_SHOWN, ("direct scoring, shrunk", 32.0), (BEST_LABELLED, 32.0)]
    for method, passes in shown:
        row = pick(table, setting, method, passes)
        if row is not None:
            name = method if passes is None else f"{method} ({passes:g})"
            numbers = {k: f"{row[k]:.2f}" for k in ("r2", "spearman", "kendall")}
            more = {
                "regret": f"{row['regret']:.1f}",
                "interval score": f"{row['interval_score']:.1f}",
                "p": f"{row['p']:.3f}",
            }
            rows.append({"method": name, **numbers, **more})
    return f"{SETTING_WORDS[setting].capitalize()}:\n\n{markdown(pd.DataFrame(rows))}"


def _difference_table(found: pd.DataFrame) -> str:
    if found.empty:
        return "Not measured."
    rows = [
        {
            "setting": SETTING_WORDS[row["setting"]],
            "method": row["method"],
            "beside": row["beside"],
            "errors": f"{row['error']:.2f} / {row['error_beside']:.2f}",
            "difference": f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
            "better on": f"{row['better_on']} of {row['n_lineages']}",
        }
        for row in found.to_dict("records")
    ]
    return markdown(pd.DataFrame(rows))


def _coverage_table(table: pd.DataFrame) -> str:
    rows = []
    shown: Sequence[tuple[str, float | None]] = (
        ("mean", None), ("probe heads", None), ("own causal heads", None), ("raw confidence", 256.0), ("own answers, forest", None),
        ("raw agreement", 256.0), (BEST_LABEL_FREE, 16.0), (BEST_LABEL_FREE, None), ("direct scoring", 32.0),
        ("direct scoring, shrunk", 32.0), ("item response model", 32.0), (BEST_LABELLED, 16.0),
        (BEST_LABELLED, 32.0), (BEST_LABELLED, 128.0),
    )  # fmt: skip
    for method, passes in shown:
        cells = {}
        for setting in PAGE_SETTINGS:
            row = pick(table, setting, method, passes)
            cells[SETTING_WORDS[setting]] = (
                "-"
                if row is None
                else f"{row['coverage']:.0%} [{row['coverage_low']:.0%}, {row['coverage_high']:.0%}], ±{row['width'] / 2:.1f}"
            )
        rows.append({"method": method if passes is None else f"{method} ({passes:g})", **cells})
    return markdown(pd.DataFrame(rows))


def _strata_table(strata: pd.DataFrame) -> str:
    if strata.empty:
        return "Not measured."
    cell = strata.assign(
        text=[f"{with_limits(row)}, covered {row['coverage']:.0%}" for row in strata.to_dict("records")]
    )
    wide = cell.pivot_table(index="method", columns="stratum", values="text", aggfunc="first", sort=False)
    return markdown(wide.reset_index())


def _short_table(table: pd.DataFrame) -> str:
    if table.empty:
        return "Not measured."
    return _settings_table(table)


def _which(which: Mapping[str, pd.DataFrame]) -> list[str]:
    return [
        "Split-half reliability over the heads of a model (even against odd documents, stepped up to all):",
        markdown(which["split_half"].round(2)),
        "Split-half reliability of the declared features across final checkpoints:",
        markdown(which["features"].round(2)),
        "Do the same heads stand out? Median correlation over heads, quartiles:",
        markdown(which["stability"].round(2)),
        "Where: share of the sum that lies in each third of the layers:",
        markdown(which["depths"].round(2)),
    ]


def _repeats(found: pd.DataFrame) -> str:
    if found.empty:
        return "None was measured."
    rows = [
        {
            "lineage": lineage,
            "moved on average": f"{part['moved'].mean():.1f}",
            "largest": f"{part['moved'].max():.1f} ({part['benchmark'].iloc[int(part['moved'].argmax())]})",
            "two draws of items would show": f"{part['sampling'].mean():.1f}",
        }
        for lineage, part in found.groupby("lineage")
    ]
    return (
        f"Final scores of {ZOO}, trained twice from scratch with the same settings, points:\n\n{markdown(pd.DataFrame(rows))}\n\n"
        f"On average a repeat moves a score by {found['moved'].mean():.1f} points."
    )


def _lock_box(found: pd.DataFrame) -> str:
    rows = []
    for method, passes in (
        (BEST_LABEL_FREE, None),
        (BEST_LABELLED, 16.0),
        (BEST_LABELLED, 32.0),
        (BEST_LABELLED, 128.0),
    ):
        part = found[found["method"] == method]
        part = part[part["passes"] == (part["passes"].max() if passes is None else passes)]
        if len(part):
            row = part.iloc[0]
            rows.append(
                {
                    "method": method if passes is None else f"{method} ({passes:g} passes)",
                    "lock-box error": with_limits(row),
                    "cross-validated": f"{row['cross_validated']:.2f}",
                    "ratio": f"{row['ratio']:.2f}",
                    "coverage": f"{row['coverage']:.0%}",
                }
            )
    first = found[found["method"] == BEST_LABEL_FREE]
    number = f"**{first['error'].iloc[-1]:.2f} points**" if len(first) else "not measured"
    n = int(found["n_lineages"].max()) if len(found) else 0
    return (
        "**Lock-box**: the list of features and methods was committed, then further trainings were made and opened once; "
        f"scored are the final checkpoints of the {n} that were not broken on purpose. "
        f"{BEST_LABEL_FREE.capitalize()}, no labels: {number}; {ZOO}.\n\n{markdown(pd.DataFrame(rows))}"
    )
