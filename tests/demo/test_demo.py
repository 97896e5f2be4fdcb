"""`visual-heads demo` as typed and once more in this process: the same numbers, and everything that it promises is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from lmms_visual_heads.cli import app
from lmms_visual_heads.harness import evaluation
from lmms_visual_heads.harness.evaluation import CommandRun
from lmms_visual_heads.schema import PREDICTION_COLUMNS

BENCHMARKS = {"scenes_existence", "scenes_color", "scenes_position", "scenes_color_count", "scenes_digit"}


DOCUMENTS = "40"


def as_typed(out: Path) -> str:
    """The command in a process of its own, which starts lmms-eval three times; what it printed."""
    command = [str(Path(sys.executable).parent / "visual-heads"), "demo", "--out", str(out), "--documents", DOCUMENTS]
    environment = os.environ | {"COLUMNS": "160", "OMP_NUM_THREADS": "1", "VHEAD_DATA": "elsewhere"}
    done = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def in_this_process(out: Path, patched: pytest.MonkeyPatch) -> str:
    """The same with `evaluate` in the place of the command lmms-eval, whose three starts take a minute."""

    def run(pretrained: Path, tasks: list[str], *, output: Path, heads: Path, **more: Any) -> CommandRun:
        results = evaluation.evaluate(pretrained, tasks, heads=str(heads), **more)
        path = output / f"{len(list(output.iterdir()))}_results.json"
        path.write_text(json.dumps(results))
        return CommandRun("in this process", path)

    patched.setattr(evaluation, "run_command", run)
    patched.setenv("COLUMNS", "160")
    patched.delenv("VHEAD_DATA", raising=False)
    done = CliRunner().invoke(app, ["demo", "--out", str(out), "--documents", DOCUMENTS], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Two runs of the demo: their folders and what they printed."""
    typed, again = (tmp_path_factory.mktemp(name) / "demo" for name in ("one", "two"))
    printed = as_typed(typed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        printed_again = in_this_process(again, patched)
    torch.set_num_threads(threads)
    return [(typed, printed), (again, printed_again)]


def test_it_leaves_what_it_promises(demos: list[tuple[Path, str]]) -> None:
    for out, printed in demos:
        predictions = pd.read_csv(out / "predictions.csv", keep_default_na=False)
        assert tuple(predictions.columns) == PREDICTION_COLUMNS
        assert set(predictions.benchmark) == BENCHMARKS
        assert ((predictions.low <= predictions.predicted) & (predictions.predicted <= predictions.high)).all()
        for kind, number in (("heads", 1), ("answers", 2), ("causal", 1)):
            assert len(list((out / "heads").glob(f"*.{kind}.parquet"))) == number
        assert set(pd.read_csv(out / "scores.csv").n_items) == {40}
        page = (out / "report" / "index.html").read_text()
        assert "small models trained on drawn scenes" in page
        for words in ("predicted", "baseline", "actual", "inside the interval on"):
            assert words in printed


def test_it_says_what_did_the_work(demos: list[tuple[Path, str]]) -> None:
    """Answers before the heads' cuts before the heads' attention, and the report's error is far below the baseline's."""
    out, printed = demos[0]
    methods = pd.read_csv(out / "report" / "data" / "methods.csv").set_index("method")
    assert methods.error["own_answers_free"] < methods.error["own_causal"] < methods.error["probe_heads"]
    errors = pd.read_csv(out / "report" / "data" / "errors.csv")
    assert errors.error.mean() < 5 < 20 < errors.baseline_error.mean()
    predictions = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert predictions.method.str.startswith("own_").all()
    for method in predictions.method:
        assert f"{method}: predicted from" in printed
    page = (out / "report" / "index.html").read_text()
    assert "What did the work" in page
    assert "a model answers 64 prompts of a benchmark, labels unused" in page
    assert "--limit 64" in page


def test_the_numbers_are_the_same_twice(demos: list[tuple[Path, str]]) -> None:
    (one, _), (two, _) = demos
    assert (one / "predictions.csv").read_bytes() == (two / "predictions.csv").read_bytes()
    scores = [pd.read_csv(out / "scores.csv").drop(columns="source") for out in (one, two)]
    pd.testing.assert_frame_equal(*scores)
    tables = [pd.read_parquet(next((out / "heads").glob("*.heads.parquet"))) for out in (one, two)]
    pd.testing.assert_frame_equal(*tables)
