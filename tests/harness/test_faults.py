"""Faults beyond those of test_harness_recovery: left-out images, infinities, a process that fails silently, device maps."""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image, ImageFile

from lmms_visual_heads import load_model
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import tasks
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.tables import read_head_table
from tests.builders.lmms_tasks import InlineTask, answers, choices_task, picture, questions, run
from tests.builders.paths import ROOT
from tests.builders.tiny import noise_image

Tiny = Callable[[str], Path]


def task(name: str, broken: set[int], n: int = 6) -> InlineTask:
    def visual(doc: dict[str, Any]) -> list[Any]:
        if doc["pictures"][0] // 10 in broken:
            raise OSError("cannot identify image file")
        return [picture(doc["pictures"][0])]

    return InlineTask(name, questions(n), doc_to_visual=visual, process_results=tasks.process_results)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_on_error_skip_leaves_a_document_out_of_tables_and_score(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    arguments = {"pretrained": str(tiny("llava-llama")), "batch_size": batch_size, "on_error": "skip"}
    results = run(VisualHeadsLlava(**arguments, heads=str(tmp_path / "a")), [task("vhead_super", {1, 4})])
    whole = run(VisualHeadsLlava(**arguments, heads=str(tmp_path / "b")), [task("vhead_super", set())])
    said = " ".join(capsys.readouterr().err.split())
    assert "vhead_super: 2 documents were left out of tables and score (documents 1, 4)" in said
    some, every = answers(results, "vhead_super"), answers(whole, "vhead_super")
    assert [i for i in range(6) if some[i] != every[i]] == [1, 4]
    table = read_head_table(tmp_path / "a")
    assert set(table.frame["doc_id"]) == {0, 2, 3, 5}
    assert table.tasks["vhead_super"]["skipped"] == [1, 4]
    assert table.tasks["vhead_super"]["n_documents"] == 4
    kept = [sample for sample in results["samples"]["vhead_super"] if "exact_match" in sample]
    assert len(kept) == 4, "a document without an answer was scored"


def test_an_unreadable_image_elsewhere_or_by_default_ends_the_run(tiny: Tiny, tmp_path: Path) -> None:
    for name, on_error in (("pope", "skip"), ("vhead_super", "stop")):
        model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path / name), on_error=on_error)
        with pytest.raises(VisualHeadsError, match=f"document 1 of task {name} is not"):
            run(model, [task(name, {1})])
    with pytest.raises(VisualHeadsError, match="on_error must be stop or skip"):
        VisualHeadsLlava(pretrained="x", heads=str(tmp_path), on_error="pass")


class PictureColumn(InlineTask):
    """A task whose pictures stand in the data set itself, as most of lmms-eval's do; lmms-eval scores without them."""

    def download(self, dataset_kwargs: Any = None) -> None:
        features = Features({"image": datasets.Image(), "question": Value("string"), "answer": Value("string")})
        whole = Dataset.from_list(self._documents, features=features)
        self.dataset = DatasetDict({"test": whole})
        self.dataset_no_image = DatasetDict({"test": whole.remove_columns("image")})


def png(number: int) -> bytes:
    content = io.BytesIO()
    picture(number).save(content, "PNG")
    return content.getvalue()


def column(n: int) -> PictureColumn:
    documents = [
        {
            "image": {"bytes": b"no picture" if i == 1 else png(i), "path": None},
            "question": "How many?",
            "answer": "red",
        }
        for i in range(n)
    ]
    return PictureColumn("pope", documents, doc_to_visual=lambda doc: [doc["image"]])


def opened_late(n: int) -> InlineTask:
    def visual(doc: dict[str, Any]) -> list[Any]:
        number = doc["pictures"][0]
        return [Image.open(io.BytesIO(png(number) if number != 10 else png(number)[:60]))]

    return InlineTask("pope", questions(n), doc_to_visual=visual)


def too_large(n: int) -> InlineTask:
    def visual(doc: dict[str, Any]) -> list[Any]:
        if doc["pictures"][0] == 10:
            raise Image.DecompressionBombError("Image size (178956971 pixels) exceeds limit")
        return [picture(doc["pictures"][0])]

    return InlineTask("pope", questions(n), doc_to_visual=visual)


@pytest.mark.parametrize("broken", [column, opened_late, too_large])
def test_a_broken_picture_is_named_wherever_it_is_decoded(
    tiny: Tiny, tmp_path: Path, broken: Callable[[int], InlineTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ImageFile, "LOAD_TRUNCATED_IMAGES", False
    )  # lmms-eval sets it, and fills what is missing with grey
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path))
    with pytest.raises(VisualHeadsError, match="that of document 1 of task pope is not"):
        run(model, [broken(3)])


def test_a_run_that_leaves_every_document_out_has_failed(tiny: Tiny, tmp_path: Path) -> None:
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path), on_error="skip")
    with pytest.raises(VisualHeadsError, match="all 2 were left out"):
        run(model, [task("vhead_super", {0, 1}, n=2)])
    assert not list(tmp_path.iterdir())


