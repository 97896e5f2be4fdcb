"""`visual_heads_llava`: the model that lmms-eval runs. It answers as a plain wrapper does and reads the heads on the way.

Requests with prompts of equal length are answered together, so no batch is ever padded. A failure ends the run with its
reason; it never becomes an answer. What is read goes to `recording.RunRecorder`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from lmms_visual_heads.checkpoints.loading import load_model
from lmms_visual_heads.checkpoints.model import Encoded, VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import arguments, lmms_eval_facts, processes
from lmms_visual_heads.harness.endings import in_one_sentence
from lmms_visual_heads.harness.plugin import MODEL_ID
from lmms_visual_heads.harness.recording import Document, RunRecorder, weights_fingerprint
from lmms_visual_heads.names import model_name
from lmms_visual_heads.statistics.answers import AnswerStatistics

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


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for its batch: its place among the answers, its name in the journal, what to ask."""

    index: int
    name: str
    document: Document
    encoded: Encoded


def _request_name(number: int, repeat: int, asked: str) -> str:
    """Tells the requests about one document apart: their number, the repeat, and what is asked for."""
    return f"{number}.{repeat}.{hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()}"


def _generated(response: dict[str, Any]) -> GenerationResult:
    counts = TokenCounts(input_tokens=response["n_prompt"], output_tokens=response["n_answer"])
    return GenerationResult(text=response["text"], token_counts=counts)


