"""lmms-eval tasks and a plain wrapper for the tests: what our model is compared with."""

from __future__ import annotations

import random
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from lmms_eval import evaluator
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "white": (250, 250, 250)}


def picture(number: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    """A small picture of noise, the same for the same number."""
    return Image.frombytes("RGB", size, random.Random(number).randbytes(3 * size[0] * size[1]))


class InlineTask(ConfigurableTask):
    """A task from a list of documents and a dictionary of configuration."""

    def __init__(self, name: str, documents: list[dict[str, Any]], **config: Any) -> None:
        self._documents = documents
        defaults: dict[str, Any] = {
            "task": name,
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [picture(n) for n in doc["pictures"]],
            "doc_to_text": lambda doc: doc["question"],
            "doc_to_target": "answer",
            "generation_kwargs": {"max_new_tokens": 6, "temperature": 0},
            "process_results": lambda doc, results: {"exact_match": float(results[0] == doc["answer"])},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1},
        }
        super().__init__(config={**defaults, **config})

    def download(self, dataset_kwargs: Any = None) -> None:
        self.dataset = DatasetDict({"test": Dataset.from_list(self._documents)})
        self.dataset_no_image = self.dataset


def questions(n: int, pictures: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Documents with `pictures` pictures each and prompts of three lengths."""
    return [
        {
            "pictures": [10 * i + j for j in range(pictures)],
            "question": "How many of these are there?" + " Look twice." * (i % 3),
            "answer": "red",
            **more,
        }
        for i in range(n)
    ]


def choices_task(name: str, n: int) -> InlineTask:
    """Multiple choice, scored by the likelihood of each option."""
    return InlineTask(
        name,
        questions(n),
        output_type="multiple_choice",
        doc_to_choice=list(COLOURS),
        process_results=None,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def run(model: lmms, tasks: list[Any], **more: Any) -> dict[str, Any]:
    """One evaluation in this process; answers under results["samples"]."""
    manager = TaskManager("ERROR", include_defaults=False)
    return evaluator.simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True, verbosity="ERROR", **more
    )


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """The model's responses to `task`, in the order of the documents."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


class PlainWrapper(lmms):
    """Processor, chat template, `generate`, one request at a time; nothing of this project."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
        self.device = "cpu"

    def _prompt(self, text: str, n_images: int, answer: str | None = None) -> str:
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)

    def generate_until(self, requests: Any) -> list[str]:
        texts = []
        for request in requests:
            context, settings, doc_to_visual, doc_id, task, split = request.args
            images = doc_to_visual(self.task_dict[task][split][doc_id])
            inputs = self.processor(
                text=[self._prompt(context, len(images))], images=images or None, return_tensors="pt"
            )
            inputs = {
                k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "pixel_values", "image_sizes")
            }
            with torch.inference_mode():
                tokens = self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=settings["max_new_tokens"],
                    num_beams=settings.get("num_beams", 1),
                )
            texts.append(
                self.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            )
        return texts

    def loglikelihood(self, requests: Any) -> list[Any]:
        scored = []
        for request in requests:
            context, answer, doc_to_visual, doc_id, task, split = request.args
            images = doc_to_visual(self.task_dict[task][split][doc_id])
            whole = self.processor(
                text=[self._prompt(context, len(images), answer)], images=images or None, return_tensors="pt"
            )
            start = self.processor(
                text=[self._prompt(context, len(images))], images=images or None, return_tensors="pt"
            )
            n = start["input_ids"].shape[1]
            labels = whole["input_ids"].clone()
            labels[:, :n] = -100
            inputs = {
                k: v for k, v in whole.items() if k in ("input_ids", "attention_mask", "pixel_values", "image_sizes")
            }
            with torch.inference_mode():
                output = self.model(**inputs, labels=labels)
            greedy = output.logits[:, n:].argmax(-1)
            pair = (float(output.loss), bool((greedy == whole["input_ids"][:, n:]).all()))
            scored.append(GenerationResult(text=pair))  # a bare pair would arrive as a string (lmms-eval 0.7.3)
        return scored

    def generate_until_multi_round(self, requests: Any) -> list[str]:
        raise AssertionError("not used")