def test_answers_from_logits_that_are_not_finite_are_named(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path))
    with torch.no_grad():
        model.visual_model.model.lm_head.weight.fill_(float("nan"))
    run(model, [InlineTask("t", questions(2))])
    assert "the logits of 2 of 2 documents were not finite (the first: t 0)" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_head_that_is_not_finite_in_one_document_is_missing_there_and_named(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path), capture_tasks="*")
    generate, seen = model.visual_model.generate, []

    def broken(batch: Any, **more: Any) -> Any:
        given = generate(batch, **more)
        seen.append(1)
        if len(seen) == 2:
            rows = given[0].rows.clone()
            rows[1, 2, 5] = value
            given[0] = dataclasses.replace(given[0], rows=rows)
        return given

    model.visual_model.generate = broken  # type: ignore[method-assign]
    run(model, [InlineTask("t", questions(4))])
    frame = read_head_table(tmp_path).frame
    missing = frame[frame["image_attention"].isna()]
    assert len(missing) == 1
    assert (missing["layer"].item(), missing["head"].item()) == (1, 2)
    there = frame.drop(missing.index)
    assert np.isfinite(there[["image_attention", "focus", "sink_attention"]].to_numpy(dtype=float)).all()
    assert "layer 1 head 2 (1 documents)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_out_of_memory_in_the_first_a_middle_and_the_last_batch(tiny: Tiny, tmp_path: Path, bad: int) -> None:
    same = [{**document, "question": "How many?"} for document in questions(10)]
    model = VisualHeadsLlava(
        pretrained=str(tiny("llava-llama")), heads=str(tmp_path / "a"), capture_tasks="*", batch_size=2
    )
    generate, calls = model.visual_model.generate, []

    def limited(batch: Any, **more: Any) -> Any:
        calls.append(len(batch))
        if len(calls) - 1 == bad:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(batch, **more)

    model.visual_model.generate = limited  # type: ignore[method-assign]
    found = answers(run(model, [InlineTask("t", same)]), "t")
    plain = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path / "b"), capture_tasks="*")
    assert found == answers(run(plain, [InlineTask("t", same)]), "t")
    one, other = (read_head_table(tmp_path / name).frame for name in "ab")
    pd.testing.assert_frame_equal(one, other, atol=1e-5, rtol=1e-5)
    assert calls[bad + 1] == 1, "the batch was not halved"


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_memory_that_runs_out_under_another_name_halves_the_batch(tiny: Tiny, tmp_path: Path, words: str) -> None:
    same = [{**document, "question": "How many?"} for document in questions(4)]
    for error, message in (
        (RuntimeError(words), None),
        (RuntimeError("CUDA error: an illegal memory access"), "illegal"),
    ):
        model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path), batch_size=4)
        generate = model.visual_model.generate

        def limited(batch: Any, generate: Any = generate, error: Exception = error, **more: Any) -> Any:
            if len(batch) > 2:
                raise error
            return generate(batch, **more)

        model.visual_model.generate = limited  # type: ignore[method-assign]
        if message is None:
            assert len(answers(run(model, [InlineTask("t", same)]), "t")) == 4
            assert model.batch_size == 2
        else:
            with pytest.raises(RuntimeError, match=message):
                run(model, [InlineTask("t", same)])


def test_a_choice_that_does_not_fit_into_memory_is_named(tiny: Tiny, tmp_path: Path) -> None:
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path))

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.visual_model.score = full  # type: ignore[method-assign]
    with pytest.raises(VisualHeadsError, match=r"document \d of task c does not. Free the device"):
        run(model, [choices_task("c", 1)])


SILENT = """
import sys, traceback
import torch.distributed as dist
dist.init_process_group("gloo")
from lmms_visual_heads.harness import processes
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.tables import journal
from tests.builders.lmms_tasks import InlineTask, questions, run
processes.POLL_SECONDS, processes.GRACE_SECONDS = 0.2, 1.0
journal.FLUSH_SECONDS = 0.0

def score(doc, results):
    if processes.rank() == 1:
        raise RuntimeError("a task's own fault")
    return {"exact_match": 0.0}

model = VisualHeadsLlava(pretrained=sys.argv[1], heads=sys.argv[2], capture_tasks="*", device="cpu")
if sys.argv[3] == "answering" and processes.rank() == 1:
    model.visual_model.generate = None
try:
    run(model, [InlineTask("t", questions(6), process_results=score)])
except Exception:
    traceback.print_exc()  # as lmms-eval does, which then ends with status 0
"""


@pytest.mark.parametrize("where", ["scoring", "answering"])
def test_a_process_that_fails_silently_ends_the_run(tiny: Tiny, tmp_path: Path, where: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(SILENT)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    words += ["--master_port", str(port), str(script), str(tiny("llava-llama")), str(tmp_path / "heads"), where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = time.monotonic()
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert time.monotonic() - started < 200
    said = " ".join(done.stderr.split())
    assert "process 1 of this run ended before the others" in said
    if where == "answering":
        assert list((tmp_path / "heads").glob("*.run/*responses*")), "what was measured is gone"
    else:
        assert list((tmp_path / "heads").glob("*.heads.parquet")), "the tables were written before the scoring"


def test_a_device_map_gives_the_same_rows(tiny: Tiny) -> None:
    plain = load_model(tiny("llava-llama"), device="cpu", dtype="float32")
    spread = load_model(tiny("llava-llama"), device_map="auto", dtype="float32")
    for query in ("first_generated", "last_prompt"):
        one, other = (model.attention_rows(noise_image(), "How many?", query=query) for model in (plain, spread))
        torch.testing.assert_close(one.values, other.values)
        assert one.answer_ids == other.answer_ids


def test_device_maps_that_cannot_be(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VisualHeadsError, match="device_map must be one of auto"):
        load_model(tiny("llava-llama"), device_map="everywhere")
    with pytest.raises(VisualHeadsError, match="device=cpu came beside it"):
        load_model(tiny("llava-llama"), device_map="auto", device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(VisualHeadsError, match="needs one process; 2 were started"):
        VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path), device_map="auto")
