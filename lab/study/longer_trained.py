"""Trainings that learnt the pointed question beside those that did so by half; and how the others' predictor fares on them.

Reads the measured sets of the proof zoo (folders `development`, `longer` and, where they are, `lockbox`, `second` and `more`) and
writes `pointed_question.csv` (final checkpoints that were not broken on purpose: accuracy on vhead_super), `blind.csv` (every
method fitted on `development`, asked once about `longer` and `more`: settings are named as a lock-box's) and
`blind_differences.csv` (comparisons that say whether heads matter, lineage by lineage). Small models trained on drawn scenes.

    python -m lab longer-trained reports/prediction/tables --out reports/prediction/longer --draws 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from lab.study.cross_validation import Protocol
from lab.study.dataset import REPEAT_SUFFIX
from lab.study.methods.registry import BEST_LABEL_FREE, BEST_LABELLED
from lab.study.page import markdown, pick, with_limits
from lab.study.run import open_lock_box
from lab.study.summary import differences, primary, summary
from lab.study.tables import HEAD_PAIRS
from lab.tables.zoo import ZooTables, put_together, read_zoo_tables

SETS = ("development", "lockbox", "second", "longer", "more")
LONGER = ("longer", "more")
SHOWN = (
    ("mean of points", None), ("median of points", None), ("training loss, forest", None),
    ("probe accuracy, forest", None), ("probe heads, forest", None), ("own heads, forest", None),
    ("own causal heads, forest", None), ("raw confidence", 256.0), ("raw agreement", 256.0), ("own answers, forest", None),
    (BEST_LABEL_FREE, None), ("direct scoring, shrunk", 16.0), (BEST_LABELLED, 16.0), ("direct scoring, shrunk", 32.0),
    (BEST_LABELLED, 32.0), ("direct scoring, shrunk", 128.0), (BEST_LABELLED, 128.0),
)  # fmt: skip


def pointed_question(zoos: dict[str, ZooTables]) -> pd.DataFrame:
    """How well final checkpoints answer the pointed question, percent right of 256, per set."""
    rows = []
    for name, tables in zoos.items():
        answers = tables.answers[(tables.answers["task"] == "vhead_super") & (tables.answers["condition"] == "clean")]
        facts = tables.checkpoints.set_index("model").loc[answers["model"]]
        kept = facts["final"] & (facts["stratum"] != "broken") & ~facts["lineage"].str.endswith(REPEAT_SUFFIX)
        right = 100 * answers["accuracy"].to_numpy(dtype=float)[kept.to_numpy(dtype=bool)]
        above = {f"at least {limit}": int((right >= limit).sum()) for limit in (50, 60, 80)}
        quartiles = {f"{q:g} %": round(float(pd.Series(right).quantile(q / 100)), 1) for q in (25, 50, 75, 100)}
        rows.append({"set": name, "trainings": len(right), **quartiles, **above})
    return pd.DataFrame(rows)


def main() -> None:
    """Write the tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="folder with the sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3, help="random draws of the labelled items")
    options = parser.parse_args()
    zoos = {name: read_zoo_tables(options.tables / name) for name in SETS if (options.tables / name).is_dir()}
    options.out.mkdir(parents=True, exist_ok=True)
    pointed = pointed_question(zoos)
    pointed.to_csv(options.out / "pointed_question.csv", index=False, lineterminator="\n")
    print(markdown(pointed.astype(str)), end="\n\n")
    asked = put_together([zoos[name] for name in LONGER if name in zoos])
    trials, notes = open_lock_box(zoos["development"], asked, Protocol(draws=options.draws))
    table, beside = summary(primary(trials)), differences(primary(trials), HEAD_PAIRS, ("lock_box",))
    for name, frame in (("blind", table), ("blind_differences", beside)):
        frame.round(4).to_csv(options.out / f"{name}.csv", index=False, lineterminator="\n")
    rows = []
    for method, passes in SHOWN:
        row = pick(table, "lock_box", method, passes)
        if row is not None:
            shown = {"passes": f"{row['passes']:.0f}", "error": with_limits(row), "inside": f"{row['coverage']:.0%}"}
            rows.append({"method": method, **shown, "rho": f"{row['spearman']:.2f}"})
    print(markdown(pd.DataFrame(rows)), end="\n\n")
    print(markdown(beside[["method", "beside", "difference", "low", "high"]].round(1)))
    print(*notes, sep="\n")


if __name__ == "__main__":
    main()
