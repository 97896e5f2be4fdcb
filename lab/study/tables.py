"""Tables of the zoo study: which comparisons are made, which targets are asked, all as frames. Never draws, never fits.

Units: points, forward passes per benchmark.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.study.methods.registry import BEST_LABEL_FREE, BEST_LABELLED
from lab.study.summary import Choice, differences, lineage_errors, summary

ZOO = "small models trained on drawn scenes"

SETTING_WORDS = {
    "lock_box": "lock-box lineages",
    "new_lineage": "new lineage",
    "known_training": "known training",
    "new_benchmark": "new benchmark",
    "shift_temperature": "shift: hidden temperature",
    "shift_corrupted": "shift: corrupted images",
    "shift_stronger": "shift: better than the references",
    "lock_box_temperature": "lock-box, hidden temperature",
    "lock_box_corrupted": "lock-box, corrupted images",
}

_MEAN: Choice = ("mean", None)
_MEDIAN: Choice = ("median of points", None)
_ANSWERS: Choice = ("own answers", None)
_CHEAP: Choice = ("cheap", None)
_FOREST: Choice = ("own answers, forest", None)
_AGREED: Choice = (BEST_LABEL_FREE, None)
HEAD_PAIRS: tuple[tuple[Choice, Choice], ...] = (
    (("probe heads", None), _MEAN),
    (("probe heads", None), ("probe accuracy", None)),
    (("probe heads", None), ("training loss", None)),
    (("probe heads, process", None), _MEAN),
    (("probe heads, process", None), ("probe accuracy, process", None)),
    (("probe heads, process", None), ("training loss, process", None)),
    (("own heads", None), _MEAN),
    (("own heads", None), ("raw confidence", 256.0)),
    (("own causal heads", None), _MEAN),
    (("own causal heads", None), ("own heads", None)),
    (("own causal heads", None), ("all heads cut", None)),
    (("own causal heads", None), ("raw confidence", 256.0)),
    (_ANSWERS, _MEAN),
    (_ANSWERS, ("raw confidence", 256.0)),
    (_ANSWERS, ("own causal heads", None)),
    (("own answers + own heads", None), _ANSWERS),
    (("own answers + own causal heads", None), _ANSWERS),
    (("own answers + probe heads", None), _ANSWERS),
    (("own causal heads + own heads", None), ("own causal heads", None)),
    (("cheap + probe heads", None), _CHEAP),
    (("cheap + own heads", None), _CHEAP),
    (("cheap + own causal heads", None), _CHEAP),
    (("cheap + own answers", None), _CHEAP),
    (("training loss, forest", None), _MEDIAN),
    (("probe heads, forest", None), _MEDIAN),
    (("own heads, forest", None), _MEDIAN),
    (("own causal heads, forest", None), _MEDIAN),
    (("probe heads, forest", None), ("training loss, forest", None)),
    (("probe heads, forest", None), ("probe accuracy, forest", None)),
    (("own heads, forest", None), ("training loss, forest", None)),
    (("own causal heads, forest", None), ("own heads, forest", None)),
    (_FOREST, ("own causal heads, forest", None)),
    (_FOREST, ("raw confidence", 256.0)),
    (("own answers + own heads, forest", None), _FOREST),
    (("own answers + own causal heads, forest", None), _FOREST),
    (("cheap + probe heads, forest", None), ("cheap, forest", None)),
    (_AGREED, _FOREST),
    (_AGREED, ("raw agreement", 256.0)),
    (_AGREED, ("own causal heads, forest", None)),
    (("answers + agreement + own heads, forest", None), ("answers + agreement, forest", None)),
    (("answers + agreement + own causal heads, forest", None), ("answers + agreement, forest", None)),
    (("last score + probe heads", None), ("last score", None)),
    (("last score + own heads", None), ("last score", None)),
    (("last score + own causal heads", None), ("last score", None)),
    (("last score + own answers", None), ("last score", None)),
    (("last score + probe accuracy", None), ("last score", None)),
    (("last score + training loss", None), ("last score", None)),
)
"""What is compared to answer whether heads matter: a method, and what it stands beside."""


def label_pairs() -> tuple[tuple[Choice, Choice], ...]:
    """The labelled method that is recommended beside shrunk direct scoring, per budget; and heads on top of it."""
    pairs: list[tuple[Choice, Choice]] = []
    for passes in (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0):
        pairs.append(((BEST_LABELLED, passes), ("direct scoring, shrunk", passes)))
        pairs.append(((BEST_LABELLED, passes), ("labels correcting answers", passes)))
        pairs.append(((f"{BEST_LABELLED} + own heads", passes), (BEST_LABELLED, passes)))
    return tuple(pairs)


def strata_table(trials: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """Error and coverage by what was done to a training on purpose: `summary` per stratum, setting new_lineage, largest budgets."""
    part = trials[(trials["setting"] == "new_lineage") & trials["method"].isin(methods)]
    frames = []
    for stratum, rows in part.groupby("stratum", sort=True):
        frames.append(summary(_largest(rows)).assign(stratum=stratum))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def counting_table(trials: pd.DataFrame) -> pd.DataFrame:
    """`summary` of the counting benchmarks alone, trainings not broken on purpose."""
    part = trials[(trials["stratum"] != "broken") & trials["counting"]]
    return summary(part) if len(part) else pd.DataFrame()


def benchmark_table(trials: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """Mean absolute error per benchmark (rows) and method (columns), new lineage, trainings not broken on purpose."""
    part = trials[
        (trials["setting"] == "new_lineage") & (trials["stratum"] != "broken") & trials["method"].isin(methods)
    ]
    part = _largest(part)
    error = (part["predicted"] - part["actual"]).abs()
    table = error.groupby([part["benchmark"], part["method"]]).mean().unstack("method")
    spread = part.groupby("benchmark")["actual"].agg(["mean", "std"])
    return pd.concat(
        [spread.set_axis(["mean score", "spread"], axis=1), table[[m for m in methods if m in table]]], axis=1
    )


def _largest(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows of every method's largest budget; what is raw at 256 passes, as the answers have it."""
    most = trials.groupby("method", sort=False)["passes"].transform("max")
    raw = trials["method"].str.startswith("raw ")
    return trials[((trials["passes"] == most) & ~raw) | (raw & (trials["passes"] == 256))]


