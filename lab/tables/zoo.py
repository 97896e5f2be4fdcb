"""Tables of a measured zoo: checkpoints, benchmarks, scores, items, answers, head profiles and causal scores of many lineages.

Columns: `schema.ZOO_*_COLUMNS`. A missing cell is null, never 0. One folder holds all; `parts/<model>/` holds what was
measured of one checkpoint, and `join_parts` makes the joined tables. Shapes: n items, 5 numbers of prompts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from lab.tables import files, schema
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import Column
from lmms_visual_heads.tables import SCORE_COLUMNS
from lmms_visual_heads.tables.scores import check_scores

PARTS = "parts"
"""Folder of the parts that are still to be joined."""

ITEM_BITS = 13
"""Significant bits of an item's confidence and entropy on disk: off by at most 1.2e-4 of its value."""

_SCORE_COLUMNS = SCORE_COLUMNS
_TOLERANCE = 2e-6


class _Table(NamedTuple):
    """File, columns and key of one table; whether a zoo may lack it."""

    file: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    optional: bool = True


TABLES = {
    "checkpoints": _Table("checkpoints.csv", schema.ZOO_CHECKPOINT_COLUMNS, ("model",), False),
    "benchmarks": _Table("benchmarks.csv", schema.ZOO_BENCHMARK_COLUMNS, ("benchmark",), False),
    "scores": _Table("scores.csv", _SCORE_COLUMNS, ("model", "benchmark"), False),
    "scores_corrupted": _Table("scores_corrupted.csv", _SCORE_COLUMNS, ("model", "benchmark")),
    "items": _Table("items.parquet", schema.ZOO_ITEM_COLUMNS, ("model", "benchmark", "condition")),
    "replies": _Table("replies.parquet", schema.ZOO_REPLY_COLUMNS, ("model", "benchmark", "condition")),
    "answers": _Table("answers.parquet", schema.ZOO_ANSWER_COLUMNS, ("model", "task", "condition")),
    "profiles": _Table(
        "profiles.parquet", schema.ZOO_PROFILE_COLUMNS, ("model", "task", "condition", "half", "layer", "head")
    ),
    "causal": _Table("causal.parquet", schema.ZOO_CAUSAL_COLUMNS, ("model", "task", "layer", "head")),
}
"""The tables of a zoo by the name of their attribute."""


@dataclass(frozen=True, slots=True)
class ZooTables:
    """A measured zoo, valid from birth: keys stand once, names are known, lists have equal lengths, numbers are finite or missing.

    Attributes
    ----------
    checkpoints : DataFrame
        `schema.ZOO_CHECKPOINT_COLUMNS`; further columns are kept.
    benchmarks, scores : DataFrame
        `schema.ZOO_BENCHMARK_COLUMNS`, `tables.SCORE_COLUMNS`.
    scores_corrupted, items, replies, answers, profiles, causal : DataFrame
        Without rows where nothing was measured. List cells are arrays.
    """

    checkpoints: pd.DataFrame
    benchmarks: pd.DataFrame
    scores: pd.DataFrame
    scores_corrupted: pd.DataFrame = field(default_factory=pd.DataFrame)
    items: pd.DataFrame = field(default_factory=pd.DataFrame)
    replies: pd.DataFrame = field(default_factory=pd.DataFrame)
    answers: pd.DataFrame = field(default_factory=pd.DataFrame)
    profiles: pd.DataFrame = field(default_factory=pd.DataFrame)
    causal: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        for name, table in TABLES.items():
            frame = getattr(self, name)
            clean = files.typed(pd.DataFrame() if frame is None else frame, table.columns, name)
            if name.startswith("scores") and len(clean):
                clean = check_scores(clean, f"{table.file} of the zoo")
            _check_key(clean, table.key, name)
            object.__setattr__(self, name, clean.reset_index(drop=True))
        for name in TABLES:
            _check_names(name, getattr(self, name), self.checkpoints["model"], self.benchmarks["benchmark"])
        _check_words(self.checkpoints, "stratum", schema.ZOO_STRATA, "checkpoints")
        for name in ("items", "replies", "answers", "profiles"):
            _check_words(getattr(self, name), "condition", schema.ZOO_CONDITIONS, name)
        _check_lists(self.items, ["correct", "confidence", "entropy"], ["benchmark", "condition"], None)
        _check_lists(self.replies, ["answer"], ["benchmark", "condition"], None)
        _check_lists(
            self.answers,
            ["confidence", "entropy", "information", "swap_kl", "blank_kl"],
            [],
            len(schema.PROMPT_COUNTS),
        )
        _check_items_against_scores(self.items, self.scores)

    @property
    def lineages(self) -> dict[str, str]:
        """model -> lineage."""
        return dict(zip(self.checkpoints["model"], self.checkpoints["lineage"], strict=True))

    def only(self, models: Iterable[str]) -> ZooTables:
        """The tables of some of the models; the benchmarks stay."""
        wanted = set(models)

        def part(frame: pd.DataFrame) -> pd.DataFrame:
            return frame[frame["model"].isin(wanted)] if "model" in frame.columns else frame

        return ZooTables(**{name: part(getattr(self, name)) for name in TABLES})

    def check_complete(self) -> ZooTables:
        """Itself, when every lineage has exactly one final checkpoint and every checkpoint a score.

        Raises
        ------
        VisualHeadsError
            Names the lineage or checkpoint.
        """
        finals = self.checkpoints.groupby("lineage", sort=True)["final"].sum()
        if (finals != 1).any():
            lineage = finals.index[(finals != 1).to_numpy()][0]
            raise VisualHeadsError(
                f"Every lineage of a zoo needs exactly one final checkpoint; {lineage} has {int(finals[lineage])}. "
                "Measure it to the end, or leave the lineage out."
            )
        without = sorted(set(self.checkpoints["model"]) - set(self.scores["model"]))
        if without:
            raise VisualHeadsError(
                f"Every checkpoint of a zoo needs scores; {', '.join(without[:5])} has none. Measure it again, or leave it out."
            )
        return self


