"""lmms-eval's requests as encoded questions, and what is handed back for them.

A question's document is opened and encoded in its turn; what an interrupted run had answered comes back as it was. Nothing is
answered here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from PIL import Image
from tqdm import tqdm

from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import processes
from lmms_visual_heads.harness.arguments import Arguments
from lmms_visual_heads.harness.documents import Document, UnreadableImage, open_images
from lmms_visual_heads.harness.families import digests_of, families
from lmms_visual_heads.harness.recording import RunRecorder
from lmms_visual_heads.harness.run_facts import OWN_TASKS
from lmms_visual_heads.probe.scoring import NOT_ANSWERED

PLAIN_GENERATION = {"max_new_tokens": 1024, "temperature": 0, "num_beams": 1}
"""What a plain lmms-eval wrapper takes where a task says nothing."""
GENERATION_ARGUMENTS = (
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
)
"""What of a task's generation_kwargs reaches `generate`. As in lmms-eval's own wrappers of these models, `until` does not."""

Finish = Callable[[int, GenerationResult], None]
"""Takes a request's place among the answers, and its answer."""
Note = Callable[[Document, str, str, Callable[[Any], Any]], None]
"""Takes the document of a request, its split, its prompt, and what opens its images."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A request that waits for its answer: a `scheduler.Schedulable`.

    Attributes
    ----------
    index : int
        Its place among the answers.
    name : str
        Its name in the journal.
    document : Document
    encoded : Encoded
    asked : str
        Its generation settings as JSON, or the continuation to be scored.
    reads_rows : bool
        Whether the heads are read.
    settings : mapping
        Keyword arguments of `generate`; none for a continuation.
    """

    index: int
    name: str
    document: Document
    encoded: Encoded
    asked: str
    reads_rows: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> tuple[str, bool, int, bool]:
        """Requests that agree in this can be answered together."""
        return self.asked, self.reads_rows, len(self.encoded), self.document.n_images > 0

    @property
    def label(self) -> str:
        """Names the document in a sentence."""
        return f"document {self.document.doc_id} of task {self.document.task}"