def targets_table(trials: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The study's targets beside what was found.

    Parameters
    ----------
    trials : DataFrame
        Of the primary stratum.
    table : DataFrame
        Their `summary`.

    Returns
    -------
    DataFrame
        target, wanted, found, met.
    """
    rows: list[tuple[str, str, str, bool | None]] = []

    def error(setting: str, method: str, passes: float | None = None) -> float:
        found = lineage_errors(trials, setting, method, passes)
        return float(found.mean()) if len(found) else float("nan")

    def at_most(what: str, value: float, limit: float) -> None:
        rows.append((what, f"at most {limit:g}", _number(value), bool(value <= limit) if np.isfinite(value) else None))

    answers = error("new_lineage", BEST_LABEL_FREE)
    at_most(f"new lineage, no labels: error of {BEST_LABEL_FREE}, points", answers, 4.0)
    for beside in ("training loss", "probe accuracy", "raw confidence", "raw agreement"):
        passes = 256.0 if beside.startswith("raw") else None
        compared = differences(trials, [((BEST_LABEL_FREE, None), (beside, passes))], ["new_lineage"])
        if len(compared):
            row = compared.iloc[0]
            rows.append(
                (
                    f"new lineage: {BEST_LABEL_FREE} better than {beside}",
                    "on most lineages",
                    f"on {row['better_on']} of {row['n_lineages']}",
                    bool(2 * row["better_on"] > row["n_lineages"]),
                )
            )
    for passes, limit in ((16.0, 0.75), (32.0, 0.75), (128.0, 0.85)):
        ratio = _ratio(
            error("new_lineage", BEST_LABELLED, passes), error("new_lineage", "direct scoring, shrunk", passes)
        )
        at_most(f"new lineage, {passes:g} passes: {BEST_LABELLED} / shrunk direct scoring", ratio, limit)
    for passes in (16.0, 32.0, 64.0):
        ratio = _ratio(
            error("new_lineage", BEST_LABELLED, passes), error("new_lineage", "direct scoring, shrunk", passes)
        )
        at_most(f"stretch, {passes:g} passes: {BEST_LABELLED} / shrunk direct scoring", ratio, 0.5)
    causal = differences(trials, [(("own causal heads", None), ("own heads", None))], ["new_lineage"])
    if len(causal):
        row = causal.iloc[0]
        found = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        rows.append(
            ("new lineage: causal heads less attention heads, points", "interval below 0", found, bool(row["high"] < 0))
        )
    for beside in ("training loss", "probe accuracy"):
        for kind in ("", ", process"):
            ratio = _ratio(error("known_training", f"probe heads{kind}"), error("known_training", f"{beside}{kind}"))
            at_most(f"known training, probe only: heads / {beside}{kind}", ratio, 0.5)
    for setting, low, high in (
        ("new_lineage", 0.85, 0.95), ("shift_temperature", 0.80, 0.97), ("shift_corrupted", 0.80, 0.97),
    ):  # fmt: skip
        for method, passes in ((BEST_LABEL_FREE, None), (BEST_LABELLED, 32.0)):
            part = table[(table["setting"] == setting) & (table["method"] == method)]
            part = part[part["passes"] == (part["passes"].max() if passes is None else passes)]
            if len(part):
                value = float(part["coverage"].iloc[0])
                name = method if passes is None else f"{method} at {passes:g} passes"
                rows.append(
                    (
                        f"{SETTING_WORDS[setting]}: coverage of 90 % intervals, {name}",
                        f"{low:.0%} to {high:.0%}",
                        f"{value:.1%}",
                        bool(low <= value <= high),
                    )
                )
    return pd.DataFrame(rows, columns=["target", "wanted", "found", "met"])


def lock_box_table(table: pd.DataFrame, locked: pd.DataFrame) -> pd.DataFrame:
    """Lock-box error beside the cross-validated one: method, passes, lock_box (with limits), cross_validated, ratio.

    Parameters
    ----------
    table, locked : DataFrame
        `summary` of the development zoo and of the lock-box lineages.
    """
    keep = ["method", "passes", "error", "error_low", "error_high", "coverage", "n_lineages"]
    box = locked[locked["setting"] == "lock_box"][keep]
    known = table[table["setting"] == "new_lineage"][["method", "passes", "error"]]
    known = known.rename(columns={"error": "cross_validated"})
    # What cutting heads costs depends on how many heads there are: budgets are told apart by their order, not by their size.
    both = [frame.assign(place=frame.groupby("method")["passes"].rank("dense")) for frame in (box, known)]
    joined = both[0].merge(both[1].drop(columns="passes"), on=["method", "place"], how="left").drop(columns="place")
    return joined.assign(ratio=joined["error"] / joined["cross_validated"])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


def _number(value: float) -> str:
    return "not measured" if not np.isfinite(value) else f"{value:.2f}"