def read_zoo_tables(folder: str | os.PathLike[str]) -> ZooTables:
    """The joined tables of a zoo.

    Raises
    ------
    VisualHeadsError
        No such folder, a missing or damaged file, or tables that contradict each other; the sentence says which.
    """
    return _read(Path(folder)).check_complete()


def put_together(zoos: Sequence[ZooTables]) -> ZooTables:
    """Several measured zoos as one.

    Raises
    ------
    VisualHeadsError
        When they share a lineage, or were asked other benchmarks.
    """
    first = zoos[0]
    known: set[str] = set()
    for zoo in zoos:
        common = sorted(known & set(zoo.checkpoints["lineage"]))
        if common:
            raise VisualHeadsError(
                f"Zoos that are put together need lineages of their own; {', '.join(common[:5])} stand in two of them. Take them "
                "out of one."
            )
        known |= set(zoo.checkpoints["lineage"])
        if not zoo.benchmarks.equals(first.benchmarks):
            raise VisualHeadsError(
                "Zoos that are put together need the same benchmarks; these differ. Measure them with the same suite."
            )
    frames = {name: _concat([getattr(zoo, name) for zoo in zoos]) for name in TABLES if name != "benchmarks"}
    return first if len(zoos) == 1 else ZooTables(benchmarks=first.benchmarks, **frames)


def write_zoo_tables(tables: ZooTables, folder: str | os.PathLike[str]) -> Path:
    """Write the tables into `folder` (each file atomically); empty ones are not written. Gives the folder."""
    target = Path(folder)
    for name, table in TABLES.items():
        frame: pd.DataFrame = getattr(tables, name)
        if table.optional and frame.empty:
            (target / table.file).unlink(missing_ok=True)
        elif table.file.endswith(".csv"):
            files.write_csv(frame, target / table.file)
        else:
            if name == "items":
                lists = {column: files.rounded(frame[column], ITEM_BITS) for column in ("confidence", "entropy")}
                frame = frame.assign(**lists)
            files.write_parquet(frame, table.columns, target / table.file)
    return target


def write_part(tables: ZooTables, folder: str | os.PathLike[str]) -> Path:
    """Write what was measured of one checkpoint into `<folder>/parts/<model>/`.

    Raises
    ------
    VisualHeadsError
        When the tables are about several checkpoints.
    """
    if len(tables.checkpoints) != 1:
        raise VisualHeadsError(f"A part of a zoo is one checkpoint; tables of {len(tables.checkpoints)} came.")
    return write_zoo_tables(tables, Path(folder) / PARTS / str(tables.checkpoints["model"].iloc[0]))


class Joined(NamedTuple):
    """Joined tables, and sentences on what was left out."""

    tables: ZooTables
    notes: tuple[str, ...]


def join_parts(folder: str | os.PathLike[str]) -> Joined:
    """Join `<folder>/parts/*/` and write the joined tables into `folder`.

    Lineages without their final checkpoint are left out and named.

    Raises
    ------
    VisualHeadsError
        No part at all, or parts that contradict each other.
    """
    root = Path(folder)
    parts = sorted(path.parent for path in root.glob(f"{PARTS}/*/{TABLES['checkpoints'].file}"))
    if not parts:
        raise VisualHeadsError(f"A zoo needs measured checkpoints; {root / PARTS} has none. Measure one first.")
    several = [_read(part, root) for part in parts]
    columns = {name: [getattr(tables, name) for tables in several] for name in TABLES}
    joined = {name: _concat(frames) for name, frames in columns.items()}
    benchmarks = joined["benchmarks"].drop_duplicates(ignore_index=True)
    tables = ZooTables(**{**joined, "benchmarks": benchmarks})
    finals = tables.checkpoints.groupby("lineage", sort=True)["final"].any()
    open_ones = [str(lineage) for lineage in finals.index[~finals.to_numpy(dtype=bool)]]
    notes = [f"Left out {name}: its final checkpoint is not measured yet." for name in open_ones]
    if open_ones:
        kept = tables.checkpoints[~tables.checkpoints["lineage"].isin(open_ones)]["model"]
        tables = tables.only(kept)
    tables.check_complete()
    write_zoo_tables(tables, root)
    return Joined(tables, tuple(notes))


