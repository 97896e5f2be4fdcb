"""The journal of an unfinished run: what it has measured so far, on disk, so that `kill -9` costs at most the last minute.

A folder `<name>.run` beside the tables. Every flush adds one chunk per process: head rows, answer rows, causal rows and the
responses that lmms-eval wants, each file complete or absent; the responses come last and make the chunk count. Opening the
journal of the same run again gives back what was answered; `merge` streams all chunks, of all processes, into the final tables
in one fixed order (task, document), so the tables do not tell how often the run was interrupted or how many processes it had.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables import AnswerTableWriter, CausalTableWriter, HeadTableWriter, files

RUN_SUFFIX = ".run"
FLUSH_SECONDS = 30.0
FLUSH_ROWS = 1 << 18
"""A chunk is written when it is this old or this long, whichever comes first."""
MOST_CHUNKS = 16
"""When a process has this many chunks of one level it merges them into one of the next, so that the final merge opens few
files and every row is rewritten only once per level."""

_HEADS, _ANSWERS, _CAUSAL, _RESPONSES = "heads.chunk", "answers.chunk", "causal.chunk", "responses.jsonl"
_Writer = HeadTableWriter | AnswerTableWriter | CausalTableWriter
_WRITERS: dict[str, type[HeadTableWriter] | type[AnswerTableWriter] | type[CausalTableWriter]] = {
    _HEADS: HeadTableWriter,
    _ANSWERS: AnswerTableWriter,
    _CAUSAL: CausalTableWriter,
}
_BROKEN = ".broken"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
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
        self.token = uuid.uuid4().hex
        self._metadata = {"tasks": {}, **metadata}
        self._responses: list[dict[str, Any]] = []
        self._rows: dict[str, list[tuple[Document, dict[str, Any]]]] = {kind: [] for kind in _WRITERS}
        self._n_rows = 0
        self._levels: dict[int, int] = {}
        self._flushed = time.monotonic()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / f"lock-{rank}", self.token)
        except OSError as error:
            raise VisualHeadsError(
                f"heads= must name a folder that can be written; {folder} cannot: {error.strerror}. Name another."
            ) from None
        self._drop_incomplete()
        self.set_aside = [chunk for chunk in self._chunks() if self._broken(chunk)]
        for chunk in self.set_aside:
            self._set_aside(chunk)
        self._next = 1 + max((number for _, number in self._chunks(rank)), default=0)

    def responses(self) -> Iterator[dict[str, Any]]:
        """Everything that processes of this run recorded with `add_response`, in no particular order, some perhaps twice.

        Another process may merge its chunks meanwhile: what stood in one that is gone is read in the merged one.
        """
        seen: set[tuple[int, int]] = set()
        while new := [chunk for chunk in self._chunks() if chunk not in seen]:
            for chunk in new:
                seen.add(chunk)
                try:
                    lines = self._file(*chunk, _RESPONSES).open(encoding="utf-8")
                except FileNotFoundError:
                    continue
                with lines:
                    yield from map(json.loads, lines)

    def add_response(self, response: Mapping[str, Any]) -> None:
        """Record one response; anything that JSON can hold."""
        self._responses.append(dict(response))
        self._n_rows += 1

    def add_heads(self, task: str, doc_id: int, **values: Any) -> None:
        """Record a document's head statistics (arguments as `HeadTableWriter.add`)."""
        self._rows[_HEADS].append(((task, doc_id), values))
        self._n_rows += max(np.size(grid) for grid in values["statistics"].values())

    def add_answer(self, task: str, doc_id: int, **values: Any) -> None:
        """Record a document's answer row (arguments as `AnswerTableWriter.add`)."""
        self._rows[_ANSWERS].append(((task, doc_id), values))

    def add_causal(self, task: str, doc_id: int, **values: Any) -> None:
        """Record what knocking heads out did to a document's answer (arguments as `CausalTableWriter.add`)."""
        self._rows[_CAUSAL].append(((task, doc_id), values))
        self._n_rows += sum(
            np.size(values[name]) for name in ("all", "layers", "heads") if values.get(name) is not None
        )

    def flush_if_due(self) -> None:
        """Write a chunk when the last one is old or much has come since. Call it between documents, not within one."""
        if self._n_rows >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last flush as one chunk.

        Raises
        ------
        VisualHeadsError
            When the disk is full; the chunk then does not count, and what came before it does. When the folder was removed.
        """
        self._flushed = time.monotonic()
        if not self._responses:
            return
        self._check_still_there()
        with self._full_disk_told():
            try:
                self._write_chunk(self._next)
            except BaseException:
                for path in self.path.glob(f"{self._chunk(self.rank, self._next)}.*"):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                raise
            self._next += 1
            self._responses, self._n_rows = [], 0
            self._rows = {kind: [] for kind in _WRITERS}
            self._compact_full_levels()

    def merge(
        self,
        wanted: set[Document],
        heads: HeadTableWriter | None,
        answers: AnswerTableWriter | None,
        causal: CausalTableWriter | None = None,
        knocked_out: set[Document] | None = None,
    ) -> None:
        """Stream the rows of the `wanted` documents (causal rows: of the `knocked_out` ones) out of every process's chunks.

        They are ordered by task and document; of a document that was recorded twice the first chunk's rows count. The caller
        closes the writers.
        """
        writers: tuple[tuple[str, _Writer | None, set[Document]], ...] = (
            (_HEADS, heads, wanted),
            (_ANSWERS, answers, wanted),
            (_CAUSAL, causal, knocked_out or set()),
        )
        for kind, writer, of in writers:
            if writer is None:
                continue
            for document, batch in self._merged(kind, self._chunks()):
                if document in of and not writer.has(*document):
                    writer.append_batch(batch, document)

    def n_recorded(self) -> int:
        """Documents in the chunks on disk."""
        return len({(one["task"], one["doc_id"]) for one in self.responses()})

    def is_that_of(self, rank: int, token: str) -> bool:
        """Whether the process `rank` of this run, whose journal has `token`, writes into this folder."""
        try:
            return (self.path / f"lock-{rank}").read_text() == token
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the journal; what is in it stays."""
        self._lock.close()

    def remove(self) -> None:
        """Delete the journal: its run is finished. One that another run has made in its place stays."""
        self.close()
        if self.is_that_of(self.rank, self.token):
            shutil.rmtree(self.path, ignore_errors=True)

    def _check_still_there(self) -> None:
        if not self.is_that_of(self.rank, self.token):
            raise VisualHeadsError(
                f"The folder of an unfinished run must stay until the run has ended; {self.path} was removed or replaced, and "
                "what it held is lost. Start the same command again, and leave that folder alone."
            )

    def table(self, suffix: str) -> Path:
        """Where a table of the run is written before it gets its place: in here, so that half a table never stays behind."""
        return self.path / f"table{suffix}.whole"

    @contextmanager
    def making_tables(self) -> Iterator[None]:
        """Around the writing of `table` files: where it fails, what is half written is removed and a full disk is told."""
        with self._full_disk_told():
            try:
                yield
            except BaseException:
                self._drop_tables()
                raise

    def _drop_tables(self) -> None:
        for path in self.path.glob("table.*"):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, VisualHeadsError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            raise VisualHeadsError(
                f"What is measured must be written as the run goes; {self.path} cannot be written: {cause.strerror or cause}. "
                "Make room and start the same command again: it goes on from the last chunk."
            ) from error

    def _write_chunk(self, number: int) -> None:
        for kind, writer_class in _WRITERS.items():
            rows = self._rows[kind]
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
            full = [number for _, number in self._chunks(self.rank) if self._levels.get(number, 0) == level]
            if len(full) < MOST_CHUNKS:
                return
            level += 1
            self._levels[self._next] = level
            self._compact(full)

    def _compact(self, numbers: list[int]) -> None:
        """Merge own chunks into one. Killed in between, both stand for a while: the first of two equal rows counts."""
        target = self._next
        chunks = [(self.rank, number) for number in numbers]
        for kind, writer_class in _WRITERS.items():
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
            for kind in (_RESPONSES, *_WRITERS):
                self._file(rank, number, kind).unlink(missing_ok=True)

    def _merged(self, kind: str, chunks: list[tuple[int, int]]) -> Iterator[tuple[Document, pa.RecordBatch]]:
        """Documents of several chunks, each sorted, in one order."""
        streams = [self._read(chunk, kind, n) for n, chunk in enumerate(chunks) if self._file(*chunk, kind).exists()]
        for document, _, batch in heapq.merge(*streams, key=lambda entry: entry[:2]):
            yield document, batch

    def _read(self, chunk: tuple[int, int], kind: str, order: int) -> Iterator[tuple[Document, int, pa.RecordBatch]]:
        path = self._file(*chunk, kind)
        try:
            yield from _documents(path, order)
        except (pa.ArrowException, OSError) as error:
            self._set_aside(chunk)
            raise VisualHeadsError(
                f"Every file of an unfinished run must be readable; {path} is damaged ({str(error).strip()}). It was set aside: "
                "start the same command again, and only what stood in it is measured again."
            ) from None

    def _broken(self, chunk: tuple[int, int]) -> bool:
        """Whether files of a chunk are damaged or gone, as a disk leaves them that lost what it had said to be written."""
        responses, heads = (self._file(*chunk, kind) for kind in (_RESPONSES, _HEADS))
        try:
            with responses.open(encoding="utf-8") as lines:
                has_rows = any([json.loads(line).get("has_rows") for line in lines])
            for path in (self._file(*chunk, kind) for kind in _WRITERS):
                if path.exists():
                    pq.read_metadata(path)
        except FileNotFoundError:
            return False  # another process has merged it meanwhile
        except (ValueError, pa.ArrowException, OSError):
            return True
        return has_rows and not heads.exists() and responses.exists()

    def _set_aside(self, chunk: tuple[int, int]) -> None:
        """Let a chunk no longer count; its files stay beside the others until the run is finished."""
        for path in sorted(self.path.glob(f"{self._chunk(*chunk)}.*"), reverse=True):  # the responses first
            with suppress(FileNotFoundError):
                path.rename(path.with_name(path.name + _BROKEN))

    def _chunks(self, rank: int | None = None) -> list[tuple[int, int]]:
        """(rank, number) of the complete chunks, oldest first within a rank."""
        pattern = f"{'*' if rank is None else rank}-*.{_RESPONSES}"
        complete = []
        for path in self.path.glob(pattern):
            of_rank, number = path.name.removesuffix(f".{_RESPONSES}").split("-")
            complete.append((int(of_rank), int(number)))
        return sorted(complete)

    def _drop_incomplete(self) -> None:
        """Remove own files whose chunk was never completed, and tables that were not (process 0 writes them)."""
        if self.rank == 0:
            self._drop_tables()
        complete = set(self._chunks(self.rank))
        for kind in _WRITERS:
            for path in self.path.glob(f"{self.rank}-*.{kind}*"):
                number = int(path.name.split(".")[0].split("-")[1])
                if path.name.endswith(_BROKEN):
                    continue
                if (self.rank, number) not in complete or not path.name.endswith(kind):
                    path.unlink(missing_ok=True)

    @staticmethod
    def _chunk(rank: int, number: int) -> str:
        return f"{rank}-{number:06d}"

    def _file(self, rank: int, number: int, kind: str) -> Path:
        return self.path / f"{self._chunk(rank, number)}.{kind}"


def _documents(path: Path, order: int) -> Iterator[tuple[Document, int, pa.RecordBatch]]:
    """The documents of one sorted chunk, one batch each; holds one row group (and the document that goes on) at a time."""
    held: list[pa.RecordBatch] = []
    current: Document | None = None
    # With a buffer ahead every stream would hold its whole file.
    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
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


def _locked(path: Path, token: str) -> IO[bytes]:
    """Open a file, lock it and write `token` into it; the lock goes with the process, however it ends.

    Some disks of clusters have no locks: there two runs into one folder notice each other by the token, at their next chunk.

    Raises
    ------
    VisualHeadsError
        When another process holds it.
    """
    handle = path.open("ab")
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise VisualHeadsError(
            f"One run writes into a journal at a time; another run of this model is writing into {path.parent}. "
            "Wait for it, or give this run another folder with heads=DIR."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    handle.truncate(0)
    handle.write(token.encode())
    handle.flush()
    return handle
