"""The journal of an unfinished run: what it has measured so far, on disk, so that `kill -9` costs at most the last minute.

A folder `<name>.run` beside the tables. Every flush adds one chunk per process: head rows, answer rows and the responses that
lmms-eval wants, each file complete or absent; the responses come last and make the chunk count. Opening the journal of the same
run again gives back what was answered; `merge` streams all chunks, of all processes, into the final tables in one fixed order
(task, document), so the tables do not tell how often the run was interrupted or how many processes it had.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables import files
from lmms_visual_heads.tables.writing import AnswerTableWriter, HeadTableWriter

RUN_SUFFIX = ".run"
FLUSH_SECONDS = 30.0
FLUSH_ROWS = 1 << 18
"""A chunk is written when it is this old or this long, whichever comes first."""
MOST_CHUNKS = 16
"""When a process has this many chunks of one level it merges them into one of the next, so that the final merge opens few
files and every row is rewritten only once per level."""

_HEADS, _ANSWERS, _RESPONSES = "heads.chunk", "answers.chunk", "responses.jsonl"
_ROWS_PER_GROUP = 1 << 16
_ROWS_PER_READ = 1 << 13

Document = tuple[str, int]


class RunJournal:
    """Journal of one run; several processes of the run may have it open at once, each under its own rank.

    Parameters
    ----------
    folder : Path
        Where the tables will go.
    identity : str
        Name of the run: the same for the same command on the same checkpoint, different otherwise.
    metadata : mapping
        Metadata document without the counts; goes into every chunk.
    rank : int
        This process's rank.

    Raises
    ------
    VisualHeadsError
        When the folder cannot be written, or another run of the same identity is writing there now.
    """

    def __init__(self, folder: Path, identity: str, metadata: Mapping[str, Any], rank: int = 0) -> None:
        self.path = folder / f"{identity}{RUN_SUFFIX}"
        self.rank = rank
        self._metadata = {"tasks": {}, **metadata}
        self._responses: list[dict[str, Any]] = []
        self._heads: list[tuple[Document, dict[str, Any]]] = []
        self._answers: list[tuple[Document, dict[str, Any]]] = []
        self._n_rows = 0
        self._levels: dict[int, int] = {}
        self._flushed = time.monotonic()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / f"lock-{rank}")
        except OSError as error:
            raise VisualHeadsError(
                f"heads= must name a folder that can be written; {folder} cannot: {error.strerror}. Name another."
            ) from None
        self._drop_incomplete()
        self._next = 1 + max((number for _, number in self._chunks(rank)), default=0)

    def responses(self) -> Iterator[dict[str, Any]]:
        """Everything that earlier processes of this run recorded with `add_response`, in no particular order."""
        for rank, number in self._chunks():
            with self._file(rank, number, _RESPONSES).open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def add_response(self, response: Mapping[str, Any]) -> None:
        """Record one response; anything that JSON can hold."""
        self._responses.append(dict(response))
        self._n_rows += 1

    def add_heads(self, task: str, doc_id: int, **values: Any) -> None:
        """Record a document's head statistics (arguments as `HeadTableWriter.add`)."""
        self._heads.append(((task, doc_id), values))
        self._n_rows += max(np.size(grid) for grid in values["statistics"].values())

    def add_answer(self, task: str, doc_id: int, **values: Any) -> None:
        """Record a document's answer row (arguments as `AnswerTableWriter.add`)."""
        self._answers.append(((task, doc_id), values))

    def flush_if_due(self) -> None:
        """Write a chunk when the last one is old or much has come since. Call it between documents, not within one."""
        if self._n_rows >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last flush as one chunk.

        Raises
        ------
        VisualHeadsError
            When the disk is full; the chunk then does not count, and what came before it does.
        """
        self._flushed = time.monotonic()
        if not self._responses:
            return
        number = self._next
        try:
            self._write_chunk(number)
        except OSError as error:
            for kind in (_HEADS, _ANSWERS, _RESPONSES):
                self._file(self.rank, number, kind).unlink(missing_ok=True)
            raise VisualHeadsError(
                f"What is measured must be written as the run goes; {self.path} cannot be written: {error.strerror or error}. "
                "Make room and start the same command again: it goes on from the last chunk."
            ) from error
        self._next += 1
        self._responses, self._heads, self._answers, self._n_rows = [], [], [], 0
        self._compact_full_levels()

    def merge(self, wanted: set[Document], heads: HeadTableWriter | None, answers: AnswerTableWriter | None) -> None:
        """Stream the rows of the `wanted` documents out of every process's chunks, ordered by task and document.

        Of a document that was recorded twice the first chunk's rows count. The caller closes the writers.
        """
        for kind, writer in ((_HEADS, heads), (_ANSWERS, answers)):
            if writer is None:
                continue
            for document, batch in self._merged(kind, self._chunks()):
                if document in wanted and not writer.has(*document):
                    writer.append_batch(batch, document)

    def n_recorded(self) -> int:
        """Documents in the chunks on disk."""
        return len({(one["task"], one["doc_id"]) for one in self.responses()})

    def close(self) -> None:
        """Let go of the journal; what is in it stays."""
        self._lock.close()

    def remove(self) -> None:
        """Delete the journal: its run is finished."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _write_chunk(self, number: int) -> None:
        for kind, rows, writer_class in (
            (_HEADS, self._heads, HeadTableWriter),
            (_ANSWERS, self._answers, AnswerTableWriter),
        ):
            if not rows:
                continue
            writer = writer_class(self._file(self.rank, number, kind), self._metadata)
            writer.rows_per_group = _ROWS_PER_GROUP
            for (task, doc_id), values in sorted(rows, key=lambda row: row[0]):
                writer.add(task, doc_id, **values)
            writer.close()
        lines = "".join(json.dumps(response) + "\n" for response in self._responses)
        files.write_bytes(self._file(self.rank, number, _RESPONSES), lines.encode())

    def _compact_full_levels(self) -> None:
        """Merge the chunks of every level that is full into one of the next level; chunks of an earlier process are level 0."""
        level = 0
        while True:
            own = [number for _, number in self._chunks(self.rank) if self._levels.get(number, 0) == level]
            if len(own) < MOST_CHUNKS:
                return
            level += 1
            self._levels[self._next] = level
            self._compact(own)

    def _compact(self, numbers: list[int]) -> None:
        """Merge own chunks into one. Killed in between, both stand for a while: the first of two equal rows counts."""
        target = self._next
        chunks = [(self.rank, number) for number in numbers]
        for kind, writer_class in ((_HEADS, HeadTableWriter), (_ANSWERS, AnswerTableWriter)):
            if not any(self._file(rank, number, kind).exists() for rank, number in chunks):
                continue
            writer = writer_class(self._file(self.rank, target, kind), self._metadata)
            writer.rows_per_group = _ROWS_PER_GROUP
            for document, batch in self._merged(kind, chunks):
                if not writer.has(*document):
                    writer.append_batch(batch, document)
            writer.close()
        part = self.path / f"compacting-{self.rank}.part"
        with part.open("wb") as whole:
            for rank, number in chunks:
                with self._file(rank, number, _RESPONSES).open("rb") as lines:
                    shutil.copyfileobj(lines, whole)
        files.finalise(part, self._file(self.rank, target, _RESPONSES))
        self._next += 1
        for rank, number in chunks:
            for kind in (_RESPONSES, _ANSWERS, _HEADS):
                self._file(rank, number, kind).unlink(missing_ok=True)

    def _merged(self, kind: str, chunks: list[tuple[int, int]]) -> Iterator[tuple[Document, pa.RecordBatch]]:
        """Documents of several chunks, each sorted, in one order."""
        paths = [self._file(rank, number, kind) for rank, number in chunks]
        streams = [_documents(path, order) for order, path in enumerate(paths) if path.exists()]
        for document, _, batch in heapq.merge(*streams, key=lambda entry: entry[:2]):
            yield document, batch

    def _chunks(self, rank: int | None = None) -> list[tuple[int, int]]:
        """(rank, number) of the complete chunks, oldest first within a rank."""
        pattern = f"{'*' if rank is None else rank}-*.{_RESPONSES}"
        found = []
        for path in self.path.glob(pattern):
            of_rank, number = path.name.removesuffix(f".{_RESPONSES}").split("-")
            found.append((int(of_rank), int(number)))
        return sorted(found)

    def _drop_incomplete(self) -> None:
        """Remove own files whose chunk was never completed."""
        complete = set(self._chunks(self.rank))
        for kind in (_HEADS, _ANSWERS):
            for path in self.path.glob(f"{self.rank}-*.{kind}*"):
                number = int(path.name.split(".")[0].split("-")[1])
                if (self.rank, number) not in complete or not path.name.endswith(kind):
                    path.unlink(missing_ok=True)

    def _file(self, rank: int, number: int, kind: str) -> Path:
        return self.path / f"{rank}-{number:06d}.{kind}"