def _read(folder: Path, fallback: Path | None = None) -> ZooTables:
    """Tables of one folder; its benchmarks may lie in `fallback`."""
    if not folder.is_dir():
        raise VisualHeadsError(f"A folder with the tables of a zoo is required; there is no {folder}. Name another.")
    frames: dict[str, Any] = {}
    for name, table in TABLES.items():
        path = folder / table.file
        if not path.is_file() and name == "benchmarks" and fallback is not None:
            path = fallback / table.file
        if not path.is_file():
            if not table.optional:
                raise VisualHeadsError(
                    f"A zoo needs {', '.join(t.file for t in TABLES.values() if not t.optional)}; {folder} lacks {table.file}. "
                    "Measure the zoo to the end, or name another folder."
                )
            continue
        reader: Callable[..., pd.DataFrame] = files.read_csv if path.suffix == ".csv" else files.read_parquet
        frames[name] = reader(path, table.columns)
    return ZooTables(**frames)


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _check_key(frame: pd.DataFrame, key: tuple[str, ...], name: str) -> None:
    for column in key:
        if frame[column].isna().any():
            raise VisualHeadsError(
                f"Every row of {name} needs a {column}; one has none. Fill it in, or leave the row out."
            )
    twice = frame.duplicated(list(key))
    if twice.any():
        row = ", ".join(f"{column} {frame[column][twice].iloc[0]}" for column in key)
        raise VisualHeadsError(f"A row of {name} stands once in a zoo; there are two of {row}. Keep one.")


def _check_names(name: str, frame: pd.DataFrame, models: pd.Series, benchmarks: pd.Series) -> None:
    for column, known, where in (("model", models, "checkpoints.csv"), ("benchmark", benchmarks, "benchmarks.csv")):
        unknown = sorted(set(frame.get(column, ())) - set(known))
        if unknown:
            raise VisualHeadsError(
                f"Every {column} of a zoo stands in {where}; {name} has {unknown[0]!r}, which does not. "
                "Add its row, or leave it out."
            )


def _check_words(frame: pd.DataFrame, column: str, words: tuple[str, ...], name: str) -> None:
    other = sorted(set(frame[column]) - set(words))
    if other:
        raise VisualHeadsError(f"{column} of {name} is one of {', '.join(words)}; {other[0]!r} came. Correct it.")


def _check_lists(frame: pd.DataFrame, columns: list[str], same: list[str], length: int | None) -> None:
    """Lists of a row have one length, rows that agree in `same` too (or all have `length`); entries are finite or missing."""
    expected: dict[Any, int] = {}
    what = f"{'items' if 'correct' in columns else 'replies' if same else 'answers'} of a zoo"
    for row in frame.to_dict("records"):
        where = f"{row['model']} on {row.get('benchmark', row.get('task'))} ({row['condition']})"
        for column in columns:
            cell = row[column]
            if cell is None:
                continue
            size = expected.setdefault(tuple(row[name] for name in same), len(cell) if length is None else length)
            if len(cell) != size:
                raise VisualHeadsError(
                    f"Lists in the {what} need one length; {column} of {where} has {len(cell)} entries instead of {size}. "
                    "Measure the same prompts for every checkpoint."
                )
            if cell.dtype.kind == "f" and np.isinf(cell).any():
                raise VisualHeadsError(
                    f"Numbers in the {what} are finite or missing; {column} of {where} is infinite. Measure it again."
                )


def _check_items_against_scores(items: pd.DataFrame, scores: pd.DataFrame) -> None:
    known = {
        (row["model"], row["benchmark"]): (row["score"] / row["scale"], row["n_items"])
        for row in scores.to_dict("records")
    }
    for row in items[items["condition"] == "clean"].to_dict("records"):
        score, n_items = known.get((row["model"], row["benchmark"]), (None, None))
        found = float(np.mean(row["correct"]))
        if score is not None and n_items == len(row["correct"]) and abs(found - score) > _TOLERANCE:
            raise VisualHeadsError(
                f"A score is the mean of its items; {row['model']} on {row['benchmark']} has score {score:g} and items with mean "
                f"{found:g}. They come from different runs: measure it again."
            )


def as_table(frame: pd.DataFrame, name: str) -> pa.Table:
    """A frame of the zoo as an Arrow table with declared types."""
    return files.arrow(frame, TABLES[name].columns)


__all__ = [
    "TABLES", "Joined", "ZooTables", "as_table", "join_parts", "put_together", "read_zoo_tables", "write_part", "write_zoo_tables",
]  # fmt: skip
