"""From generations to tables: one run's head table and answer table, with the fingerprint of the data behind them.

Nothing measured is lost: rows go to a journal as the run goes, and the same command goes on from it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from lmms_visual_heads import __version__
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import processes
from lmms_visual_heads.names import file_stem
from lmms_visual_heads.schema import ANSWERS_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables.journal import RunJournal
from lmms_visual_heads.tables.writing import AnswerTableWriter, HeadTableWriter

_PACKAGES = ("torch", "transformers", "tokenizers", "lmms_eval", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a run, as far as the tables need it."""

    task: str
    doc_id: int
    item_id: str | None
    images: list[Image.Image]
    pointed_box: tuple[float, float, float, float] | None
    digest: bytes
    wanted: bool
    padding_only: bool

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def captured(self) -> bool:
        """Whether the heads are read: the task is captured and there is exactly one image."""
        return self.wanted and len(self.images) == 1 and not self.padding_only

    @classmethod
    def of(
        cls,
        doc: Mapping[str, Any],
        *,
        task: str,
        doc_id: int,
        images: list[Image.Image],
        context: str,
        wanted: bool,
        padding_only: bool,
    ) -> Document:
        """Collect what the tables need of an lmms-eval document; the digest covers the prompt and every pixel."""
        digest = hashlib.blake2b(context.encode(), digest_size=16)
        for image in images:
            digest.update(f"{image.mode}{image.size}".encode())
            digest.update(image.tobytes())
        item = doc.get("item_id")
        box = doc.get("pointed_box")
        return cls(
            task=task,
            doc_id=int(doc_id),
            item_id=None if item is None else str(item),
            images=images,
            pointed_box=None if box is None else _four_numbers(box, f"document {doc_id} of task {task}"),
            digest=digest.digest(),
            wanted=wanted,
            padding_only=padding_only,
        )


def _four_numbers(box: Any, where: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(number) for number in box)
    except (TypeError, ValueError):
        raise VisualHeadsError(
            f"pointed_box must be four numbers x0, y0, x1, y1 in pixels; {where} has {box!r}. Mend or remove it."
        ) from None
    return x0, y0, x1, y1