def _documents(path: Path, order: int) -> Iterator[tuple[Document, int, pa.RecordBatch]]:
    """The documents of one sorted chunk, one batch each; holds one row group (and the document that goes on) at a time."""
    held: list[pa.RecordBatch] = []
    current: Document | None = None
    with pq.ParquetFile(path, pre_buffer=False) as file:  # or every stream would hold its whole file
        for batch in file.iter_batches(batch_size=_ROWS_PER_READ, use_threads=False):
            tasks = np.asarray(batch.column("task").to_pylist(), dtype=object)
            doc_ids = batch.column("doc_id").to_numpy()
            starts = np.flatnonzero((tasks[1:] != tasks[:-1]) | (doc_ids[1:] != doc_ids[:-1])) + 1
            for start, end in zip([0, *starts], [*starts, len(batch)], strict=True):
                document = (str(tasks[start]), int(doc_ids[start]))
                if current is not None and document != current:
                    yield current, order, _one(held)
                    held = []
                current = document
                held.append(batch.slice(start, end - start))
    if current is not None:
        yield current, order, _one(held)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _locked(path: Path) -> IO[bytes]:
    """Open and lock a file; the lock goes with the process, however it ends.

    Raises
    ------
    VisualHeadsError
        When another process holds it.
    """
    handle = path.open("ab")
    if os.name != "posix":
        return handle
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise VisualHeadsError(
            f"One run writes into a journal at a time; another run of this model is writing into {path.parent}. "
            "Wait for it, or give this run another folder with heads=DIR."
        ) from None
    return handle
