"""`visual-heads sweep`: many checkpoints, one run each; judged by the files that a run leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmms_visual_heads.cli import app
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import sweep as sweeping
from lmms_visual_heads.harness.sweep import Sweep, named, run, share, table

RESULTS = {
    "results": {"pope": {"alias": "pope", "pope_accuracy,none": 0.8125}},
    "configs": {"pope": {"task": "pope"}},
    "n-samples": {"pope": {"original": 16, "effective": 16}},
    "config": {"model": "visual_heads_llava", "model_args": ""},
}


class Runner:
    """Stands in for lmms-eval: writes what a run writes, except for the checkpoints that fail."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = set(failing)
        self.started: list[str] = []

    def __call__(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> int:
        model_args = dict(pair.split("=") for pair in words[words.index("--model_args") + 1].split(","))
        name = model_args["model_name"]
        self.started.append(name)
        if Path(model_args["pretrained"]).name in self.failing:
            return 0  # as lmms-eval does
        output, heads = Path(words[words.index("--output_path") + 1]), Path(model_args["heads"])
        heads.mkdir(parents=True, exist_ok=True)
        for ending in ("heads", "answers"):
            (heads / f"{time.time_ns()}.{ending}.parquet").write_bytes(b"x")
        document = json.loads(json.dumps(RESULTS))
        document["config"]["model_args"] = f"model_name={name}"
        (output / f"{time.time_ns()}_results.json").write_text(json.dumps(document))
        return 0


@pytest.fixture
def asked(tmp_path: Path) -> Sweep:
    return Sweep("vhead,pope", tmp_path / "heads", tmp_path / "logs", batch_size="4")


CHECKPOINTS = named(["runs/a/step-1", "runs/a/step-2", "runs/b/step-1"])


def states(steps: Any) -> list[tuple[str, str]]:
    return [(name, state) for name, state, _ in steps if state != "running"]


def test_what_is_done_is_passed_over_and_a_failure_stops_nothing(asked: Sweep) -> None:
    runner = Runner(failing=["step-2"])
    assert [state for _, state in states(run(asked, CHECKPOINTS, runner))] == ["done", "failed", "done"]
    again = Runner()
    assert [state for _, state in states(run(asked, CHECKPOINTS, again))] == ["passed over", "done", "passed over"]
    assert again.started == [list(CHECKPOINTS)[1]]
    frame = table(asked, CHECKPOINTS)
    assert list(frame["state"]) == ["done"] * 3
    assert list(frame["pope"]) == [0.8125] * 3
    assert all(Path(path).is_file() for path in frame["heads"])


def test_other_tasks_lost_files_and_broken_notes_are_run_again(asked: Sweep) -> None:
    first = dict(list(CHECKPOINTS.items())[:1])
    (name,) = first
    states(run(asked, first, Runner()))
    other = Sweep("vhead", asked.heads, asked.output)
    assert states(run(other, first, Runner())) == [(name, "done")]
    assert states(run(asked, first, Runner())) == [(name, "done")]  # the note of the other tasks stood there
    Path(str(asked.done(name)["results"])).unlink()  # type: ignore[index]
    assert asked.done(name) is None
    states(run(asked, first, Runner()))
    (asked.folder(name) / sweeping.DONE_FILE).write_text("{")
    assert asked.done(name) is None


def test_a_run_that_leaves_results_without_tables_has_failed(asked: Sweep) -> None:
    def cached(words: Sequence[str], log: Path, environment: dict[str, str]) -> int:
        (Path(words[words.index("--output_path") + 1]) / "2026_results.json").write_text(json.dumps(RESULTS))
        return 0

    steps = [step for step in run(asked, dict([*CHECKPOINTS.items()][:1]), cached) if step[1] == "failed"]
    assert len(steps) == 1
    assert "no tables" in steps[0][2]
    assert "lmms-eval.log" in steps[0][2]


def test_the_command_is_lmms_evals(asked: Sweep) -> None:
    words = Sweep("vhead", Path("h"), Path("l"), "auto", "visual_heads_hf", "dtype=float32", 8).words("some/ckpt", "n")
    text = " ".join(words)
    assert "--model visual_heads_hf" in text
    assert "pretrained=some/ckpt,model_name=n,heads=h/n,dtype=float32" in text
    assert "--limit 8" in text
    assert "--log_samples" in text


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_hold_every_checkpoint_once(n: int) -> None:
    names = [f"m{i}" for i in range(5)]
    assert share(names, None) == names
    parts = [share(names, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(name for part in parts for name in part) == names


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0", "-1/3"])
def test_a_bad_shard_is_one_sentence(shard: str) -> None:
    with pytest.raises(VisualHeadsError, match=r"--shard must be i/n with i from 1 to n"):
        share(["a"], shard)


def test_two_checkpoints_of_one_name_are_refused() -> None:
    with pytest.raises(VisualHeadsError, match="needs a name of its own"):
        named(["x/a/step-1", "y/a/step-1"])


def test_the_verb_ends_in_one_table_and_names_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweeping.run
    monkeypatch.setattr(sweeping, "run", lambda asked, names: whole(asked, names, Runner(failing=["bad"])))
    words = [
        "sweep",
        "r/good",
        "r/bad",
        "--tasks",
        "vhead,pope",
        "--out",
        str(tmp_path / "l"),
        "--heads",
        str(tmp_path / "h"),
    ]
    result = CliRunner().invoke(app, [*words, "--format", "json"])
    assert isinstance(result.exception, VisualHeadsError)
    assert "1 of 2 checkpoints failed" in str(result.exception)
    assert (tmp_path / "l" / "sweep.csv").is_file()
    shown = json.loads(result.stdout)
    assert [(row["state"], row["pope"]) for row in shown] == [("done", 0.8125), ("missing", None)]
