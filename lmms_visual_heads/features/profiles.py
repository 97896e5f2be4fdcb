"""Head tables -> head profiles: per (model, task, layer, head) the means over documents.

Columns: `schema.PROFILE_COLUMNS`.

C and F are weighted by W, because a head that hardly looks at the image says little about where it looks; the region lift
is pooled over documents, ln(sum r / sum w b). Reads tables in pieces of bounded size. Never imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import (
    HEADS_SUFFIX,
    METADATA_KEY,
    PROFILE_COLUMNS,
    PROFILE_STATISTICS,
    SCHEMA_VERSION,
    arrow_schema,
)
from lmms_visual_heads.tables import HeadTable, read_head_tables
from lmms_visual_heads.tables.files import list_tables, write_bytes
from lmms_visual_heads.tables.metadata import check_metadata

PROFILES_SUFFIX = ".profiles.parquet"
"""Ending of a file of head profiles: a head table's means, thousands of times smaller."""

_GROUP = ["task", "layer", "head"]
_WEIGHTED = ("concentration", "focus")
_NAMES = [c.name for c in PROFILE_COLUMNS]


@dataclass(frozen=True)
class HeadProfiles:
    """Head profiles of M models with the metadata of the tables they come from.

    Attributes
    ----------
    frame : DataFrame
        `schema.PROFILE_COLUMNS`; missing means are NaN.
    metadata_by_model : dict
        Per model the metadata document of its head table.
    notes : tuple of str
        Sentences on what was left out on the way.
    """

    frame: pd.DataFrame
    metadata_by_model: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [name for name in _NAMES if name not in self.frame.columns]
        if missing:
            raise VisualHeadsError(
                f"Head profiles need the columns {', '.join(_NAMES)}; missing: {', '.join(missing)}."
            )
        without = sorted(set(self.frame["model"]) - set(self.metadata_by_model))
        if without:
            raise VisualHeadsError(
                f"Head profiles need the metadata of every model; {', '.join(without)} came without. Read them with "
                "read_profiles."
            )
        for name, document in self.metadata_by_model.items():
            check_metadata(document, f"the profile of {name!r}")
        for column in (*PROFILE_STATISTICS, "region_lift"):
            infinite = np.isinf(self.frame[column].to_numpy(dtype=float, na_value=np.nan))
            if infinite.any():
                raise VisualHeadsError(
                    f"Head statistics must be finite or missing; {column} of "
                    f"{self.frame['model'][infinite].iloc[0]!r} is "
                    "infinite. Measure that model's heads again."
                )
        if self.frame.duplicated(["model", *_GROUP]).any():
            twice = self.frame[self.frame.duplicated(["model", *_GROUP])].iloc[0]
            raise VisualHeadsError(
                f"A head has one profile per task; {twice['model']!r} has two of layer {twice['layer']}, head "
                f"{twice['head']} on "
                f"{twice['task']}. Give different models different names with model_name=."
            )

    @property
    def models(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted(self.metadata_by_model)

    def only(self, models: Iterable[str]) -> HeadProfiles:
        """The profiles of some of the models."""
        wanted = set(models)
        kept = {name: document for name, document in self.metadata_by_model.items() if name in wanted}
        return HeadProfiles(self.frame[self.frame["model"].isin(wanted)].reset_index(drop=True), kept, self.notes)

    @classmethod
    def from_tables(cls, tables: Iterable[HeadTable]) -> HeadProfiles:
        """Profiles of several models' head tables.

        Raises
        ------
        VisualHeadsError
            When two tables have the same model, or a table has no row.
        """
        frames: list[pd.DataFrame] = []
        documents: dict[str, Mapping[str, Any]] = {}
        notes: list[str] = []
        for table in tables:
            if table.model in documents:
                raise VisualHeadsError(
                    f"One head table per model is required; {table.model!r} came twice. "
                    "Read its files together, or give the runs different names with model_name=."
                )
            frames.append(head_profile(table))
            documents[table.model] = table.metadata
            notes += table.notes
        frame = pd.concat(frames, ignore_index=True) if frames else _empty()
        return cls(frame, documents, tuple(dict.fromkeys(notes)))

    @classmethod
    def join(cls, several: Iterable[HeadProfiles], notes: tuple[str, ...] = ()) -> HeadProfiles:
        """One object out of several; a model that comes twice is refused."""
        frames: list[pd.DataFrame] = []
        documents: dict[str, Mapping[str, Any]] = {}
        collected = list(notes)
        for profiles in several:
            twice = sorted(set(documents) & set(profiles.metadata_by_model))
            if twice:
                raise VisualHeadsError(
                    f"One head profile per model is required; {', '.join(twice)} came twice. "
                    "Leave one of the files out, or give the runs different names with model_name=."
                )
            frames.append(profiles.frame[_NAMES])
            documents.update(profiles.metadata_by_model)
            collected += profiles.notes
        filled = [frame for frame in frames if len(frame)] or [_empty()]
        return cls(pd.concat(filled, ignore_index=True), documents, tuple(dict.fromkeys(collected)))


def head_profile(table: HeadTable) -> pd.DataFrame:
    """Means over documents per (task, layer, head) of one model's head table.

    Parameters
    ----------
    table : HeadTable

    Returns
    -------
    DataFrame
        `schema.PROFILE_COLUMNS`, sorted by task, layer, head. A mean without any document is NaN.

    Raises
    ------
    VisualHeadsError
        When the table has no row.
    """
    sums: pd.DataFrame | None = None
    for batch in table.batches():
        piece = _sums(batch.to_pandas())
        sums = piece if sums is None else sums.add(piece, fill_value=0.0)
    if sums is None:
        raise VisualHeadsError(
            f"A head table with rows is required; {table.where} has none. Run the probe: lmms-eval ... --tasks vhead."
        )
    sums = sums.sort_index()
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {
            name: sums[f"sum {name}"] / sums[f"weight {name}"].where(sums[f"weight {name}"] > 0)
            for name in PROFILE_STATISTICS
        }
        expected, found = sums["sum region expected"], sums["sum region"]
        lift = np.log((found / expected).where((found > 0) & (expected > 0)))
    frame = pd.DataFrame({**means, "region_lift": lift, "n_documents": sums["n_documents"]}).reset_index()
    frame.insert(0, "model", table.model)
    types = {c.name: c.type.to_pandas_dtype() for c in PROFILE_COLUMNS if not pa.types.is_string(c.type)}
    return frame[_NAMES].astype(types)


def _sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Additive parts of the means: per statistic the weighted sum and the weight, over the documents that have it."""
    weight = frame["image_attention"].to_numpy(dtype=np.float64)
    parts: dict[str, Any] = {name: frame[name].to_numpy() for name in _GROUP}
    for name in PROFILE_STATISTICS:
        values = frame[name].to_numpy(dtype=np.float64)
        weights = weight if name in _WEIGHTED else np.ones_like(weight)
        there = np.isfinite(values) & np.isfinite(weights)
        parts[f"sum {name}"] = np.where(there, values * weights, 0.0)
        parts[f"weight {name}"] = np.where(there, weights, 0.0)
    region = frame["region_attention"].to_numpy(dtype=np.float64)
    patch = weight - frame["newline_attention"].to_numpy(dtype=np.float64)
    expected = patch * frame["region_share"].to_numpy(dtype=np.float64)
    there = np.isfinite(region) & np.isfinite(expected)
    parts["sum region"] = np.where(there, region, 0.0)
    parts["sum region expected"] = np.where(there, expected, 0.0)
    parts["n_documents"] = np.isfinite(weight).astype(np.float64)
    return pd.DataFrame(parts).groupby(_GROUP, sort=False, observed=True).sum()


def read_profiles(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> HeadProfiles:
    """Head profiles of everything under `paths`: head tables, and files written by `write_profiles`.

    Raises
    ------
    VisualHeadsError
        As `tables.read_head_tables`, and when a model comes twice.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    saved: list[Path] = []
    heads: list[Path] = []
    for path in given:
        if path.is_dir() and any(path.rglob(f"*{PROFILES_SUFFIX}")):
            saved += list_tables([path], PROFILES_SUFFIX).files
            if any(path.rglob(f"*{HEADS_SUFFIX}")):
                heads.append(path)
        elif path.name.endswith(PROFILES_SUFFIX):
            saved += list_tables([path], PROFILES_SUFFIX).files
        else:
            heads.append(path)
    several = [_read_saved(path) for path in dict.fromkeys(saved)]
    if heads or not saved:
        several.append(HeadProfiles.from_tables(read_head_tables(heads)))
    return HeadProfiles.join(several)


def write_profiles(profiles: HeadProfiles, path: str | os.PathLike[str]) -> Path:
    """Write head profiles as one small Parquet file (ending ".profiles.parquet"), atomically."""
    target = Path(path)
    if not target.name.endswith(PROFILES_SUFFIX):
        raise VisualHeadsError(
            f"A file of head profiles ends in {PROFILES_SUFFIX}; {target.name} came. Choose such a name."
        )
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": {name: profiles.metadata_by_model[name] for name in profiles.models},
    }
    schema = arrow_schema(PROFILE_COLUMNS).with_metadata({METADATA_KEY: json.dumps(document, sort_keys=True).encode()})
    table = pa.Table.from_pandas(profiles.frame[_NAMES], schema, preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return write_bytes(target, sink.getvalue().to_pybytes())


def _read_saved(path: Path) -> HeadProfiles:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise VisualHeadsError(
            f"A complete file of head profiles is required; {path} is truncated or not Parquet ({error}). Copy it "
            "again."
        ) from error
    content = (table.schema.metadata or {}).get(METADATA_KEY)
    try:
        document = json.loads(content) if content is not None else None
    except (UnicodeDecodeError, json.JSONDecodeError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("models"), dict):
        raise VisualHeadsError(
            f"A file written by write_profiles is required; {path} lacks its metadata. Write it again."
        )
    if isinstance(document.get("schema_version"), int) and document["schema_version"] > SCHEMA_VERSION:
        raise VisualHeadsError(
            f"Head profiles of schema version {SCHEMA_VERSION} or older are required; {path} has version "
            f"{document['schema_version']}. Upgrade with: pip install --upgrade lmms-visual-heads."
        )
    return HeadProfiles(table.to_pandas(), document["models"])


def _empty() -> pd.DataFrame:
    return arrow_schema(PROFILE_COLUMNS).empty_table().to_pandas()
