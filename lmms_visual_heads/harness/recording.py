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
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from lmms_visual_heads import __version__
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import costs, processes, run_facts
from lmms_visual_heads.harness.control_records import ControlRecords
from lmms_visual_heads.harness.documents import Document
from lmms_visual_heads.harness.endings import signals_end_in_order
from lmms_visual_heads.names import file_stem
from lmms_visual_heads.schema import ANSWERS_SUFFIX, CAUSAL_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables import AnswerTableWriter, CausalTableWriter, HeadTableWriter
from lmms_visual_heads.tables.files import finalise
from lmms_visual_heads.tables.journal import RunJournal


@dataclass(frozen=True, slots=True)
class _Part:
    """What one process of the run has seen and measured."""

    seen: dict[tuple[str, int], bytes]
    captured: set[tuple[str, int]]
    rowless: dict[tuple[str, int], str]
    skipped: dict[tuple[str, int], str]
    costs: dict[tuple[str, str], costs.Cost]
    image_kl: dict[tuple[str, int], dict[str, float | None]]
    knocked_out: set[tuple[str, int]]


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
    sizes : Sizes or None
        Of the model, for the cost in the metadata; None leaves it out.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        query: str,
        model_description: Mapping[str, Any],
        run: Sequence[str] = (),
        answers: bool = True,
        sizes: costs.Sizes | None = None,
    ) -> None:
        self._folder = folder
        self._sizes = sizes
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
        self.controls = ControlRecords(self._journal, self._recalled)
        self._with_rows = {(one["task"], one["doc_id"]) for one in self._recalled.values() if one["has_rows"]}
        if self._recalled and processes.rank() == 0:
            documents = len({key[:2] for key in self._recalled})
            self.say(
                f"going on from an unfinished run: {documents} documents are measured already ({self._journal.path})"
            )

        for rank, number in self._journal.set_aside:
            self.say(
                f"a part of the unfinished run is damaged and was set aside (process {rank}, part {number}); its documents are "
                "measured again"
            )

    def check_processes(self, data: Mapping[str, str] | None = None) -> None:
        """Look whether all processes write into this journal and, where `data` tells it (`run_facts.data_of`), have the same data.

        All of them call it. Raises a VisualHeadsError where they differ.
        """
        processes.check_same_journal(self._journal)
        if data is not None:
            processes.check_same_data(data, self._journal.path)

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
        record = self._recalled.get((document.task, document.doc_id, request))
        if record is None:
            return None
        if record["digest"] != document.digest.hex():
            raise VisualHeadsError(
                f"A run goes on only with the data that it began with; document {document.doc_id} of task {document.task} has "
                f"changed since. Remove {self._journal.path} to begin anew."
            )
        if record.get("ran") is not None:
            self._note(document, request, costs.Ran(**record["ran"]))
        return record["response"]

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
        ran: costs.Ran | None = None,
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
        ran : Ran or None
            What the request ran; None leaves it out of the cost.
        """
        if document.padding_only:
            return
        if ran is not None:
            self._note(document, request, ran)
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
                "ran": None if ran is None else ran.to_json(),
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
        self.check_all_seen(expected)
        self._journal.flush()
        of_controls = (self.controls.costs.sums, self.controls.image_kl, self.controls.knocked_out)
        part = _Part(self._seen, self._captured, self._rowless, self._skipped, *of_controls)
        parts = processes.gather(part)
        written: list[Path] = []
        if processes.rank() == 0:
            with self._journal.making_tables():
                written = self._write(parts)
        processes.barrier()
        if processes.rank() == 0:
            self._clear({document for part in parts for document in part.seen})
        else:
            self._journal.close()
        return written

    def check_all_seen(self, expected: set[tuple[str, int]] | None) -> None:
        """Refuse to go on when documents were answered without the model; all processes call it together (see `finish`)."""
        self._journal.flush()
        unseen = sorted((expected or set()) - set(self._seen) - set(self._skipped))
        gathered = processes.gather((unseen, len(self._seen)))
        missing = sorted(document for of_rank, _ in gathered for document in of_rank)
        if missing:
            named = ", ".join(f"{task} {doc_id}" for task, doc_id in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            n_seen = sum(n for _, n in gathered)
            self._journal.close()
            if not self._recalled and n_seen == 0:
                self._journal.remove()
            raise VisualHeadsError(
                f"The heads of every document must be read, and {len(missing)} of {len(missing) + n_seen} were answered from "
                f"a response cache without the model ({named}{more}); no table was written. Run again without --use_cache."
            )

    def _write(self, parts: list[_Part]) -> list[Path]:
        digests = {document: digest for part in parts for document, digest in part.seen.items()}
        captured = {document for part in parts for document in part.captured}
        rowless = {document: why for part in parts for document, why in part.rowless.items()}
        skipped = {document: why for part in parts for document, why in part.skipped.items()}
        image_kl = {document: kl for part in parts for document, kl in part.image_kl.items()}
        knocked_out = {document for part in parts for document in part.knocked_out}
        self._say_skipped(skipped)
        if skipped and not digests:
            raise VisualHeadsError(
                f"A run needs documents that can be read; all {len(skipped)} were left out. Look at the first reason above."
            )
        if not digests:
            return []
        stem = self._new_stem()
        cost = {} if self._sizes is None else costs.by_task((part.costs for part in parts), self._sizes)
        controlled = {"n_image_control": set(image_kl), "n_knockout": knocked_out}
        tasks = run_facts.described(digests, rowless, skipped, cost, controlled)
        metadata = self._metadata_without_tasks() | {"tasks": tasks}
        answers = (
            AnswerTableWriter(self._journal.table(ANSWERS_SUFFIX), image_kl=image_kl) if self._with_answers else None
        )
        heads = HeadTableWriter(self._journal.table(HEADS_SUFFIX)) if captured else None
        causal = CausalTableWriter(self._journal.table(CAUSAL_SUFFIX)) if knocked_out else None
        self._journal.merge(set(digests), heads, answers, causal, knocked_out)
        self._check_whole((heads, captured), (answers, set(digests)), (causal, knocked_out))
        tables = {HEADS_SUFFIX: heads, ANSWERS_SUFFIX: answers, CAUSAL_SUFFIX: causal}
        whole = {suffix: table.close(metadata) for suffix, table in tables.items() if table is not None}
        # Every table is complete before the first one gets its place.
        written = {suffix: finalise(path, self._folder / (stem + suffix)) for suffix, path in whole.items()}
        if heads is not None:
            self.say(f"heads of {heads.n_documents} documents: [bold]{written[HEADS_SUFFIX]}[/bold]")
            self._name_missing(written[HEADS_SUFFIX])
        else:
            why = (
                "no document of these tasks has exactly one image"
                if rowless
                else "none of these tasks is in capture_tasks="
            )
            self.say(f"no heads were read: {why}")
        if answers is not None:
            self.say(f"answers to {answers.n_documents} documents: [bold]{written[ANSWERS_SUFFIX]}[/bold]")
            self._name_unsure(written[ANSWERS_SUFFIX])
        else:
            self.say("answers=false: heads only, no answers and no scores")
        if causal is not None:
            self.say(
                f"answers to {causal.n_documents} documents with heads knocked out: [bold]{written[CAUSAL_SUFFIX]}[/bold]"
            )
        for (task, reason), count in sorted(Counter((task, why) for (task, _), why in rowless.items()).items()):
            self.say(f"{task}: {count} documents {run_facts.ROWLESS[reason]} were answered and have no rows")
        return list(written.values())

    def _new_stem(self) -> str:
        """Name of this run's tables without their endings: no other's, whatever the clock says."""
        stem = f"{self._stem}_{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}"
        while list(self._folder.glob(f"{stem}.*")):
            stem += "-again"
        return stem

    def _check_whole(
        self, *tables: tuple[HeadTableWriter | AnswerTableWriter | CausalTableWriter | None, set[Any]]
    ) -> None:
        lost = sorted({key for table, of in tables if table is not None for key in of if not table.has(*key)})
        if lost:
            named = ", ".join(f"{task} {doc_id}" for task, doc_id in lost[:5]) + (", ..." if len(lost) > 5 else "")
            raise VisualHeadsError(
                f"What was measured must be on disk when the tables are written; numbers of {len(lost)} documents are not "
                f"({named}): files in {self._journal.path} were removed while the run went on. Start the same command again: it "
                "measures what is missing. Where that does not help, remove that folder first."
            )

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
            with signals_end_in_order():
                yield
        except BaseException as error:
            self._keep(error)
            raise

    def _keep(self, error: BaseException) -> None:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if not isinstance(error, VisualHeadsError):
            reason = reason.splitlines()[0]
        try:
            self._journal.flush()
        except VisualHeadsError as second:
            if str(second) != str(error):
                self.say(str(second))
        n = self._journal.n_recorded()
        if n:
            self.say(
                f"the run did not finish ({reason}). {n} documents are kept in {self._journal.path}; "
                "the same command goes on from there."
            )
        if n or processes.world_size() > 1:
            self._journal.close()
        else:
            self._journal.remove()

    def _note(self, document: Document, request: str, ran: costs.Ran) -> None:
        if not document.padding_only:
            self.controls.note(document.task, document.doc_id, request, ran, controlled=document.controlled)

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

    def _name_unsure(self, path: Path) -> None:
        """Name the answers that came from logits that were not finite."""
        table = pq.read_table(path, columns=["task", "doc_id", "confidence"])
        gone = table.filter(table.column("confidence").is_null())
        if len(gone):
            first = f"{gone.column('task')[0]} {gone.column('doc_id')[0]}"
            self.say(
                f"the logits of {len(gone)} of {len(table)} documents were not finite (the first: {first}): their answers and "
                "scores mean nothing. Another dtype may help"
            )

    def _metadata_without_tasks(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "query": self._query,
            "dtype": self._model.get("dtype"),
            "image_processor": self._model.get("image_processor"),
            "versions": {"lmms_visual_heads": __version__, **run_facts.versions()},
        }

    def say(self, text: str) -> None:
        """Tell the user, on standard error."""
        self._console.print(f"visual-heads: {text}", soft_wrap=True, highlight=False)
