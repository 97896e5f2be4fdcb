"""A measured zoo as arrays: what the protocol shows to methods, piece by piece.

Shapes: M checkpoints, B benchmarks, n items. Points run from 0 to 100. Leaks are looked for at birth: checkpoints that are
copies of each other count as one lineage. Repeats of a lineage from scratch are kept out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.evidence_table import EvidenceTable, evidence_table
from lmms_visual_heads.prediction.leaks import merged_lineages, twin_benchmarks
from lmms_visual_heads.tables.zoo import ZooTables

Array = npt.NDArray[np.float64]

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
    counting : bool array [B]
    chance, n_items : array [B]
    twins : array [B]
        Number of the group of benchmarks that are copies of each other.
    points : dict
        Condition -> array [M, B], NaN where not scored. At another temperature the answers are the same.
    items : dict
        Condition -> per benchmark (correct, confidence, entropy), each [M, n]; NaN rows where not measured.
    tables : ZooTables
    notes : tuple of str
    """

    models: npt.NDArray[np.str_]
    lineages: npt.NDArray[np.str_]
    strata: npt.NDArray[np.str_]
    final: npt.NDArray[np.bool_]
    steps: Array
    benchmarks: tuple[str, ...]
    counting: npt.NDArray[np.bool_]
    chance: Array
    n_items: Array
    twins: npt.NDArray[np.int64]
    points: Mapping[str, Array]
    items: Mapping[str, list[tuple[npt.NDArray[np.float32], ...]]]
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

    def drawn(self, condition: str, order: list[npt.NDArray[np.intp]], draw: int, passes: int) -> Array:
        """Means over the first `passes` items of a draw: correctness, confidence, entropy, [M, B, 3]; made once per draw."""
        key = (condition, draw, passes)
        if key not in self._drawn:
            means = np.full((len(self.models), len(self.benchmarks), 3), np.nan)
            for b, (tables, positions) in enumerate(zip(self.items[condition], order, strict=True)):
                chosen = positions[positions < tables[0].shape[1]][:passes]
                for kind, table in enumerate(tables):
                    means[:, b, kind] = table[:, chosen].mean(axis=1, dtype=np.float64)
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
        counting=frame["counting"].to_numpy(dtype=bool),
        chance=frame["chance"].to_numpy(dtype=float),
        n_items=frame["n_items"].to_numpy(dtype=float),
        twins=twins,
        points={"clean": points, "temperature": points, "corrupted": corrupted},
        items={condition: found for condition, found in items.items() if found is not None},
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
    at = {name: position for position, name in enumerate(models)}
    found = []
    for name in benchmarks:
        rows = frame[frame["benchmark"] == name]
        size = len(rows["correct"].iloc[0]) if len(rows) else 0
        arrays = tuple(np.full((len(models), size), np.nan, dtype=np.float32) for _ in range(3))
        for row in rows.to_dict("records"):
            for array, column in zip(arrays, ("correct", "confidence", "entropy"), strict=True):
                if row[column] is not None:
                    array[at[row["model"]]] = row[column]
        found.append(arrays)
    return found


def _only_benchmarks(tables: ZooTables, kept: set[str]) -> ZooTables:
    def part(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["benchmark"].isin(kept)] if "benchmark" in frame.columns else frame

    return ZooTables(**{name: part(getattr(tables, name)) for name in tables.__dataclass_fields__})
