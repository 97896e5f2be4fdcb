"""The same trainings on two devices: how far scores, head statistics and the pointed question move.

Reads two measured sets of a zoo that hold the same checkpoints, and writes `other_device.csv`: one row per checkpoint, with the
mean distance of its scores (points, 11 benchmarks without counting and 3 with), what the pointed question got right in both, and
its heads' mean attention to the image in both. Small models trained on drawn scenes.

    for i in $(seq 16); do python -m lab train --config proof --only 'u*' --device cuda --shard $i/16 --out W & done; wait
    python -m lab measure --config proof --only 'u*' --from W --out OUT
    python -m lab other-device reports/prediction/tables/more OUT --out reports/prediction/held_out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from lab.tables.zoo import ZooTables, read_zoo_tables


def scores(zoo: ZooTables) -> pd.DataFrame:
    """Points, one row per checkpoint and column per benchmark."""
    return 100 * zoo.scores.pivot_table(index="model", columns="benchmark", values="score")


def pointed(zoo: ZooTables) -> pd.Series:
    """Percent right on vhead_super, by checkpoint."""
    rows = zoo.answers[(zoo.answers["task"] == "vhead_super") & (zoo.answers["condition"] == "clean")]
    return 100 * rows.set_index("model")["accuracy"]


def attention(zoo: ZooTables) -> pd.Series:
    """Mean attention to the image over heads and probe tasks, percent, by checkpoint."""
    rows = zoo.profiles[zoo.profiles["task"].str.startswith("vhead_") & (zoo.profiles["half"] == -1)]
    return 100 * rows.groupby("model")["image_attention"].mean()


def main() -> None:
    """Write the table and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path, help="measured set")
    parser.add_argument("other", type=Path, help="the same checkpoints, trained elsewhere")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    one, other = (read_zoo_tables(path) for path in (options.one, options.other))
    facts = one.checkpoints.set_index("model")
    common = [name for name in facts.index if name in set(other.checkpoints["model"])]
    counting = set(one.benchmarks.loc[one.benchmarks["counting"].astype(bool), "benchmark"])
    moved = (scores(other) - scores(one)).loc[common]
    plain = [name for name in moved if name not in counting]
    table = pd.DataFrame(
        {
            "lineage": facts.loc[common, "lineage"],
            "final": facts.loc[common, "final"],
            "moved": moved[plain].abs().mean(axis=1),
            "moved_most": moved[plain].abs().max(axis=1),
            "moved_counting": moved[sorted(counting)].abs().mean(axis=1),
            "moved_signed": moved[plain].mean(axis=1),
            "pointed": pointed(one)[common],
            "pointed_other": pointed(other)[common],
            "attention": attention(one)[common],
            "attention_other": attention(other)[common],
        }
    )
    options.out.mkdir(parents=True, exist_ok=True)
    table.round(3).to_csv(options.out / "other_device.csv", lineterminator="\n")
    for name, part in (("final", table[table["final"].astype(bool)]), ("all", table)):
        points = moved.loc[part.index, plain].abs().to_numpy()
        print(
            f"{name}: {len(part)} checkpoints; a score moves by {pd.Series(points.ravel()).median():.2f} points in the median, "
            f"{points.mean():.2f} in the mean, {points.max():.1f} at most, {part['moved_signed'].mean():+.2f} on average with its "
            f"sign; pointed question {part['pointed'].mean():.1f} and {part['pointed_other'].mean():.1f} % right; attention to the "
            f"image {part['attention'].mean():.2f} and {part['attention_other'].mean():.2f} %, moved by "
            f"{(part['attention_other'] - part['attention']).abs().mean():.2f}"
        )


if __name__ == "__main__":
    main()