class RequestReader:
    """Reads the requests of one run.

    Parameters
    ----------
    arguments : Arguments
    model_id : str
        The model's name in sentences.
    model : VisualModel
        Encodes; nothing is answered here.
    recorder : RunRecorder
        Knows what an interrupted run had answered, and whose rows are still to be read.
    data : callable
        Gives lmms-eval's data, which the model has only once the run begins: task -> split -> documents.
    """

    def __init__(
        self,
        arguments: Arguments,
        model_id: str,
        model: VisualModel,
        recorder: RunRecorder,
        data: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._arguments = arguments
        self._model_id = model_id
        self._model = model
        self._recorder = recorder
        self._data = data

    def to_generate(self, requests: Sequence[Instance], finish: Finish, note: Note) -> Iterator[list[Waiting]]:
        """Families of questions to be answered by `generate`, each read when it is asked for.

        Parameters
        ----------
        requests : sequence of Instance
        finish : callable
            Gets what needs no model: answers of an interrupted run, and documents that are left out.
        note : callable
            Gets every document that was read.

        Raises
        ------
        VisualHeadsError
            When a document cannot be read or encoded.
        """
        repeats = repeats_of(requests)
        for family in self._families(requests):
            waiting: list[Waiting] = []
            for index in family:
                request = requests[index]
                settings = generation_settings(request.args[1])
                asked = json.dumps(settings, sort_keys=True)
                name = request_name(request.idx, repeats[index], asked)
                try:
                    document = self._read(request, note)
                except UnreadableImage as error:
                    task, doc_id = request.args[4], request.args[3]
                    # Only tasks of our own leave a document without an answer out of the score; elsewhere it would count as wrong.
                    if self._arguments.on_error != "skip" or not task.startswith(OWN_TASKS):
                        raise
                    self._recorder.skip(task, doc_id, str(error))
                    finish(index, GenerationResult(text=NOT_ANSWERED))
                    continue
                recalled = self._recorder.recall(document, name)
                if recalled is not None:
                    finish(index, generated(recalled))
                else:
                    waiting.append(self._waiting(request, index, name, document, asked, waiting, settings))
            yield waiting

    def to_score(self, requests: Sequence[Instance], finish: Finish, note: Note) -> Iterator[list[Waiting]]:
        """Families of continuations to be scored; parameters and errors as for `to_generate`."""
        for family in self._families(requests):
            waiting: list[Waiting] = []
            for index in family:
                request = requests[index]
                _, continuation, _, doc_id, task, split = request.args
                document = self._read(request, note)
                if not isinstance(continuation, str):
                    continuation = continuation(self._data()[task][split][doc_id])
                name = request_name(request.idx, 0, continuation)
                recalled = self._recorder.recall(document, name)
                if recalled is not None:
                    finish(index, scored(recalled))
                else:
                    waiting.append(self._waiting(request, index, name, document, continuation, waiting, {}))
            yield waiting

    def document(
        self,
        doc_to_visual: Callable[[Any], Any],
        doc_id: int,
        task: str,
        split: str,
        context: str,
        padding_only: bool = False,
    ) -> Document:
        """Open a document of the run.

        Raises
        ------
        VisualHeadsError
            When an image cannot be read, or it holds anything but images (see `documents.open_images`).
        """
        doc, images = open_images(self._data()[task][split], doc_id, doc_to_visual, task, self._model_id)
        return Document.of(
            doc,
            task=task,
            doc_id=doc_id,
            images=images,
            context=context,
            wanted=self._arguments.captures(task),
            padding_only=padding_only,
            controlled=self._arguments.controls(task),
        )

    def _families(self, requests: Sequence[Instance]) -> list[list[int]]:
        """Places of the requests about the same images together; one by one where nothing is reused."""
        digests: list[bytes | None] = [None] * len(requests)
        if self._arguments.reuse_prefix and len(requests) > 1 and self._model.reuses_prefix():
            digests = digests_of(
                tqdm(
                    [functools.partial(self._images, request) for request in requests],
                    desc="looking for questions about the same image",
                    disable=processes.rank() != 0,
                    leave=False,
                )
            )
        return families(digests, [len(request.args[0]) for request in requests])

    def _images(self, request: Instance) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        return list(doc_to_visual(self._data()[task][split][doc_id]) or [])

    def _read(self, request: Instance, note: Note) -> Document:
        context, _, doc_to_visual, doc_id, task, split = request.args
        padding_only = bool(request.metadata.get("__padding_only__"))
        document = self.document(doc_to_visual, doc_id, task, split, context, padding_only)
        note(document, split, context, doc_to_visual)
        return document

    def _waiting(
        self,
        request: Instance,
        index: int,
        name: str,
        document: Document,
        asked: str,
        family: Sequence[Waiting],
        settings: Mapping[str, Any],
    ) -> Waiting:
        """The request with its tensors; those of its images are taken from another one of the family where there is one."""
        context = request.args[0]
        boxes = document.boxes if document.captured else None  # a bad one is found here, before the model runs
        try:
            if family:
                document = dataclasses.replace(document, images=family[0].document.images)  # equal: hold one copy
                encoded = self._model.encode_again(context, family[0].encoded, boxes)
            else:
                encoded = self._model.encode(context, document.images, boxes)
        except VisualHeadsError as error:
            raise VisualHeadsError(f"Task {document.task}, document {document.doc_id}: {error}") from None
        return Waiting(index, name, document, encoded, asked, self._recorder.wants_rows(document), settings)


def request_name(number: int, repeat: int, asked: str) -> str:
    """Tells the requests about one document apart: their number, the repeat, and what is asked for."""
    return f"{number}.{repeat}.{hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()}"


def repeats_of(requests: Sequence[Instance]) -> list[int]:
    """How often each request came before: one that lmms-eval repeats, to draw several answers, is the same object."""
    seen: Counter[tuple[str, int, int]] = Counter()
    repeats = []
    for request in requests:
        key = (request.args[4], request.args[3], request.idx)
        repeats.append(seen[key])
        seen[key] += 1
    return repeats


def scored(response: Mapping[str, Any]) -> GenerationResult:
    """lmms-eval's result of a scored continuation; a bare pair would become a string, with which multiple choice fails."""
    return GenerationResult(text=(response["loss"], response["is_greedy"]))


def generated(response: Mapping[str, Any]) -> GenerationResult:
    """lmms-eval's result of an answer."""
    counts = TokenCounts(input_tokens=response["n_prompt"], output_tokens=response["n_answer"])
    return GenerationResult(text=response["text"], token_counts=counts)


def generation_settings(task_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `generate` out of a task's generation_kwargs."""
    taken = {k: v for k, v in task_settings.items() if k in GENERATION_ARGUMENTS and v is not None}
    settings = {**PLAIN_GENERATION, **taken}
    # As lmms-eval's wrappers do: the temperature alone decides whether tokens are drawn.
    return {**settings, "do_sample": settings["temperature"] > 0}
