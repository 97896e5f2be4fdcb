"""`visual_heads_llava`: the model that lmms-eval runs. It answers as a plain wrapper does and reads the heads on the way.

An adapter: requests.py reads lmms-eval's requests, scheduler.py says which are answered together, recording.py keeps what is
measured, controls.py runs the extra passes. A failure ends the run with its reason; it never becomes an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm
from transformers import Cache

from lmms_visual_heads.capture.knockout import check_can_knock_out
from lmms_visual_heads.capture.prefix import Prefix
from lmms_visual_heads.checkpoints.loading import check_is_llava, load_model
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import arguments, columns, costs, lmms_eval_facts, processes
from lmms_visual_heads.harness.controls import Controls
from lmms_visual_heads.harness.documents import Document
from lmms_visual_heads.harness.endings import in_one_sentence
from lmms_visual_heads.harness.plugin import MODEL_ID
from lmms_visual_heads.harness.recording import RunRecorder
from lmms_visual_heads.harness.requests import Finish, RequestReader, Waiting, generated, scored
from lmms_visual_heads.harness.run_facts import data_of, weights_fingerprint
from lmms_visual_heads.harness.scheduler import Scheduler
from lmms_visual_heads.names import model_name
from lmms_visual_heads.probe.scoring import NOT_ANSWERED
from lmms_visual_heads.schema import PROBE_TASKS
from lmms_visual_heads.statistics.answers import AnswerStatistics


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
    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        self.arguments = arguments.check(model_args, self.model_id)
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
        self._reader = RequestReader(asked, self.model_id, self.visual_model, self._recorder, lambda: self.task_dict)
        self._scheduler = Scheduler(self.visual_model, asked.batch_size, self._recorder.say)
        self.batch_size = asked.batch_size
        self._controls = None
        if asked.has_controls:
            self._controls = Controls(asked, self.visual_model, self._recorder, sizes, self._reader.document)
        processes.watch_others(self._recorder.say)
        self._recorder.check_processes()
        self.device = self.visual_model.device

    def _load(self, asked: arguments.Arguments) -> VisualModel:
        check_is_llava(asked.pretrained, asked.revision, asked.model_base)
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
        model_args = dict(arg_string) if isinstance(arg_string, dict) else arguments.parse(arg_string)
        return cls(**{**model_args, **(additional_config or {})})

    @in_one_sentence
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; heads and answer statistics go to the recorder."""
        return self._in_order(
            requests,
            lambda finish: self._scheduler.in_batches(
                self._reader.to_generate(requests, finish, self._note), self._answer
            ),
        )

    @in_one_sentence
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean token loss, greedy?) of each continuation: the convention of lmms-eval's wrappers of these models."""
        return self._in_order(
            requests,
            lambda finish: self._scheduler.one_by_one(self._reader.to_score(requests, finish, self._note), self._score),
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
        del self.visual_model, self._reader, self._scheduler, self._controls  # all of them hold the weights
        super().clean()

    def _in_order(
        self, requests: list[Instance], run: Callable[[Finish], Iterator[tuple[Waiting, GenerationResult]]]
    ) -> list[GenerationResult]:
        """Results in the order of the requests; what was measured before a failure is kept."""
        results: dict[int, GenerationResult] = {}
        with self._recorder.kept_on_failure():
            self._check_statistics_only(requests)
            processes.watch_others(self._recorder.say)
            with tqdm(total=len(requests), desc=self.model_id, disable=self.rank != 0) as progress:

                def finish(index: int, result: GenerationResult) -> None:
                    results[index] = result
                    progress.update()

                for question, result in run(finish):
                    finish(question.index, result)
        self.batch_size = self._scheduler.batch_size  # smaller where memory did not suffice
        return [results[index] for index in range(len(requests))]

    def _check_statistics_only(self, requests: list[Instance]) -> None:
        """Without answers only the probe can be run: its tasks leave their metric out."""
        others = sorted({request.args[4] for request in requests} - set(PROBE_TASKS))
        if not self.arguments.answers and others:
            raise VisualHeadsError(
                f"answers=false measures heads only, on the tasks {', '.join(PROBE_TASKS)}; {', '.join(others)} came, which "
                "would be scored without answers. Leave such tasks or answers=false out."
            )

    def _note(self, document: Document, split: str, context: str, doc_to_visual: Callable[[Any], Any]) -> None:
        if self._controls is not None:
            self._controls.note(document, split, context, doc_to_visual)

    def _answer(self, batch: Sequence[Waiting], cache: Cache | None) -> list[GenerationResult]:
        """Answer one batch; `cache` is a branch of the prefix that it goes on from."""
        if not self.arguments.answers:
            return self._only_rows(batch, cache)
        encoded, reused = [one.encoded for one in batch], {} if cache is None else {"cache": cache}
        query = self.arguments.query if batch[0].reads_rows else None
        results = []
        generations = self.visual_model.generate(encoded, query=query, **reused, **batch[0].settings)
        for one, generation in zip(batch, generations, strict=True):
            n_prompt, n_answer = len(one.encoded), len(generation.token_ids)
            response = {"text": generation.text, "n_prompt": n_prompt, "n_answer": n_answer}
            passes, tokens = costs.generated(n_prompt, n_answer, one.settings["num_beams"])
            ran = self._ran(one, passes, tokens, generation.blank)
            self._record(one, response, generation.answer, generation.rows, ran)
            results.append(generated(response))
        return results

    def _only_rows(self, batch: Sequence[Waiting], cache: Cache | None) -> list[GenerationResult]:
        """Read the rows of one batch, without an answer."""
        encoded, reused = [one.encoded for one in batch], {} if cache is None else {"cache": cache}
        rows: Sequence[torch.Tensor | None] = [None] * len(batch)
        if batch[0].reads_rows:
            rows = self.visual_model.prompt_rows(encoded, **reused)
        results = []
        for one, of_one in zip(batch, rows, strict=True):
            response = {"text": NOT_ANSWERED, "n_prompt": len(one.encoded), "n_answer": 0}
            self._record(one, response, None, of_one, self._ran(one, 1, len(one.encoded)))
            results.append(generated(response))
        return results

    def _score(self, question: Waiting, prefix: Prefix | None) -> GenerationResult:
        """Score one continuation; `prefix` holds what its family begins with."""
        query = self.arguments.query if question.reads_rows else None
        reused = {} if prefix is None else {"prefix": prefix}
        score = self.visual_model.score(question.encoded, question.asked, query=query, **reused)
        response = {"loss": score.loss, "is_greedy": score.is_greedy}
        n_prompt = len(question.encoded)
        n_rows = 0 if query is None else n_prompt + 1
        ran = self._ran(question, 1 + (n_rows > 0), n_prompt + score.n_tokens + n_rows)
        self._record(question, response, score.answer, score.rows, ran)
        return scored(response)

    def _ran(self, question: Waiting, passes: int, tokens: int, blank: int | None = None) -> costs.Ran:
        return costs.ran(question.encoded, self.visual_model.model.config, passes, tokens, blank)

    def _record(
        self,
        question: Waiting,
        response: dict[str, Any],
        answer: AnswerStatistics | None,
        rows: torch.Tensor | None,
        ran: costs.Ran,
    ) -> None:
        heads, region_share = None, None
        if rows is not None:
            heads, region_share = columns.of_heads(self.visual_model.head_statistics(question.encoded, rows))
        self._recorder.add(
            question.document,
            question.name,
            response,
            answer=columns.of_answer(answer, response.get("text", "")),
            heads=heads,
            tokens=columns.of_tokens(question.encoded),
            region_share=region_share,
            ran=ran,
        )
