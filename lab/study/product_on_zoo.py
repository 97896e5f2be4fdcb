"""The product on the measured zoo: `BenchmarkPredictor` as a user holds it, on trainings that were left out.

Head profiles of the probe, answers on own prompts, scores and items come from the tables of a zoo; groups of lineages are left out
in turn. Printed are mean absolute errors in points and the coverage of 90 % intervals on final checkpoints that were not broken on
purpose, counting benchmarks left out, without labels (256 answered prompts of each benchmark) and with labels for some of them,
beside the same items scored directly and drawn to the references' mean: not the same cost, because the prompts without a label
are answered, too. Errors have the 95 % interval of a bootstrap over trainings. Small models trained on drawn scenes.

    python -m lab product reports/prediction/tables/development
    cd reports/prediction/tables && python -m lab product development --lockbox third --out ../third
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lab.study.dataset import REPEAT_SUFFIX
from lab.study.metrics import bootstrap, by_lineage
from lab.tables import as_product
from lab.tables.zoo import ZooTables, read_zoo_tables
from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.prediction import BenchmarkPredictor

LABELS = (0, 16, 32, 128)
PROMPTS = 256
"""Own prompts of each benchmark that every checkpoint has answered; labelled items are some of them."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", help="tables of a measured zoo")
    parser.add_argument("--lockbox", help="tables of further lineages: they are predicted from all of the zoo, once")
    parser.add_argument("--folds", type=int, default=4, help="groups of lineages (default 4)")
    parser.add_argument("--labels", type=int, nargs="*", default=LABELS, help="labelled items of each benchmark")
    parser.add_argument("--out", type=Path, help="folder for predictions.csv (every cell) and summary.csv")
    asked = parser.parse_args()
    zoo = without_repeats(read_zoo_tables(asked.zoo))
    judged = zoo if asked.lockbox is None else read_zoo_tables(asked.lockbox)
    rows = []
    for training, tested in parts(zoo, judged, asked.folds):
        begun = time.perf_counter()
        lineages = training.checkpoints[["model", "lineage"]]
        predictor = BenchmarkPredictor().fit(
            as_product.head_profiles(training), training.scores, lineages, measured(training)
        )
        print(f"fitted on {len(lineages)} checkpoints in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        heads, answers = as_product.head_profiles(tested), measured(tested)
        for labels in asked.labels:
            items = None if labels == 0 else labelled(tested, labels)
            found = predictor.predict(heads, measured=answers, items=items)
            rows.append(found.assign(labels=labels))
    cells = beside_actual(pd.concat(rows), judged)
    table = summary(cells)
    print(table.to_markdown(index=False))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        cells.round(3).to_csv(asked.out / "predictions.csv", index=False, lineterminator="\n")
        table.to_csv(asked.out / "summary.csv", index=False, lineterminator="\n")


def parts(zoo: ZooTables, judged: ZooTables, folds: int) -> Iterator[tuple[ZooTables, ZooTables]]:
    """What is fitted on, and what is tested of `judged` (`zoo` itself: fold by fold): finals that were not broken on purpose."""

    def good(tables: ZooTables) -> ZooTables:
        c = tables.checkpoints
        return tables.only(c["model"][c["final"] & (c["stratum"] != "broken")])

    if judged is not zoo:
        yield zoo, good(judged)
        return
    lineages = sorted(set(zoo.checkpoints["lineage"]))
    order = np.random.default_rng(0).permutation(len(lineages))
    for fold in range(folds):
        out = {lineages[i] for i in order[fold::folds]}
        left = zoo.checkpoints["lineage"].isin(out)
        yield zoo.only(zoo.checkpoints["model"][~left]), good(zoo.only(zoo.checkpoints["model"][left]))


def without_repeats(zoo: ZooTables) -> ZooTables:
    """The zoo without trainings repeated from scratch."""
    return zoo.only(zoo.checkpoints["model"][~zoo.checkpoints["lineage"].str.endswith(REPEAT_SUFFIX)])


def measured(zoo: ZooTables) -> Measurements:
    """Answers to the first `PROMPTS` prompts of each benchmark, and the cuts."""
    every = as_product.measured(zoo)
    prompts, replies = ({key: said[:PROMPTS] for key, said in part.items()} for part in (every.prompts, every.replies))
    return replace(every, prompts=prompts, replies=replies)


def labelled(zoo: ZooTables, n: int) -> pd.DataFrame:
    """The same `n` random items of each benchmark for every checkpoint, as an item table."""
    frames = []
    for row in zoo.items[zoo.items["condition"] == "clean"].to_dict("records"):
        chosen = np.random.default_rng(7).permutation(PROMPTS)[:n]
        correct = row["correct"][chosen].astype(float)
        frames.append(
            pd.DataFrame({"model": row["model"], "benchmark": row["benchmark"], "doc_id": chosen, "correct": correct})
        )
    return pd.concat(frames, ignore_index=True)


def beside_actual(found: pd.DataFrame, zoo: ZooTables) -> pd.DataFrame:
    """Predictions of benchmarks that do not ask for counting, with the score and the lineage."""
    actual = zoo.scores.assign(actual=100 * zoo.scores["score"] / zoo.scores["scale"])[["model", "benchmark", "actual"]]
    judged = found.merge(actual, on=["model", "benchmark"]).merge(zoo.checkpoints[["model", "lineage"]], on="model")
    return judged[judged["benchmark"].isin(zoo.benchmarks["benchmark"][~zoo.benchmarks["counting"]])]


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per number of labels: errors, their ratio, coverage, and which methods spoke."""
    rows = []
    for labels, part in judged.groupby("labels"):
        error, baseline = (
            bootstrap(by_lineage((part[name] - part["actual"]).abs(), part["lineage"]))
            for name in ("predicted", "baseline")
        )
        inside = ((part["actual"] >= part["low"]) & (part["actual"] <= part["high"])).mean()
        methods = part["method"].str.partition("+")[0].value_counts()
        rows.append(
            {
                "labels": labels, "error": words(error), "baseline": words(baseline), "ratio": f"{error[0] / baseline[0]:.2f}",
                "inside 90 %": f"{inside:.1%}", "methods": ", ".join(f"{name} {n}" for name, n in methods.items()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def words(interval: tuple[float, float, float]) -> str:
    """An error with its interval."""
    return "{:.2f} [{:.1f}, {:.1f}]".format(*interval)


if __name__ == "__main__":
    main()
