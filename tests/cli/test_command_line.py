"""The commands as typed. A start of lmms-eval costs some twenty seconds: this file has three, the test of the demo four more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

BIN = Path(sys.executable).parent


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(BIN / words[0]), *words[1:]], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_first_command_of_the_readme(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """As typed, from an empty folder; then once more out of the response cache, which must not look like a measurement."""
    words = ("lmms-eval", "--model", "visual_heads_llava", "--model_args", f"pretrained={tiny('llava-llama')}")
    words += ("--tasks", "vhead_super", "--limit", "5", "--output_path", "logs", "--use_cache", "cache")
    first = command(*words, cwd=tmp_path)
    written = list((tmp_path / "heads").glob("*.heads.parquet"))
    assert len(written) == 1, first.stderr[-4000:]  # lmms-eval exits with 0 when a run fails
    heads = written[0]
    assert str(heads.relative_to(tmp_path)) in first.stderr
    assert set(pd.read_parquet(heads).doc_id) == set(range(5))
    assert len(list((tmp_path / "logs").rglob("*_results.json"))) == 1

    second = command(*words, cwd=tmp_path)
    assert second.returncode == 1
    assert "Traceback" not in second.stderr
    assert "5 of 5 were answered from a response cache" in second.stderr
    assert "Run again without --use_cache" in second.stderr
    assert list((tmp_path / "heads").glob("*.heads.parquet")) == [heads]
    assert len(list((tmp_path / "logs").rglob("*_results.json"))) == 1


def test_a_mistake_ends_in_one_sentence(tmp_path: Path) -> None:
    done = command(
        "lmms-eval", "--model", "visual_heads_llava", "--model_args", "pretrained=nowhere,qery=last_prompt",
        "--tasks", "vhead_super", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "does not know the argument 'qery'" in done.stderr
    assert "Did you mean 'query'?" in done.stderr


def test_help_is_quick_and_names_every_verb(tmp_path: Path) -> None:
    done = command("visual-heads", "--help", cwd=tmp_path)
    for verb in ("check", "scores", "fit", "predict", "report", "demo", "plan", "sweep"):
        assert verb in done.stdout


def test_a_mistake_of_visual_heads_is_one_sentence(tmp_path: Path) -> None:
    done = command("visual-heads", "fit", "--heads", "a", "b", "--scores", "c.csv", "--out", "p", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("visual-heads: ")
