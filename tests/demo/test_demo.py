"""`visual-heads demo` as typed, twice (four starts of lmms-eval): the same numbers, and everything that it promises is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lmms_visual_heads.schema import PREDICTION_COLUMNS

BENCHMARKS = {"scenes_existence", "scenes_color", "scenes_position", "scenes_color_count", "scenes_digit"}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Two runs of the demo: their folders and what they printed."""
    made = []
    for name in ("one", "two"):
        out = tmp_path_factory.mktemp(name) / "demo"
        command = [str(Path(sys.executable).parent / "visual-heads"), "demo", "--out", str(out), "--documents", "40"]
        environment = {
            **os.environ,
            "COLUMNS": "160",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VHEAD_DATA": "elsewhere",
        }
        done = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        made.append((out, done.stdout))
    return made


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
