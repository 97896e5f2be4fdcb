"""`visual_heads_hf` through lmms-eval in this process: answers of a plain wrapper, the same tables, regions missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from lmms_visual_heads.checkpoints.any_model import load_any
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import plugin
from lmms_visual_heads.harness.any_model import VisualHeadsHf
from lmms_visual_heads.tables import HEAD_COLUMNS
from tests.builders.any_tiny import any_checkpoint
from tests.builders.lmms_tasks import InlineTask, answers, choices_task, picture, questions, run
from tests.harness.test_run import tables

KINDS = ("qwen2-vl", "gemma3", "internvl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    torch.set_num_threads(1)
    built: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in built:
            built[kind] = any_checkpoint(kind, tmp_path_factory.mktemp("any") / kind)
        return built[kind]

    return get


class PlainWrapper(lmms):
    """`processor.apply_chat_template(tokenize=True)` and `generate`, one request at a time; nothing of this project."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)

    def generate_until(self, requests: Any) -> list[GenerationResult]:
        results = []
        for request in requests:
            context, settings, doc_to_visual, doc_id, task, split = request.args
            images = doc_to_visual(self.task_dict[task][split][doc_id])
            content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": context}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=settings["max_new_tokens"])
            text = self.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            results.append(GenerationResult(text=text))
        return results

    def loglikelihood(self, requests: Any) -> list[Any]:
        raise AssertionError("not used")

    def generate_until_multi_round(self, requests: Any) -> list[str]:
        raise AssertionError("not used")


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_plain_wrapper_and_tables_hold_the_rows(
    kind: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def tasks() -> list[Any]:
        documents = [{**doc, "item_id": str(i), "pointed_box": [3, 5, 30, 41]} for i, doc in enumerate(questions(6))]
        return [InlineTask("one", documents), InlineTask("two", questions(3, pictures=2))]

    model = VisualHeadsHf(pretrained=str(folder(kind)), heads=str(tmp_path), capture_tasks="*", batch_size=3)
    ours, plain = run(model, tasks()), run(PlainWrapper(folder(kind)), tasks())
    for task in ("one", "two"):
        assert answers(ours, task) == answers(plain, task)
    heads, answer, metadata = tables(tmp_path)
    assert [column.name for column in HEAD_COLUMNS] == list(heads.columns)
    assert set(heads.task) == {"one"}
    assert len(answer) == 9
    assert heads[["region_attention", "region_attention_base", "region_share"]].isna().all(axis=None)
    slow = load_any(folder(kind), device="cpu", dtype="float32")
    for number, document in enumerate(questions(6)):
        expected = slow.attention_rows(picture(10 * number), document["question"]).statistics()
        found = heads[heads.doc_id == number].sort_values(["layer", "head"]).reset_index(drop=True)
        for column in ("image_attention", "concentration", "focus", "visual_head_score", "sink_attention"):
            np.testing.assert_allclose(found[column], expected[column], atol=1e-5, err_msg=column)
    assert metadata["model"]["architecture"] == type(slow.model).__name__


def test_multiple_choice_is_scored(folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = VisualHeadsHf(pretrained=str(folder("qwen2-vl")), heads=str(tmp_path), capture_tasks="*")
    results = run(model, [choices_task("choices", 3)])
    pairs = [pair for [pair] in answers(results, "choices")[0]]
    assert len(set(pairs)) == 4
    assert all(loss > 0 for loss, _ in pairs)
    assert set(tables(tmp_path)[0].task) == {"choices"}


def test_mistakes_name_this_model(folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(VisualHeadsError, match="visual_heads_hf does not know the argument 'pretraind'"):
        VisualHeadsHf(pretraind="x")
    with pytest.raises(VisualHeadsError, match=r"visual_heads_hf takes the prompt from .* conversation= came"):
        VisualHeadsHf(pretrained=str(folder("qwen2-vl")), heads=str(tmp_path), conversation="v1")
    model = VisualHeadsHf(pretrained=str(folder("qwen2-vl")), heads=str(tmp_path))
    with pytest.raises(
        VisualHeadsError, match="visual_heads_hf answers questions about images; document 0 of task clips"
    ):
        run(model, [InlineTask("clips", questions(1), doc_to_visual=lambda doc: ["film.mp4"])])


def test_lmms_eval_finds_the_model_by_its_own_entry_point() -> None:
    script = (
        "import sys; from importlib.metadata import entry_points;"
        "[e] = [e for e in entry_points(group='lmms_eval.models') if e.name == 'visual_heads_hf']; e.load();"
        "assert not {'torch', 'transformers', 'pandas', 'lmms_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    manifest = plugin.register_any()
    assert manifest.model_id == "visual_heads_hf"
    assert manifest.simple_class_path.endswith("any_model.VisualHeadsHf")


@pytest.mark.parametrize("box", [[60, 0, 70, 9], [5, 5, 5, 9], [30, 5, 3, 41]])
def test_a_bad_box_names_its_document_before_the_model_runs(
    folder: Callable[[str], Path], tmp_path: Path, box: list[int]
) -> None:
    documents = [{**doc, "pointed_box": box} for doc in questions(1)]
    model = VisualHeadsHf(pretrained=str(folder("qwen2-vl")), heads=str(tmp_path), capture_tasks="*")
    with pytest.raises(VisualHeadsError, match=r"Task boxed, document 0: A box (is|must overlap its image)"):
        run(model, [InlineTask("boxed", documents)])
