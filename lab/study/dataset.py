"""A measured zoo as arrays: what the protocol shows to methods, piece by piece.

Shapes: M checkpoints, B benchmarks, n items. Points run from 0 to 100. Leaks are looked for at birth: checkpoints that are
copies of each other count as one lineage. Repeats of a lineage from scratch are kept out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lab.study.duplicates import merged_lineages, twin_benchmarks
from lab.tables.as_product import evidence_table
from lab.tables.zoo import ZooTables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.evidence_table import EvidenceTable
from lmms_visual_heads.prediction.agreement import NO_REPLY

Array = npt.NDArray[np.float64]

SURE = 0.9
"""Confidence above which an item counts as sure."""

REPEAT_SUFFIX = "-repeat"
"""Ending of the name of a lineage that repeats another one from scratch."""


@dataclass(frozen=True)
class ZooData:
    """Arrays of a zoo.

    Attributes
    ----------
    models, lineages, strata : array [M]
        Lineages after copies were joined.
    final : bool array [M]
    steps : array [M]
        Share of the training that lies behind the checkpoint, 0..1.
    benchmarks : tuple of str
    generators : array [B]
        What draws the pictures.
    counting : bool array [B]
    chance, n_items : array [B]
    twins : array [B]
        Number of the group of benchmarks that are copies of each other.
    points : dict
        Condition -> array [M, B], NaN where not scored. At another temperature the answers are the same.
    items : dict
        Condition -> per benchmark (correct, confidence, entropy), each [M, n]; NaN rows where not measured.
    replies : dict
        Condition -> per benchmark the answers, int [M, n]; `agreement.NO_REPLY` where not measured.
    tables : ZooTables
    notes : tuple of str
    """

    models: npt.NDArray[np.str_]
    lineages: npt.NDArray[np.str_]
    strata: npt.NDArray[np.str_]
    final: npt.NDArray[np.bool_]
    steps: Array
    benchmarks: tuple[str, ...]
    generators: npt.NDArray[np.str_]
    counting: npt.NDArray[np.bool_]
    chance: Array
    n_items: Array
    twins: npt.NDArray[np.int64]
    points: Mapping[str, Array]
    items: Mapping[str, list[tuple[npt.NDArray[np.float32], ...]]]
    replies: Mapping[str, list[npt.NDArray[np.int16]]]
    tables: ZooTables
    notes: tuple[str, ...] = ()
    _cache: dict[tuple[str, int, int], EvidenceTable] = field(default_factory=dict, repr=False, compare=False)
    _drawn: dict[tuple[str, int, int], Array] = field(default_factory=dict, repr=False, compare=False)

    def evidence(self, n_prompts: int = 256, condition: str = "clean", half: int = -1) -> EvidenceTable:
        """Evidence of all M checkpoints, made once."""
        key = (condition, n_prompts, half)
        if key not in self._cache:
            same = [known for (c, _, h), known in self._cache.items() if c == condition and h == half]
            self._cache[key] = evidence_table(self.tables, n_prompts, condition, half, same[0] if same else None)
        return self._cache[key]

    def chosen(self, condition: str, order: list[npt.NDArray[np.intp]], passes: int) -> list[npt.NDArray[np.intp]]:
        """Per benchmark the first `passes` items of an order; under corrupted images fewer items were asked."""
        sizes = [tables[0].shape[1] for tables in self.items[condition]]
        return [positions[positions < size][:passes] for positions, size in zip(order, sizes, strict=True)]

    def drawn(self, condition: str, order: list[npt.NDArray[np.intp]], draw: int, passes: int) -> Array:
        """What the first `passes` items of a draw show, [M, B, 5]; made once per draw.

        Means of correctness, confidence and entropy, share of sure items, standard deviation of the confidence.
        """
        key = (condition, draw, passes)
        if key not in self._drawn:
            means = np.full((len(self.models), len(self.benchmarks), 5), np.nan)
            drawn = self.chosen(condition, order, passes)
            for b, (tables, chosen) in enumerate(zip(self.items[condition], drawn, strict=True)):
                for kind, table in enumerate(tables):
                    means[:, b, kind] = table[:, chosen].mean(axis=1, dtype=np.float64)
                sure = tables[1][:, chosen].astype(np.float64)
                means[:, b, 3] = np.where(np.isfinite(sure).all(axis=1), (sure > SURE).mean(axis=1), np.nan)
                means[:, b, 4] = sure.std(axis=1)
            self._drawn[key] = means
        return self._drawn[key]

    def replace_evidence(self, tables: Mapping[tuple[str, int, int], EvidenceTable]) -> ZooData:
        """The same zoo with other evidence, for controls that must show no skill."""
        copy = ZooData(**{name: getattr(self, name) for name in self.__dataclass_fields__ if not name.startswith("_")})
        copy._cache.update(tables)
        return copy

    @property
    def primary(self) -> npt.NDArray[np.bool_]:
        """Final checkpoints that were not broken on purpose, [M]."""
        return self.final & (self.strata != "broken")

    @property
    def groups(self) -> list[str]:
        """Names of the lineages, sorted."""
        return sorted(set(self.lineages.tolist()))


def zoo_data(tables: ZooTables) -> ZooData:
    """The arrays of `tables`, repeats left out.

    Raises
    ------
    VisualHeadsError
        Fewer than three lineages, or a benchmark that nobody was scored on.
    """
    checkpoints = tables.checkpoints
    repeats = checkpoints["lineage"].str.endswith(REPEAT_SUFFIX)
    notes = []
    if repeats.any():
        again = ", ".join(sorted(set(checkpoints["lineage"][repeats])))
        notes.append(f"Repeats from scratch are not predicted and not fitted on: {again}.")
        tables = tables.only(checkpoints["model"][~repeats])
        checkpoints = tables.checkpoints
    names = tuple(str(name) for name in tables.benchmarks["benchmark"])
    models = checkpoints["model"].to_numpy(dtype=str)
    points = _points(tables.scores, models, names)
    keep = np.flatnonzero(
        [np.nanstd(column[np.isfinite(column)]) > 0 if np.isfinite(column).any() else False for column in points.T]
    )
    if len(keep) < len(names):
        gone = [name for position, name in enumerate(names) if position not in set(keep)]
        notes.append(
            f"Left out the benchmarks {', '.join(gone)}: every checkpoint has one score, so there is nothing to predict."
        )
        kept = tables.benchmarks.iloc[keep]["benchmark"]
        tables = _only_benchmarks(tables, set(kept))
        names, points = tuple(str(name) for name in kept), points[:, keep]
    if not names:
        raise VisualHeadsError("A study needs a benchmark whose scores differ; none does. Measure other benchmarks.")
    items = {condition: _items(tables, condition, models, names) for condition in ("clean", "temperature", "corrupted")}
    said = _replies(tables, "clean", models, names)
    lineages, merged = merged_lineages(checkpoints["lineage"].to_numpy(dtype=str), models, points, items["clean"])
    twins, doubled = twin_benchmarks(points, names)
    if len(set(lineages.tolist())) < 3:
        raise VisualHeadsError(
            f"A study needs at least three separate lineages, and at least 15 before a coverage means anything; "
            f"{len(set(lineages.tolist()))} came ({len(models)} checkpoints). Train and measure more. "
            + " ".join(merged)
        )
    frame = tables.benchmarks
    corrupted = _points(tables.scores_corrupted, models, names)
    return ZooData(
        models=models,
        lineages=lineages,
        strata=checkpoints["stratum"].to_numpy(dtype=str),
        final=checkpoints["final"].to_numpy(dtype=bool),
        steps=(checkpoints["step"] / checkpoints["steps"]).to_numpy(dtype=float),
        benchmarks=names,
        generators=frame["generator"].to_numpy(dtype=str),
        counting=frame["counting"].to_numpy(dtype=bool),
        chance=frame["chance"].to_numpy(dtype=float),
        n_items=frame["n_items"].to_numpy(dtype=float),
        twins=twins,
        points={"clean": points, "temperature": points, "corrupted": corrupted},
        items={condition: found for condition, found in items.items() if found is not None},
        replies={"clean": said, "temperature": said, "corrupted": _corrupted(said, tables, models, names)}
        if said
        else {},
        tables=tables,
        notes=(*notes, *merged, *doubled),
    )


def _points(scores: pd.DataFrame, models: npt.NDArray[np.str_], benchmarks: tuple[str, ...]) -> Array:
    if scores.empty:
        return np.full((len(models), len(benchmarks)), np.nan)
    value = scores.assign(points=100.0 * scores["score"] / scores["scale"])
    wide = value.pivot(index="model", columns="benchmark", values="points")
    return np.asarray(wide.reindex(index=models, columns=list(benchmarks)).to_numpy(dtype=np.float64))


def _items(
    tables: ZooTables, condition: str, models: npt.NDArray[np.str_], benchmarks: tuple[str, ...]
) -> list[tuple[npt.NDArray[np.float32], ...]] | None:
    frame = tables.items[tables.items["condition"] == condition]
    if frame.empty:
        return None
    columns = ("correct", "confidence", "entropy")
    return [
        tuple(_lists(rows, column, models, np.nan, np.float32) for column in columns)
        for rows in (frame[frame["benchmark"] == name] for name in benchmarks)
    ]


def _lists(
    rows: pd.DataFrame, column: str, models: npt.NDArray[np.str_], missing: float, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Lists of one benchmark's rows as an array [M, n]; `missing` where a model has none."""
    array = np.full((len(models), len(rows[column].iloc[0]) if len(rows) else 0), missing, dtype=dtype)
    at = {name: position for position, name in enumerate(models)}
    for model, values in zip(rows["model"], rows[column], strict=True):
        if values is not None:
            array[at[model]] = values
    return array


def _replies(
    tables: ZooTables, condition: str, models: npt.NDArray[np.str_], benchmarks: tuple[str, ...]
) -> list[npt.NDArray[np.int16]]:
    frame = tables.replies[tables.replies["condition"] == condition]
    if frame.empty:
        return []
    return [_lists(frame[frame["benchmark"] == name], "answer", models, NO_REPLY, np.int16) for name in benchmarks]


def _corrupted(
    clean: list[npt.NDArray[np.int16]], tables: ZooTables, models: npt.NDArray[np.str_], benchmarks: tuple[str, ...]
) -> list[npt.NDArray[np.int16]]:
    """Answers under corrupted images, [M, n] as the clean ones: fewer items were asked, so the rest is missing."""
    out = []
    for said, short in zip(clean, _replies(tables, "corrupted", models, benchmarks), strict=False):
        held = np.full_like(said, NO_REPLY)
        held[:, : short.shape[1]] = short
        out.append(held)
    return out


def _only_benchmarks(tables: ZooTables, kept: set[str]) -> ZooTables:
    def part(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["benchmark"].isin(kept)] if "benchmark" in frame.columns else frame

    return ZooTables(**{name: part(getattr(tables, name)) for name in tables.__dataclass_fields__})
