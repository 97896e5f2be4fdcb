"""Runs that are disturbed: killed, broken by an image, stopped, shared by processes. The table is that of an undisturbed run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.harness.recording import Document, RunRecorder
from lmms_visual_heads.statistics.answers import answer_text
from lmms_visual_heads.tables import journal
from tests.builders.lmms_tasks import InlineTask, answers, choices_task, picture, questions, run
from tests.builders.paths import ROOT

Tiny = Callable[[str], Path]
KEY = ["task", "doc_id", "layer", "head"]


def tables(folder: Path) -> tuple[pd.DataFrame, ...]:
    """The tables of a finished run, which has left nothing else: heads, answers, and causal where heads were cut."""
    (heads,) = folder.glob("*.heads.parquet")
    (answer,) = folder.glob("*.answers.parquet")
    paths = [heads, answer, *folder.glob("*.causal.parquet")]
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths}
    return tuple(map(pd.read_parquet, paths))


def model(tiny: Tiny, folder: Path, **more: Any) -> VisualHeadsLlava:
    return VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(folder), capture_tasks="*", **more)


def assert_same_tables(one: Path, other: Path) -> None:
    for mine, theirs in zip(tables(one), tables(other), strict=True):
        pd.testing.assert_frame_equal(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk after every document."""
    monkeypatch.setattr(journal, "FLUSH_SECONDS", 0.0)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_broken_image_costs_nothing_that_was_measured(tiny: Tiny, tmp_path: Path, batch_size: int) -> None:
    broken = {3}
    asked: list[int] = []

    def visual(doc: dict[str, Any]) -> list[Any]:
        if doc["pictures"][0] // 10 in broken:
            raise OSError("cannot identify image file")
        return [picture(doc["pictures"][0])]

    def tasks() -> list[Any]:
        return [InlineTask("t", [{**d, "question": "How many?"} for d in questions(6)], doc_to_visual=visual)]

    first = model(tiny, tmp_path / "a", batch_size=batch_size)
    with pytest.raises(VisualHeadsError, match=r"document 3 of task t is not .cannot identify image file"):
        run(first, tasks())
    assert not list((tmp_path / "a").glob("*.parquet"))
    broken.clear()
    second = model(tiny, tmp_path / "a", batch_size=batch_size)
    whole = second.visual_model.generate

    def counted(batch: Any, **more: Any) -> Any:
        asked.extend(range(len(batch)))
        return whole(batch, **more)

    second.visual_model.generate = counted  # type: ignore[method-assign]
    resumed = answers(run(second, tasks()), "t")
    assert len(asked) == 6 - 3 // batch_size * batch_size
    assert resumed == answers(run(model(tiny, tmp_path / "b", batch_size=batch_size), tasks()), "t")
    assert_same_tables(tmp_path / "a", tmp_path / "b")
    said = tables(tmp_path / "a")[1].set_index("doc_id")["answer"]
    assert said.sort_index().tolist() == [answer_text(text) for [[text]] in resumed]
    assert said.str.len().gt(0).any()


SCRIPT = """
import os, signal, sys
from pathlib import Path
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.harness.recording import Document, RunRecorder
from lmms_visual_heads.tables import journal
from tests.builders.lmms_tasks import InlineTask, choices_task, questions, run

checkpoint, heads, deadly = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal.FLUSH_SECONDS = 0.0
journal.MOST_CHUNKS = 4
extra = {"image_control": "swap+blank", "knockout": "all+heads", "control_limit": "7"}
model = VisualHeadsLlava(pretrained=checkpoint, heads=heads, capture_tasks="*", device="cpu", **extra)
whole, seen = model.visual_model.generate, []

def generate(batch, **more):
    seen.append(1)
    if len(seen) == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(batch, **more)

model.visual_model.generate = generate
run(model, [InlineTask("t", questions(11)), InlineTask("u", questions(5)), choices_task("c", 3)])
"""


def start(checkpoint: Path, heads: Path, deadly: int = 0, processes: int = 1) -> subprocess.CompletedProcess[str]:
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    script = heads.parent / "script.py"
    script.write_text(SCRIPT)
    words = [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(script),
        str(checkpoint),
        str(heads),
        str(deadly),
    ]
    return subprocess.run(words, env=environment, cwd=heads.parent, capture_output=True, text=True, timeout=600)


