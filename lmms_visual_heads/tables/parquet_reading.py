"""What the readers of head, answer and causal tables share: footers first, rows when asked for, files of one model merged.

A task stands once per model: of two measurements the one with more documents is kept, of equal ones the newer.
Never mixes queries, data or models in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import METADATA_KEY, Column, arrow_schema, declared
from lmms_visual_heads.tables import files
from lmms_visual_heads.tables import metadata as metadata_documents

_SAME_IN_ONE_MODEL = ("query", "dtype", "image_processor")
_SAME_IN_ONE_DESCRIPTION = ("revision", "layers", "heads")
_ROWS_PER_BATCH = 1 << 17

T = TypeVar("T", bound="Table")


@dataclass(frozen=True)
class _Source:
    """One finished file, its checked metadata, and the tasks of it that count."""

    path: Path
    metadata: Mapping[str, Any]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Tables of one kind and one model, possibly from several files.

    Attributes
    ----------
    metadata : dict
        The metadata document; `tasks` joined over the files.
    notes : tuple of str
        Sentences on what was left out while merging.
    """

    columns: ClassVar[tuple[Column, ...]]
    suffix: ClassVar[str]
    counted: ClassVar[str] = "n_documents"
    """Which number of a task's metadata tells how much of it the table holds."""
    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    _sources: tuple[_Source, ...] = field(default=(), repr=False)
    _in_memory: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        metadata_documents.check_metadata(self.metadata, self.where)
        if self._in_memory is not None:
            missing = [c.name for c in self.columns if c.name not in self._in_memory.columns and not c.added]
            if missing:
                raise VisualHeadsError(
                    f"A {self.kind} table needs the columns {', '.join(missing)}; {self.where} lacks them."
                )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, metadata: Mapping[str, Any]) -> Self:
        """A table in memory: the declared columns, and a metadata document (`schema_version` is filled in)."""
        return cls(metadata_documents.complete_metadata(metadata), _in_memory=frame)

    @property
    def kind(self) -> str:
        """What the table holds: "heads", "answers" or "causal"."""
        return self.suffix.split(".")[1]

    @property
    def model(self) -> str:
        """The model's name, which joins heads and scores."""
        return str(self.metadata["model"]["name"])

    @property
    def query(self) -> str:
        """Which row of attention was read."""
        return str(self.metadata["query"])

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Per task its fingerprint and numbers of documents."""
        return dict(self.metadata["tasks"])

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files behind the table; empty for a table in memory."""
        return tuple(source.path for source in self._sources)

    @property
    def where(self) -> str:
        """The files' names, for messages."""
        return ", ".join(str(path) for path in self.paths) or f"the {self.kind} table in memory"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All rows, the declared columns in order; missing values are NaN (None in text columns)."""
        if self._in_memory is not None:
            return self._complete(self._in_memory)
        tables = [pa.Table.from_batches([batch]) for batch in self.batches()]
        return (pa.concat_tables(tables) if tables else arrow_schema(self.columns).empty_table()).to_pandas()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in pieces of bounded size, for tables that do not fit into memory.

        Raises
        ------
        VisualHeadsError
            When a file is damaged behind its footer.
        """
        if self._in_memory is not None:
            yield from pa.Table.from_pandas(
                self._complete(self._in_memory), arrow_schema(self.columns), preserve_index=False
            ).to_batches()
            return
        for source in self._sources:
            wanted = pa.array(source.tasks, pa.string())
            try:
                with pq.ParquetFile(source.path) as parquet:
                    written = set(parquet.schema_arrow.names)
                    names = [c.name for c in self.columns if c.name in written]
                    for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=names):
                        rows = declared(batch.filter(pc.is_in(batch.column("task"), value_set=wanted)), self.columns)
                        if len(rows):
                            yield rows
            except (pa.ArrowException, OSError) as error:
                raise _damaged(source.path, error) from error

    @property
    def has_rows(self) -> bool:
        """Whether any row is there."""
        return next(self.batches(), None) is not None

    def _complete(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The declared columns of `frame`; what was added later and is not there is missing in every row."""
        absent = {c.name: float("nan") for c in self.columns if c.name not in frame.columns}
        return (frame.assign(**absent) if absent else frame)[[c.name for c in self.columns]]


def only_one(tables: list[T]) -> T:
    """The one table in `tables`.

    Raises
    ------
    VisualHeadsError
        When there are several.
    """
    if len(tables) != 1:
        raise VisualHeadsError(
            f"One model is required here; there are {len(tables)}: {', '.join(t.model for t in tables)}. "
            "Name one model's files, or read them all with the plural function."
        )
    return tables[0]


def read_tables(kind: type[T], paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[T]:
    """Tables of one kind under `paths`, one per model, in order of the models' names.

    Parameters
    ----------
    kind : type of Table
        `HeadTable`, `AnswerTable` or `CausalTable`.
    paths : path or iterable of paths
        Finished files and folders (searched recursively; parts of unfinished runs are passed over and noted).

    Raises
    ------
    VisualHeadsError
        One sentence naming the file: nothing there, not Parquet, truncated, a newer schema, a missing column; or naming
        the model: its files differ in query, data, dtype, revision or shape.
    """
    listing = files.list_tables([paths] if isinstance(paths, str | os.PathLike) else paths, kind.suffix)
    if not listing.files:
        raise VisualHeadsError(f"At least one *{kind.suffix} file or folder is required; none was named.")
    by_model: dict[str, list[_Source]] = {}
    for path in listing.files:
        source = _open(kind, path)
        by_model.setdefault(source.metadata["model"]["name"], []).append(source)
    general = tuple(f"Passed over {path}: its run did not finish." for path in listing.unfinished)
    tables = [_merge(kind, name, by_model[name]) for name in sorted(by_model)]
    first = tables[0]
    return [kind(first.metadata, (*general, *first.notes), first._sources), *tables[1:]]


def _open(kind: type[Table], path: Path) -> _Source:
    """Check a file by its footer."""
    try:
        with pq.ParquetFile(path) as parquet:
            schema = parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    document = metadata_documents.from_bytes((schema.metadata or {}).get(METADATA_KEY), str(path))
    missing = [c.name for c in kind.columns if c.name not in schema.names and not c.added]
    if missing:
        raise VisualHeadsError(
            f"A table of {kind.suffix.split('.')[1]} needs the columns {', '.join(missing)}; {path} lacks them. "
            f"Name a *{kind.suffix} file."
        )
    for column in (c for c in kind.columns if c.name in schema.names):
        on_disk = schema.field(column.name).type
        if on_disk != column.type:
            raise VisualHeadsError(
                f"Column {column.name!r} must hold {column.type}; {path} holds {on_disk}. Write the table again."
            )
    return _Source(path, document, tuple(document["tasks"]))


def _damaged(path: Path, error: Exception) -> VisualHeadsError:
    reason = " ".join(str(error).split()).rstrip(".")
    return VisualHeadsError(
        f"A complete Parquet file is required; {path} is truncated or not Parquet ({reason}). Copy it again, or run "
        "the probe again."
    )


def _merge(kind: type[T], name: str, sources: list[_Source]) -> T:
    """One table out of the files of one model."""
    for other in sources[1:]:
        _check_same(name, sources[0], other)
    notes: list[str] = []
    keeper: dict[str, _Source] = {}
    for source in sorted(sources, key=_written):
        for task, description in source.metadata["tasks"].items():
            if task not in keeper:
                keeper[task] = source
                continue
            earlier = keeper[task].metadata["tasks"][task]
            if earlier.get("fingerprint") != description.get("fingerprint"):
                raise VisualHeadsError(
                    f"Task {task!r} of model {name!r} must come from one data set; {keeper[task].path} and "
                    f"{source.path} "
                    "have different fingerprints. Leave one of the files out."
                )
            now, before = _number(description, kind.counted), _number(earlier, kind.counted)
            winner = source if now >= before else keeper[task]
            loser = keeper[task] if winner is source else source
            reason = "it has more documents" if now != before else "it is newer"
            notes.append(
                f"Task {task!r} of model {name!r} was measured twice; kept {winner.path} ({reason}), not {loser.path}."
            )
            keeper[task] = winner
    tasks = {task: keeper[task].metadata["tasks"][task] for task in sorted(keeper)}
    used = [
        _Source(source.path, source.metadata, tuple(task for task in tasks if keeper[task] is source))
        for source in sources
    ]
    document = {**max(sources, key=_written).metadata, "tasks": tasks}
    return kind(document, tuple(notes), tuple(source for source in used if source.tasks or len(sources) == 1))


def _check_same(name: str, one: _Source, other: _Source) -> None:
    pairs = [(key, one.metadata.get(key), other.metadata.get(key)) for key in _SAME_IN_ONE_MODEL]
    pairs += [
        (key, one.metadata["model"].get(key), other.metadata["model"].get(key)) for key in _SAME_IN_ONE_DESCRIPTION
    ]
    for key, left, right in pairs:
        if left != right:
            raise VisualHeadsError(
                f"The files of model {name!r} must have one {key.replace('_', ' ')}; {one.path} has {left!r} and "
                f"{other.path} has "
                f"{right!r}. Leave one of the files out, or give the runs different names with model_name=."
            )


def _written(source: _Source) -> str:
    return str(source.metadata.get("written", ""))


def _number(description: Mapping[str, Any], name: str) -> int:
    value = description.get(name, 0)
    return int(value) if isinstance(value, int) else 0