class VisualHeadsLlava(lmms):
    """LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA checkpoints, with their heads read on the tasks of `capture_tasks`.

    Parameters
    ----------
    pretrained : str
        Folder or hub id.
    model_name, revision, dtype, device, conversation : str, optional
        Name in the tables; hub revision; "float32", "bfloat16" or "float16"; "cpu", "cuda", "cuda:1".
    image_aspect, model_base, peft, quantization : str, optional
        As for `load_model`: "pad" or "crop"; base of a folder that is not whole; LoRA adapter; "4bit" or "8bit".
    heads : str
        Folder for the tables, default "heads".
    query : str
        "first_generated" (default) or "last_prompt".
    capture_tasks : str
        Tasks whose heads are read, joined by "+", wildcards allowed; default: the probe.
    batch_size : int
        Prompts of equal length that are answered together; "auto" begins with 64. A batch that does not fit is halved.

    Raises
    ------
    VisualHeadsError
        For unknown arguments, a folder that cannot be written, a checkpoint that cannot be loaded.
    """

    is_simple = True
    model_id = MODEL_ID

    @in_one_sentence
    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.arguments = arguments.check(given, self.model_id)
        folder = self.arguments.check_output_folder()
        asked = self.arguments
        self.visual_model = self._load(asked)
        self._recorder = RunRecorder(
            folder=folder,
            name=model_name(asked.pretrained, asked.model_name),
            query=asked.query,
            model_description=self.visual_model.description,
            run=(asked.capture_tasks, weights_fingerprint(asked.pretrained)),
        )
        self.batch_size = asked.batch_size
        self.device = self.visual_model.device

    def _load(self, asked: arguments.Arguments) -> VisualModel:
        return load_model(
            asked.pretrained,
            device=asked.device or processes.device(),
            dtype=asked.dtype,
            revision=asked.revision,
            conversation=asked.conversation,
            image_aspect=asked.image_aspect,
            model_base=asked.model_base,
            peft=asked.peft,
            quantization=asked.quantization,
        )

    @classmethod
    @in_one_sentence
    def create_from_arg_string(
        cls, arg_string: str | dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> VisualHeadsLlava:
        given = dict(arg_string) if isinstance(arg_string, dict) else arguments.parse(arg_string)
        return cls(**{**given, **(additional_config or {})})

    @in_one_sentence
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; heads and answer statistics go to the recorder."""
        with self._recorder.kept_on_failure():
            return self._generate_until(requests)

    def _generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        answers: dict[int, GenerationResult] = {}
        waiting: dict[tuple[Any, ...], list[Waiting]] = {}
        longest_first = sorted(range(len(requests)), key=lambda index: -len(requests[index].args[0]))
        asked_before: Counter[tuple[str, int, int]] = Counter()
        with tqdm(total=len(requests), desc=self.model_id, disable=self.rank != 0) as progress:

            def answer(key: tuple[Any, ...]) -> None:
                batch = waiting.pop(key)
                answers.update(self._answer(batch, json.loads(key[0]), captured=key[1]))
                progress.update(len(batch))

            for index in longest_first:
                request = requests[index]
                context, generation, doc_to_visual, doc_id, task, split = request.args
                document = self._document(request, doc_to_visual, doc_id, task, split, context)
                settings = json.dumps(self._generation_arguments(generation), sort_keys=True)
                # A request that lmms-eval repeats (to draw several answers) comes as the same object several times.
                repeat = asked_before[task, doc_id, request.idx]
                asked_before[task, doc_id, request.idx] += 1
                name = _request_name(request.idx, repeat, settings)
                recalled = self._recorder.recall(document, name)
                if recalled is not None:
                    answers[index] = _generated(recalled)
                    progress.update()
                    continue
                encoded = self._encode(document, context)
                key = (settings, self._recorder.wants_rows(document), len(encoded), document.n_images > 0)
                waiting.setdefault(key, []).append(Waiting(index, name, document, encoded))
                if len(waiting[key]) >= self.batch_size:
                    answer(key)
                elif sum(map(len, waiting.values())) > 16 * self.batch_size:
                    answer(max(waiting, key=lambda k: len(waiting[k])))
            for key in list(waiting):
                answer(key)
        return [answers[index] for index in range(len(requests))]

    @in_one_sentence
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean token loss, greedy?) of each continuation: the convention of lmms-eval's wrappers of these models.

        lmms-eval 0.7.3 turns a bare pair into a string, with which multiple choice fails; inside a result it arrives whole.
        """
        with self._recorder.kept_on_failure():
            return [self._score(one) for one in tqdm(requests, desc=self.model_id, disable=self.rank != 0)]

    def _score(self, request: Instance) -> GenerationResult:
        context, continuation, doc_to_visual, doc_id, task, split = request.args
        document = self._document(request, doc_to_visual, doc_id, task, split, context)
        if not isinstance(continuation, str):
            continuation = continuation(self.task_dict[task][split][doc_id])
        name = _request_name(request.idx, 0, continuation)
        response = self._recorder.recall(document, name)
        if response is None:
            encoded = self._encode(document, context)
            query = self.arguments.query if self._recorder.wants_rows(document) else None
            score = self.visual_model.score(encoded, continuation, query=query)
            response = {"loss": score.loss, "is_greedy": score.is_greedy}
            self._record(Waiting(0, name, document, encoded), response, score.answer, score.rows)
        return GenerationResult(text=(response["loss"], response["is_greedy"]))

    @in_one_sentence
    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: the heads of a conversation have no agreed meaning."""
        tasks = sorted({request.task_name for request in requests})
        raise VisualHeadsError(
            f"{self.model_id} answers single questions; task {', '.join(tasks)} asks in several rounds. "
            "Leave such tasks out of this run."
        )

    @in_one_sentence
    def clean(self) -> None:
        """Called by lmms-eval after the last request: the tables are finished here."""
        self._recorder.finish(expected=lmms_eval_facts.requested_documents())
        del self.visual_model
        super().clean()

    def _answer(
        self, batch: list[Waiting], generation: dict[str, Any], *, captured: bool
    ) -> dict[int, GenerationResult]:
        """Answers by place; a batch that does not fit into memory is halved, and so are the batches after it."""
        try:
            return self._answer_together(batch, generation, captured=captured)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                document = batch[0].document
                raise VisualHeadsError(
                    f"Every document must fit into memory alone; document {document.doc_id} of task {document.task} does not. "
                    "Free the device, or take a smaller dtype."
                ) from None
        half = len(batch) // 2
        self.batch_size = min(self.batch_size, max(1, half))
        torch.cuda.empty_cache()
        self._recorder.say(f"{len(batch)} documents do not fit into memory; going on with batches of {self.batch_size}")
        parts = (self._answer(part, generation, captured=captured) for part in (batch[:half], batch[half:]))
        return {place: result for part in parts for place, result in part.items()}

    def _answer_together(
        self, batch: list[Waiting], generation: dict[str, Any], *, captured: bool
    ) -> dict[int, GenerationResult]:
        generated = self.visual_model.generate(
            [one.encoded for one in batch], query=self.arguments.query if captured else None, **generation
        )
        results = {}
        for one, given in zip(batch, generated, strict=True):
            response = {"text": given.text, "n_prompt": len(one.encoded), "n_answer": len(given.token_ids)}
            self._record(one, response, given.answer, given.rows)
            results[one.index] = _generated(response)
        return results

    def _record(
        self, one: Waiting, response: dict[str, Any], answer: AnswerStatistics, rows: torch.Tensor | None
    ) -> None:
        document, encoded = one.document, one.encoded
        statistics, share = None, None
        if rows is not None:
            box = None if document.pointed_box is None else [document.pointed_box]
            numbers = self.visual_model.head_statistics(encoded, rows, box)
            region_share = numbers.pop("region_share")
            share = None if bool(region_share.isnan().all()) else float(region_share[~region_share.isnan()][0])
            stacked = torch.stack(list(numbers.values())).cpu().numpy()
            statistics = dict(zip(numbers, stacked, strict=True))
        self._recorder.add(
            document,
            one.name,
            response,
            answer=dataclasses.asdict(answer),
            heads=statistics,
            tokens={
                "n_prompt_tokens": len(encoded),
                "n_visual_tokens": len(encoded.visual_positions),
                "n_patch_tokens": len(encoded.patch_positions),
            },
            region_share=share,
        )

    def _document(
        self, request: Instance, doc_to_visual: Callable[[Any], Any], doc_id: int, task: str, split: str, context: str
    ) -> Document:
        doc = self.task_dict[task][split][doc_id]
        try:
            images = list(doc_to_visual(doc) or [])
        except OSError as error:
            raise VisualHeadsError(
                f"Every image must be readable; that of document {doc_id} of task {task} is not ({error}). "
                "Repair or remove it and run again."
            ) from error
        other = [type(image).__name__ for image in images if not isinstance(image, Image.Image)]
        if other:
            raise VisualHeadsError(
                f"{self.model_id} answers questions about images; document {doc_id} of task {task} has a {other[0]}. "
                "Leave video and audio tasks out of this run."
            )
        return Document.of(
            doc,
            task=task,
            doc_id=doc_id,
            images=images,
            context=context,
            wanted=self.arguments.captures(task),
            padding_only=bool(request.metadata.get("__padding_only__")),
        )

    def _encode(self, document: Document, context: str) -> Encoded:
        try:
            encoded = self.visual_model.encode(context, document.images)
            if document.captured and document.pointed_box is not None:
                self.visual_model.region(encoded, [document.pointed_box])  # a bad box is found before the model runs
            return encoded
        except VisualHeadsError as error:
            raise VisualHeadsError(f"Task {document.task}, document {document.doc_id}: {error}") from None

    @staticmethod
    def _generation_arguments(given: dict[str, Any]) -> dict[str, Any]:
        chosen = {**PLAIN_GENERATION, **{k: v for k, v in given.items() if k in GENERATION_ARGUMENTS and v is not None}}
        # As lmms-eval's wrappers do: the temperature alone decides whether tokens are drawn.
        return {**chosen, "do_sample": chosen["temperature"] > 0}