class RunRecorder:
    """Collects what one run measures, keeps it in a journal as the run goes, and writes the tables at its end.

    Parameters
    ----------
    folder : Path
        Where the tables go.
    name : str
        The model's name in the tables.
    query : str
        Which row is read.
    model_description : mapping
        What the checkpoint's configuration says (`VisualModel.description`).
    run : sequence of str
        What else tells this run from others of the model: its `capture_tasks`, its weights (`weights_fingerprint`). Only the
        same command on the same weights goes on from a journal.
    answers : bool
        Whether there will be an answer table.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        query: str,
        model_description: Mapping[str, Any],
        run: Sequence[str] = (),
        answers: bool = True,
    ) -> None:
        self._folder = folder
        self._stem = file_stem(name)
        self._query = query
        self._with_answers = answers
        self._model = {**model_description, "name": name}
        facts = json.dumps([self._model, query, *run, __version__], sort_keys=True, default=str)
        identity = f"{self._stem}-{hashlib.blake2b(facts.encode(), digest_size=5).hexdigest()}"
        self._journal = RunJournal(folder, identity, self._metadata_without_tasks(), processes.rank())
        self._seen: dict[tuple[str, int], bytes] = {}
        self._captured: set[tuple[str, int]] = set()
        self._rowless: dict[tuple[str, int], str] = {}
        self._skipped: dict[tuple[str, int], str] = {}
        self._console = Console(stderr=True)
        self._recalled: dict[tuple[str, int, str], dict[str, Any]] = {
            (one["task"], one["doc_id"], one["request"]): one for one in self._journal.responses()
        }
        self._with_rows = {(one["task"], one["doc_id"]) for one in self._recalled.values() if one["has_rows"]}
        if self._recalled and processes.rank() == 0:
            documents = len({key[:2] for key in self._recalled})
            self.say(
                f"going on from an unfinished run: {documents} documents are measured already ({self._journal.path})"
            )

    def recall(self, document: Document, request: str) -> dict[str, Any] | None:
        """What an interrupted run of the same command answered to this request, or None.

        Parameters
        ----------
        document : Document
            Its prompt and pixels must be those of the recorded one.
        request : str
            Tells requests about one document apart.

        Raises
        ------
        VisualHeadsError
            When the document has changed since.
        """
        self._see(document)
        found = self._recalled.get((document.task, document.doc_id, request))
        if found is None:
            return None
        if found["digest"] != document.digest.hex():
            raise VisualHeadsError(
                f"A run goes on only with the data that it began with; document {document.doc_id} of task {document.task} has "
                f"changed since. Remove {self._journal.path} to begin anew."
            )
        return found["response"]

    def wants_rows(self, document: Document) -> bool:
        """Whether this request's rows are to be read: the document is captured, and none of its requests gave rows yet."""
        key = (document.task, document.doc_id)
        if not document.captured or key in self._with_rows:
            return False
        self._with_rows.add(key)
        return True

    def skip(self, task: str, doc_id: int, reason: str) -> None:
        """Leave a document out: no rows, no answer, no score; the summary and the metadata name it."""
        self._skipped[task, int(doc_id)] = reason

    def add(
        self,
        document: Document,
        request: str,
        response: Mapping[str, Any],
        *,
        answer: Mapping[str, Any] | None,
        heads: Mapping[str, Any] | None,
        tokens: Mapping[str, int],
        region_share: float | None = None,
    ) -> None:
        """Record one answered request; of several about one document the first gives the rows.

        Parameters
        ----------
        document : Document
            What was asked.
        request : str
            As for `recall`.
        response : mapping
            What lmms-eval gets; anything that JSON can hold.
        answer : mapping or None
            The answer's columns of the answer table (`statistics.answers.AnswerStatistics`); None in a run without answers.
        heads : mapping of str to array [L, H], or None
            Head statistics; None where the heads were not read.
        tokens : mapping
            `n_prompt_tokens`, `n_visual_tokens`, `n_patch_tokens`.
        region_share : float or None
            Share of the patch area that lies in the pointed box.
        """
        if document.padding_only:
            return
        if answer is not None:
            facts: dict[str, Any] = {"item_id": document.item_id, "n_images": document.n_images, **answer}
            facts |= {name: tokens[name] for name in ("n_prompt_tokens", "n_visual_tokens")}
            self._journal.add_answer(document.task, document.doc_id, **facts)
        if heads is not None:
            more: dict[str, Any] = {"statistics": heads, "region_share": region_share, **tokens}
            self._journal.add_heads(document.task, document.doc_id, item_id=document.item_id, **more)
        self._journal.add_response(
            {
                "task": document.task,
                "doc_id": document.doc_id,
                "request": request,
                "digest": document.digest.hex(),
                "has_rows": heads is not None,
                "response": dict(response),
            }
        )
        self._journal.flush_if_due()

    def finish(self, expected: set[tuple[str, int]] | None) -> list[Path]:
        """Write the tables of all processes and say where they are.

        Parameters
        ----------
        expected : set of (task, doc_id), or None
            Every document of this process's part of the run, where that is known.

        Returns
        -------
        list of Path
            The head table (when heads were read) and the answer table; on ranks other than 0 nothing.

        Raises
        ------
        VisualHeadsError
            When documents of the run were answered without the model: the tables would lack them.
        """
        self._journal.flush()
        unseen = sorted((expected or set()) - set(self._seen) - set(self._skipped))
        gathered = processes.gather((self._seen, self._captured, self._rowless, self._skipped, unseen))
        missing = sorted(document for *_, of_rank in gathered for document in of_rank)
        if missing:
            named = ", ".join(f"{task} {doc_id}" for task, doc_id in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            n_seen = sum(len(seen) for seen, *_ in gathered)
            self._journal.close()
            if not self._recalled and n_seen == 0:
                self._journal.remove()
            raise VisualHeadsError(
                f"The heads of every document must be read, and {len(missing)} of {len(missing) + n_seen} were answered from "
                f"a response cache without the model ({named}{more}); no table was written. Run again without --use_cache."
            )
        written = self._write(gathered) if processes.rank() == 0 else []
        processes.barrier()
        if processes.rank() == 0:
            self._clear({document for seen, *_ in gathered for document in seen})
        else:
            self._journal.close()
        return written

    def _write(self, gathered: list[tuple[Any, ...]]) -> list[Path]:
        digests = {document: digest for seen, *_ in gathered for document, digest in seen.items()}
        captured = set().union(*(of_rank for _, of_rank, *_ in gathered))
        rowless = {document: why for _, _, of_rank, *_ in gathered for document, why in of_rank.items()}
        skipped = {document: why for *_, of_rank, _ in gathered for document, why in of_rank.items()}
        self._say_skipped(skipped)
        if not digests:
            return []
        stem = f"{self._stem}_{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}"
        metadata = self._metadata_without_tasks() | {"tasks": _described(digests, rowless, skipped)}
        answers = AnswerTableWriter(self._folder / (stem + ANSWERS_SUFFIX)) if self._with_answers else None
        heads = HeadTableWriter(self._folder / (stem + HEADS_SUFFIX)) if captured else None
        self._journal.merge(set(digests), heads, answers)
        written = []
        if heads is not None:
            written.append(heads.close(metadata))
            self.say(f"heads of {heads.n_documents} documents: [bold]{written[-1]}[/bold]")
            self._name_missing(written[-1])
        else:
            why = (
                "no document of these tasks has exactly one image"
                if rowless
                else "none of these tasks is in capture_tasks="
            )
            self.say(f"no heads were read: {why}")
        if answers is not None:
            written.append(answers.close(metadata))
            self.say(f"answers to {answers.n_documents} documents: [bold]{written[-1]}[/bold]")
        else:
            self.say("answers=false: heads only, no answers and no scores")
        for (task, reason), count in sorted(Counter((task, why) for (task, _), why in rowless.items()).items()):
            self.say(f"{task}: {count} documents {_REASONS[reason]} were answered and have no rows")
        return written

    def _say_skipped(self, skipped: Mapping[tuple[str, int], str]) -> None:
        for task in sorted({task for task, _ in skipped}):
            numbers = sorted(doc_id for of, doc_id in skipped if of == task)
            named = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
            first = skipped[task, numbers[0]]
            self.say(
                f"{task}: {len(numbers)} documents were left out of tables and score (documents {named}); the first: {first}"
            )

    def _clear(self, finished: set[tuple[str, int]]) -> None:
        """Remove the journal, unless it holds documents that this run did not ask for."""
        others = {key[:2] for key in self._recalled} - finished
        if others:
            self._journal.close()
            self.say(f"{len(others)} documents of an earlier, longer run stay in {self._journal.path}")
        else:
            self._journal.remove()

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Keep what was measured when the run fails or is stopped inside, and say how to go on."""
        try:
            yield
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if not isinstance(error, VisualHeadsError):
                reason = reason.splitlines()[0]
            self._journal.flush()
            n = self._journal.n_recorded()
            if n:
                self.say(
                    f"the run did not finish ({reason}). {n} documents are kept in {self._journal.path}; "
                    "the same command goes on from there."
                )
            self._journal.close()
            raise

    def _see(self, document: Document) -> None:
        if document.padding_only:
            return
        key = (document.task, document.doc_id)
        self._seen.setdefault(key, document.digest)
        if document.captured:
            self._captured.add(key)
        elif document.wanted:
            self._rowless[key] = "n_several_images" if document.images else "n_without_image"

    def _name_missing(self, path: Path) -> None:
        """Name the heads whose rows were not finite, and are missing in the table."""
        missing: Counter[tuple[int, int]] = Counter()
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["layer", "head", "image_attention"]):
                gone = batch.filter(batch.column("image_attention").is_null())
                missing.update(zip(gone.column("layer").to_pylist(), gone.column("head").to_pylist(), strict=True))
        if missing:
            worst = ", ".join(
                f"layer {layer} head {head} ({n} documents)" for (layer, head), n in missing.most_common(5)
            )
            self.say(
                f"missing in the table (rows that are not finite, layers that cannot see the image): {len(missing)} heads, {worst}"
            )

    def _metadata_without_tasks(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "query": self._query,
            "dtype": self._model.get("dtype"),
            "image_processor": self._model.get("image_processor"),
            "versions": {"lmms_visual_heads": __version__, **_versions()},
        }

    def say(self, text: str) -> None:
        """Tell the user, on standard error."""
        self._console.print(f"visual-heads: {text}", soft_wrap=True, highlight=False)


_REASONS = {"n_without_image": "without an image", "n_several_images": "with several images"}


def _described(
    digests: Mapping[tuple[str, int], bytes],
    rowless: Mapping[tuple[str, int], str],
    skipped: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    """Per task: the data's fingerprint and the counts of documents."""
    tasks = sorted({task for task, _ in digests})
    return {
        task: {
            "fingerprint": fingerprint({doc_id: digest for (of, doc_id), digest in digests.items() if of == task}),
            "n_documents": sum(of == task for of, _ in digests),
            **{why: sum(of == task and given == why for (of, _), given in rowless.items()) for why in _REASONS},
            **({"skipped": left_out} if (left_out := sorted(doc_id for of, doc_id in skipped if of == task)) else {}),
        }
        for task in tasks
    }


def weights_fingerprint(pretrained: str) -> str:
    """Names, sizes and times of a local checkpoint's files; nothing for a hub id, whose commit tells."""
    folder = Path(pretrained).expanduser()
    if not folder.is_dir():
        return ""
    facts = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def fingerprint(digests: Mapping[int, bytes]) -> str:
    """Hash of a task's data, 32 hexadecimal digits: prompts and pixels of every document, in the order of their numbers."""
    total = hashlib.blake2b(digest_size=16)
    for doc_id in sorted(digests):
        total.update(f"{doc_id}:".encode() + digests[doc_id])
    return total.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
