"""`visual_heads_llava`: the model that lmms-eval runs. It answers as a plain wrapper does and reads the heads on the way.

Requests with prompts of equal length are answered together, so no batch is ever padded; requests about the same image share
one prefill of what their prompts begin with. A failure ends the run with its
reason; it never becomes an answer. What is read goes to `recording.RunRecorder`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from lmms_visual_heads.capture.knockout import check_can_knock_out
from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.capture.prefix import common_prefix
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.loading import load_model
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import arguments, batching, costs, lmms_eval_facts, processes
from lmms_visual_heads.harness.controls import Controls
from lmms_visual_heads.harness.documents import Document, UnreadableImage, open_images
from lmms_visual_heads.harness.endings import in_one_sentence
from lmms_visual_heads.harness.plugin import MODEL_ID
from lmms_visual_heads.harness.recording import RunRecorder
from lmms_visual_heads.harness.run_facts import OWN_TASKS, data_of, weights_fingerprint
from lmms_visual_heads.harness.waiting import Waiting, generated, generation_settings, repeats_of, request_name, scored
from lmms_visual_heads.names import model_name
from lmms_visual_heads.probe.scoring import NOT_ANSWERED
from lmms_visual_heads.schema import PROBE_TASKS
from lmms_visual_heads.statistics.answers import AnswerStatistics, answer_text


class VisualHeadsLlava(lmms):
    """LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA checkpoints, with their heads read on the tasks of `capture_tasks`.

    Parameters
    ----------
    pretrained : str
        Folder or hub id.
    model_name, revision, dtype, device, conversation : str, optional
        Name in the tables; hub revision; "float32", "bfloat16" or "float16"; "cpu", "cuda", "cuda:1".
    image_aspect, model_base, peft, quantization, device_map : str, optional
        As for `load_model`: "pad" or "crop"; base of a folder that is not whole; LoRA adapter; "4bit" or "8bit"; "auto".
    heads : str
        Folder for the tables, default "heads".
    query : str
        "first_generated" (default) or "last_prompt".
    capture_tasks : str
        Tasks whose heads are read, joined by "+", wildcards allowed; default: the probe.
    on_error : str
        "stop" (default): an image that cannot be read ends the run; "skip": a document of the probe is left out.
    reuse_prefix : bool
        Whether requests about the same image share one prefill (default true).
    answers : bool
        False, with query=last_prompt: heads only, no decoding, no score; on the probe tasks (default true).
    image_control, knockout : str, optional
        Extra passes when the answers are there: "swap", "blank"; "all", "layers", "heads"; several joined by "+".
    control_tasks, control_limit : str, optional
        Tasks with extra passes (default: those of `capture_tasks`), and documents of each (default 256 and 64, or "all").
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
        if asked.knockouts:
            check_can_knock_out(self.visual_model.model)
        sizes = costs.Sizes.of(self.visual_model)
        weights = [path for path in (asked.pretrained, asked.model_base, asked.peft) if path]
        self._recorder = RunRecorder(
            folder=folder,
            name=model_name(asked.pretrained, asked.model_name),
            query=asked.query,
            model_description=self.visual_model.description,
            run=(
                asked.capture_tasks,
                *map(weights_fingerprint, weights),
                f"answers={asked.answers}",
                *asked.control_facts,
            ),
            answers=asked.answers,
            sizes=sizes,
        )
        self._controls = None
        if asked.has_controls:
            self._controls = Controls(asked, self.visual_model, self._recorder, sizes, self._document)
        self.batch_size = asked.batch_size
        processes.watch_others(self._recorder.say)
        self._recorder.check_processes()
        self.device = self.visual_model.device

    def _load(self, asked: arguments.Arguments) -> VisualModel:
        return load_model(
            asked.pretrained,
            device=asked.device or processes.device(asked.device_map),
            device_map=asked.device_map,
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
        self._check_statistics_only(requests)
        answers: dict[int, GenerationResult] = {}
        repeats = repeats_of(requests)
        alone: dict[tuple[Any, ...], list[Waiting]] = {}
        shared: dict[int, list[list[Waiting]]] = {}
        with self._progress(len(requests)) as progress:

            def keep(found: dict[int, GenerationResult]) -> None:
                answers.update(found)
                progress.update(len(found))

            for family in self._families(requests):
                waiting: list[Waiting] = []
                for index in family:
                    one = self._wait_to_generate(requests[index], index, repeats[index], waiting)
                    if isinstance(one, Waiting):
                        waiting.append(one)
                    else:
                        keep({index: one})
                length = self._shared_length(waiting, *(json.loads(asked) for asked in {one.asked for one in waiting}))
                if length:
                    shared.setdefault(length, []).append(waiting)
                    if len(shared[length]) >= self.batch_size:
                        keep(self._answer_families(shared.pop(length), length))
                for one in [] if length else waiting:
                    alone.setdefault(one.batch, []).append(one)
                    if len(alone[one.batch]) >= self.batch_size:
                        keep(self._answer(alone.pop(one.batch)))
                if sum(map(len, alone.values())) + sum(map(len, shared.values())) > 16 * self.batch_size:
                    if shared:
                        length = max(shared, key=lambda length: len(shared[length]))
                        keep(self._answer_families(shared.pop(length), length))
                    else:
                        keep(self._answer(alone.pop(max(alone, key=lambda key: len(alone[key])))))
            for length in list(shared):
                keep(self._answer_families(shared.pop(length), length))
            for batch in list(alone):
                keep(self._answer(alone.pop(batch)))
        return [answers[index] for index in range(len(requests))]

    @in_one_sentence
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean token loss, greedy?) of each continuation: the convention of lmms-eval's wrappers of these models.

        lmms-eval 0.7.3 turns a bare pair into a string, with which multiple choice fails; inside a result it arrives whole.
        """
        with self._recorder.kept_on_failure():
            self._check_statistics_only(requests)
            scores: dict[int, GenerationResult] = {}
            with self._progress(len(requests)) as progress:
                for family in self._families(requests):
                    for index, score in self._score_family(requests, family):
                        scores[index] = score
                        progress.update()
            return [scores[index] for index in range(len(requests))]

    def _score_family(self, requests: list[Instance], family: list[int]) -> Iterator[tuple[int, GenerationResult]]:
        """Scores by place; what the prompts of a family begin with is run once."""
        waiting: list[Waiting] = []
        for index in family:
            one = self._wait_to_score(requests[index], index, waiting)
            if isinstance(one, Waiting):
                waiting.append(one)
            else:
                yield index, one
        length = self._shared_length(waiting, {})
        prefix = None
        if length:
            with batching.if_it_fits():
                prefix = self.visual_model.prefill([waiting[0].encoded], length)
        for one in waiting:
            query = self.arguments.query if self._recorder.wants_rows(one.document) else None
            reused = {} if prefix is None else {"prefix": prefix}
            with batching.if_it_fits(one.document.task, one.document.doc_id):
                score = self.visual_model.score(one.encoded, one.asked, query=query, **reused)
            response = {"loss": score.loss, "is_greedy": score.is_greedy}
            n_rows = 0 if query is None else len(one.encoded) + 1
            ran = self._ran(one, 1 + (n_rows > 0), len(one.encoded) + score.n_tokens + n_rows)
            self._record(one, response, score.answer, score.rows, ran)
            yield one.index, scored(response)

    def _families(self, requests: list[Instance]) -> list[list[int]]:
        """Places of the requests about the same images together; one by one where nothing is reused."""
        processes.watch_others(self._recorder.say)
        digests: list[bytes | None] = [None] * len(requests)
        if self.arguments.reuse_prefix and len(requests) > 1 and self.visual_model.reuses_prefix():
            digests = batching.digests_of(
                tqdm(
                    [functools.partial(self._images, request) for request in requests],
                    desc="looking for questions about the same image",
                    disable=self.rank != 0,
                    leave=False,
                )
            )
        return batching.families(digests, [len(request.args[0]) for request in requests])

    def _images(self, request: Instance) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        return list(doc_to_visual(self.task_dict[task][split][doc_id]) or [])

    def _shared_length(self, waiting: list[Waiting], *settings: dict[str, Any]) -> int:
        """Tokens that the requests of a family share, all visual tokens among them; 0 where they are answered one by one.

        `settings` are the generation settings among them.
        """
        if len(waiting) < 2:
            return 0
        length = common_prefix([one.encoded.input_ids for one in waiting])
        if length <= int(waiting[0].encoded.visual_positions[-1]):
            return 0
        return length if all(self.visual_model.reuses_prefix(**one) for one in settings) else 0

    def _wait_to_generate(
        self, request: Instance, index: int, repeat: int, family: list[Waiting]
    ) -> Waiting | GenerationResult:
        """The request ready for its batch, or the answer that an interrupted run had got."""
        context, generation, _, doc_id, task, _ = request.args
        try:
            document = self._asked(request)
        except UnreadableImage as error:
            # Only tasks of our own leave a document without an answer out of the score; elsewhere it would count as wrong.
            if self.arguments.on_error != "skip" or not task.startswith(OWN_TASKS):
                raise
            self._recorder.skip(task, doc_id, str(error))
            return GenerationResult(text=NOT_ANSWERED)
        asked = json.dumps(generation_settings(generation), sort_keys=True)
        name = request_name(request.idx, repeat, asked)
        recalled = self._recorder.recall(document, name)
        if recalled is not None:
            return generated(recalled)
        document, encoded = self._encode(document, context, family)
        return Waiting(index, name, document, encoded, asked, self._recorder.wants_rows(document))

    def _wait_to_score(self, request: Instance, index: int, family: list[Waiting]) -> Waiting | GenerationResult:
        context, continuation, _, doc_id, task, split = request.args
        document = self._asked(request)
        if not isinstance(continuation, str):
            continuation = continuation(self.task_dict[task][split][doc_id])
        name = request_name(request.idx, 0, continuation)
        recalled = self._recorder.recall(document, name)
        if recalled is not None:
            return scored(recalled)
        document, encoded = self._encode(document, context, family)
        return Waiting(index, name, document, encoded, continuation)

    def _progress(self, total: int) -> tqdm:
        return tqdm(total=total, desc=self.model_id, disable=self.rank != 0)

    def _check_statistics_only(self, requests: list[Instance]) -> None:
        """Without answers only the probe can be run: its tasks leave their metric out."""
        others = sorted({request.args[4] for request in requests} - set(PROBE_TASKS))
        if not self.arguments.answers and others:
            raise VisualHeadsError(
                f"answers=false measures heads only, on the tasks {', '.join(PROBE_TASKS)}; {', '.join(others)} came, which "
                "would be scored without answers. Leave such tasks or answers=false out."
            )

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
        expected = lmms_eval_facts.requested_documents()
        with self._recorder.kept_on_failure():
            self._recorder.check_processes(data_of(self.task_dict) if processes.world_size() > 1 else None)
            if self._controls is not None:
                self._recorder.check_all_seen(expected)
                self._controls.run()
            self._recorder.finish(expected=expected)
        del self.visual_model
        super().clean()

    def _answer(self, batch: list[Waiting]) -> dict[int, GenerationResult]:
        """Answers by place; a batch that does not fit into memory is halved, and so are the batches after it."""
        try:
            return self._answer_together(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise batching.does_not_fit(batch[0].document.task, batch[0].document.doc_id) from None
        self._halve(len(batch))
        half = len(batch) // 2
        parts = (self._answer(part) for part in (batch[:half], batch[half:]))
        return {place: result for part in parts for place, result in part.items()}

    def _answer_families(self, waiting: list[list[Waiting]], length: int) -> dict[int, GenerationResult]:
        """Answers by place, of families whose prompts share their first `length` tokens; each prefix is run once.

        Where it does not fit into memory, fewer go together; what was answered before is not asked again.
        """
        results: dict[int, GenerationResult] = {}
        while waiting:
            part, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            if self._answer_part(part, length, results):
                continue
            left = [[one for one in family if one.index not in results] for family in part]
            waiting = [family for family in left if family] + waiting
            if self.batch_size > 1:
                self._halve(min(self.batch_size, max(len(part), *map(len, left))))
            else:  # the cache of a prefix does not fit beside its question: one whole prompt may
                for one in waiting.pop(0):
                    results.update(self._answer([one]))
        return results

    def _answer_part(self, part: list[list[Waiting]], length: int, results: dict[int, GenerationResult]) -> bool:
        """Answer some families into `results`; False where memory did not suffice."""
        groups: dict[tuple[Any, ...], list[tuple[int, Waiting]]] = {}
        for row, family in enumerate(part):
            for one in family:
                groups.setdefault(one.batch, []).append((row, one))
        try:
            prefix = self.visual_model.prefill([family[0].encoded for family in part], length)
            for members in groups.values():
                for start in range(0, len(members), self.batch_size):
                    rows, batch = zip(*members[start : start + self.batch_size], strict=True)
                    results.update(self._answer_together(list(batch), prefix.branch(rows)))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return False
        return True

    def _halve(self, n_documents: int) -> None:
        self.batch_size = min(self.batch_size, max(1, n_documents // 2))
        torch.cuda.empty_cache()
        self._recorder.say(
            f"{n_documents} documents do not fit into memory; going on with batches of {self.batch_size}"
        )

    def _answer_together(self, batch: list[Waiting], cache: Any = None) -> dict[int, GenerationResult]:
        """Answers by place; `cache` is a branch of the prefix that the batch goes on from."""
        encoded = [one.encoded for one in batch]
        reused = {} if cache is None else {"cache": cache}
        results = {}
        if not self.arguments.answers:
            wanted = batch[0].captured
            read = self.visual_model.prompt_rows(encoded, **reused) if wanted else [None] * len(batch)
            for one, rows in zip(batch, read, strict=True):
                response = {"text": NOT_ANSWERED, "n_prompt": len(one.encoded), "n_answer": 0}
                self._record(one, response, None, rows, self._ran(one, 1, len(one.encoded)))
                results[one.index] = generated(response)
            return results
        query = self.arguments.query if batch[0].captured else None
        answered = self.visual_model.generate(encoded, query=query, **reused, **json.loads(batch[0].asked))
        for one, given in zip(batch, answered, strict=True):
            response = {"text": given.text, "n_prompt": len(one.encoded), "n_answer": len(given.token_ids)}
            cost = costs.generated(len(one.encoded), len(given.token_ids), json.loads(one.asked)["num_beams"])
            self._record(one, response, given.answer, given.rows, self._ran(one, *cost, given.blank))
            results[one.index] = generated(response)
        return results

    def _ran(self, one: Waiting, passes: int, tokens: int, blank: int | None = None) -> costs.Ran:
        return costs.ran(one.encoded, self.visual_model.model.config, passes, tokens, blank)

    def _record(
        self,
        one: Waiting,
        response: dict[str, Any],
        answer: AnswerStatistics | None,
        rows: torch.Tensor | None,
        ran: costs.Ran,
    ) -> None:
        document, encoded = one.document, one.encoded
        statistics, share = None, None
        said = answer_text(response["text"]) if answer is not None and answer.n_answer_tokens else None
        if rows is not None:
            numbers = self.visual_model.head_statistics(encoded, rows)
            region_share = numbers.pop("region_share")
            share = None if bool(region_share.isnan().all()) else float(region_share[~region_share.isnan()][0])
            stacked = torch.stack(list(numbers.values())).cpu().numpy()
            statistics = dict(zip(numbers, stacked, strict=True))
        self._recorder.add(
            document,
            one.name,
            response,
            answer=None if answer is None else dataclasses.asdict(answer) | {"answer": said},
            heads=statistics,
            tokens={
                "n_prompt_tokens": len(encoded),
                "n_visual_tokens": len(encoded.visual_positions),
                "n_patch_tokens": len(encoded.patch_positions),
            },
            region_share=share,
            ran=ran,
        )

    def _asked(self, request: Instance) -> Document:
        """The document of a request, noted for the extra passes."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        padding = bool(request.metadata.get("__padding_only__"))
        document = self._document(doc_to_visual, doc_id, task, split, context, padding)
        if self._controls is not None:
            self._controls.note(document, split, context, doc_to_visual)
        return document

    def _document(
        self,
        doc_to_visual: Callable[[Any], Any],
        doc_id: int,
        task: str,
        split: str,
        context: str,
        padding_only: bool = False,
    ) -> Document:
        dataset = self.task_dict[task][split]
        doc, images = open_images(dataset, doc_id, doc_to_visual, task, self.model_id)
        return Document.of(
            doc,
            task=task,
            doc_id=doc_id,
            images=images,
            context=context,
            wanted=self.arguments.captures(task),
            padding_only=padding_only,
            controlled=self.arguments.controls(task),
        )

    def _encode(self, document: Document, context: str, family: list[Waiting]) -> tuple[Document, Encoded]:
        """The document's tensors; those of its images are taken from another request of the family where there is one."""
        try:
            boxes = document.boxes if document.captured else None
            if family:
                document = dataclasses.replace(document, images=family[0].document.images)  # equal: hold one copy
                return document, self.visual_model.encode_again(context, family[0].encoded, boxes)
            return document, self.visual_model.encode(context, document.images, boxes)
        except VisualHeadsError as error:
            raise VisualHeadsError(f"Task {document.task}, document {document.doc_id}: {error}") from None