def undisturbed_run(checkpoint: Path, heads: Path) -> None:
    """The script in this process, which has what a start costs behind it; it ends as any run does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["script.py", str(checkpoint), str(heads), "0"])
        for name in ("FLUSH_SECONDS", "MOST_CHUNKS"):  # the script sets them
            patched.setattr(journal, name, getattr(journal, name))
        exec(compile(SCRIPT, "script.py", "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of the script's run in one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "heads"
    undisturbed_run(tiny("llava-llama"), folder)
    return folder


def test_kill_minus_nine_costs_the_last_chunk_and_nothing_else(
    tiny: Tiny, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed twice, with chunks merged in between."""
    for deadly in (7, 6):
        assert start(tiny("llava-llama"), tmp_path / "killed", deadly).returncode == -signal.SIGKILL
        assert not list((tmp_path / "killed").glob("*.parquet"))
    undisturbed_run(tiny("llava-llama"), tmp_path / "killed")
    assert "going on from an unfinished run: 11 documents" in " ".join(capsys.readouterr().err.split())
    assert_same_tables(tmp_path / "killed", undisturbed)


def test_two_processes_leave_the_table_of_one(tiny: Tiny, tmp_path: Path, undisturbed: Path) -> None:
    done = start(tiny("llava-llama"), tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_tables(tmp_path / "two", undisturbed)
    _, answer, causal = tables(tmp_path / "two")
    assert len(causal[["task", "doc_id"]].drop_duplicates()) == answer.swap_kl.notna().sum() == 7 + 5 + 3


def test_a_process_that_dies_ends_the_run_and_what_it_measured_is_kept(
    tiny: Tiny, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tiny("llava-llama"), tmp_path / "two", deadly=4, processes=2).returncode != 0
    assert not list((tmp_path / "two").glob("*.parquet"))
    undisturbed_run(tiny("llava-llama"), tmp_path / "two")
    assert "going on from an unfinished run" in " ".join(capsys.readouterr().err.split())
    assert_same_tables(tmp_path / "two", undisturbed)


def test_two_runs_do_not_write_into_one_journal(tiny: Tiny, tmp_path: Path) -> None:
    first = model(tiny, tmp_path)
    with pytest.raises(VisualHeadsError, match=r"another run of this model is writing .* heads=DIR"):
        model(tiny, tmp_path)
    run(first, [InlineTask("t", questions(2))])
    run(model(tiny, tmp_path), [InlineTask("t", questions(2))])
    assert len(list(tmp_path.glob("*.heads.parquet"))) == 2


@pytest.mark.usefixtures("often")
def test_ctrl_c_keeps_what_was_measured_and_says_how_to_go_on(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = model(tiny, tmp_path)
    whole = stopped.visual_model.generate
    calls: list[int] = []

    def generate(batch: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(batch, **more)

    stopped.visual_model.generate = generate  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(stopped, [InlineTask("t", questions(5))])
    said = " ".join(capsys.readouterr().err.split())
    assert "2 documents are kept" in said
    assert "the same command goes on from there" in said


@pytest.mark.usefixtures("often")
def test_a_full_disk_is_one_sentence_and_keeps_what_came_before(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = journal.files.write_bytes
    calls: list[int] = []

    def write_bytes(path: Any, content: bytes) -> Any:
        calls.append(1)
        if len(calls) >= 3:
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(journal.files, "write_bytes", write_bytes)
    with pytest.raises(VisualHeadsError, match=r"No space left on device.*Make room.*same command"):
        run(model(tiny, tmp_path), [InlineTask("t", questions(5))])
    monkeypatch.setattr(journal.files, "write_bytes", written)
    run(model(tiny, tmp_path), [InlineTask("t", questions(5))])
    assert set(tables(tmp_path)[0].doc_id) == set(range(5))


@pytest.mark.usefixtures("often")
def test_a_run_goes_on_only_with_its_own_data(tiny: Tiny, tmp_path: Path) -> None:
    def boom(doc: dict[str, Any]) -> list[Any]:
        if doc["pictures"] == [30]:
            raise OSError("broken")
        return [picture(doc["pictures"][0] + doc.get("shift", 0))]

    same = [{**d, "question": "How many?"} for d in questions(5)]
    with pytest.raises(VisualHeadsError, match="broken"):
        run(model(tiny, tmp_path), [InlineTask("t", same, doc_to_visual=boom)])
    other = [{**d, "shift": 1} for d in same]
    with pytest.raises(VisualHeadsError, match=r"document 0 of task t has changed since. Remove .*run to begin anew"):
        run(model(tiny, tmp_path), [InlineTask("t", other, doc_to_visual=boom)])


def test_a_shorter_run_leaves_what_a_longer_one_had_measured(tiny: Tiny, tmp_path: Path) -> None:
    """Nothing measured is lost: an interrupted run of ten documents survives a finished run of two."""
    start_of_ten = model(tiny, tmp_path)
    whole = start_of_ten.visual_model.generate
    calls: list[int] = []

    def generate(batch: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(batch, **more)

    start_of_ten.visual_model.generate = generate  # type: ignore[method-assign]
    documents = [{**d, "question": "How many?"} for d in questions(10)]
    with pytest.raises(KeyboardInterrupt):
        run(start_of_ten, [InlineTask("t", documents)])
    run(model(tiny, tmp_path), [InlineTask("t", documents)], limit=2)
    (first,) = tmp_path.glob("*.heads.parquet")
    assert set(pd.read_parquet(first).doc_id) == {0, 1}
    assert len(list(tmp_path.glob("*.run"))) == 1
    run(model(tiny, tmp_path), [InlineTask("t", documents)])
    assert not list(tmp_path.glob("*.run"))
    assert len(list(tmp_path.glob("*.heads.parquet"))) == 2


def test_rows_are_read_once_for_several_choices(tiny: Tiny, tmp_path: Path) -> None:
    scorer = model(tiny, tmp_path)
    whole = scorer.visual_model.score
    queries: list[Any] = []

    def score(encoded: Any, continuation: str, *, query: Any, **more: Any) -> Any:
        queries.append(query)
        return whole(encoded, continuation, query=query, **more)

    scorer.visual_model.score = score  # type: ignore[method-assign]
    run(scorer, [choices_task("c", 2)])
    assert queries == ["first_generated", None, None, None] * 2
    assert set(tables(tmp_path)[0].doc_id) == {0, 1}


@pytest.mark.parametrize(
    ("fits", "sizes"), [(4, [8, 4, 4, 4]), (1, [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1])]
)
def test_a_batch_that_does_not_fit_is_halved(tiny: Tiny, tmp_path: Path, fits: int, sizes: list[int]) -> None:
    """Out of memory in the first batch and whenever a batch is larger than what fits: the tables are those of batch size 1."""
    asked: list[int] = []
    large = model(tiny, tmp_path / "large", batch_size=8)
    whole = large.visual_model.generate

    def generate(batch: Any, **more: Any) -> Any:
        asked.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, **more)

    large.visual_model.generate = generate  # type: ignore[method-assign]
    documents = [{**d, "question": "How many?"} for d in questions(12)]
    found = answers(run(large, [InlineTask("t", documents)]), "t")
    assert asked == sizes
    assert found == answers(run(model(tiny, tmp_path / "one"), [InlineTask("t", documents)]), "t")
    assert_same_tables(tmp_path / "large", tmp_path / "one")


def test_a_document_that_does_not_fit_alone_ends_the_run_by_name(tiny: Tiny, tmp_path: Path) -> None:
    def generate(batch: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    full = model(tiny, tmp_path, batch_size=2)
    full.visual_model.generate = generate  # type: ignore[method-assign]
    with pytest.raises(VisualHeadsError, match=r"document 0 of task t does not. .*smaller dtype"):
        run(full, [InlineTask("t", questions(1))])


def test_rows_are_still_read_when_only_another_request_about_the_document_was_kept(tmp_path: Path) -> None:
    """Killed between the answer to a repeat, which reads no rows, and the first request, which does."""

    def recorder() -> RunRecorder:
        return RunRecorder(tmp_path, "m", "last_prompt", {"layers": 1, "heads": 1})

    document = Document.of(
        {}, task="t", doc_id=0, images=[picture(1)], context="How many?", wanted=True, padding_only=False
    )
    before = recorder()
    before.add(
        document,
        "0.1.repeat",
        {"text": "2"},
        answer={"n_answer_tokens": 1, "answer_token_index": 0},
        heads=None,
        tokens={"n_prompt_tokens": 9, "n_visual_tokens": 4, "n_patch_tokens": 4},
    )
    with pytest.raises(KeyboardInterrupt), before.kept_on_failure():
        raise KeyboardInterrupt
    after = recorder()
    assert after.recall(document, "0.1.repeat") == {"text": "2"}
    assert after.recall(document, "0.0.first") is None
    assert after.wants_rows(document)
    assert not after.wants_rows(document)
