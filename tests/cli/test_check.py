"""`visual-heads check`: its table, its JSON, its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lmms_visual_heads.capture import selfcheck
from lmms_visual_heads.capture.selfcheck import Finding
from lmms_visual_heads.checkpoints import llava
from tests.builders.any_tiny import any_checkpoint
from tests.builders.original import original_checkpoint
from tests.checkpoints.test_original_adapters import adapter


@pytest.fixture
def run():
    from lmms_visual_heads.cli.check import check

    app = typer.Typer()
    app.command()(check)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_good_checkpoint(run, tiny) -> None:
    result = run(tiny("llava-llama"), "--device", "cpu", "--repeats", "1")
    assert result.exit_code == 0
    for words in ("every row sums to 1", "holds", "3 x 4", "times capture off", "largest image attention"):
        assert words in result.output
    assert "FAILS" not in result.output


def test_json(run, tiny) -> None:
    result = run(tiny("llavanext-llama"), "--device", "cpu", "--repeats", "1", "--format", "json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert [finding["holds"] for finding in document["findings"]] == [True] * 4
    assert document["model"]["layers"] == document["facts"]["layers"] == 3


def test_a_failed_proof_is_exit_code_one(run, tiny, monkeypatch) -> None:
    monkeypatch.setattr(selfcheck, "_sums", lambda rows: Finding("every row sums to 1", False, "off by 0.5"))
    result = run(tiny("llava-llama"), "--device", "cpu", "--repeats", "1")
    assert result.exit_code == 1
    assert "FAILS" in result.output


def test_the_ways_of_loading_and_the_notes(run, tmp_path, tiny, monkeypatch) -> None:
    original_checkpoint(tmp_path / "runs" / "original")
    options = ("--device", "cpu", "--repeats", "1")
    result = run(tmp_path / "runs" / "original", *options, "--conversation", "llava_v0", "--format", "json")
    assert json.loads(result.stdout)["model"]["conversation"] == "llava_v0"
    step = Path(shutil.copytree(tiny("llava-llama"), tmp_path / "checkpoint-100"))
    for path in step.glob("*processor*"):
        path.unlink()
    adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": (64, 64)})
    base = ("--model-base", tiny("llava-llama"), "--peft", tmp_path / "adapter")
    result = run(step, *options, *base, "--image-aspect", "pad", "--format", "json")
    model = json.loads(result.stdout)["model"]
    assert (model["image_aspect"], model["peft"], model["peft_layers"]) == ("pad", str(tmp_path / "adapter"), 1)
    result = run(tiny("llava-llama"), "--quantization", "3bit")
    assert "quantization must be 4bit or 8bit" in str(result.exception)
    monkeypatch.setenv("COLUMNS", "300")
    found = {"heads_note": "32 x 32 here", "quantization": "8bit"}
    monkeypatch.setattr(llava, "compared_with_study", lambda *_: found)
    result = run(tiny("llava-llama"), *options)
    for words in ("32 x 32 here", "8bit", "images that are not square", "image_aspect=pad"):
        assert words in result.output


def test_settings_that_a_family_does_not_take_are_refused(run, tmp_path) -> None:
    result = run(any_checkpoint("qwen2-vl", tmp_path / "any"), "--image-aspect", "pad")
    assert type(result.exception).__name__ == "VisualHeadsError"
    assert "image_aspect= came" in str(result.exception)


def test_bad_input_is_one_sentence(run, tmp_path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "VisualHeadsError"
    result = run(tmp_path, "--format", "xml")
    assert result.exit_code == 2
    assert "xml" in result.output
    assert "json" in result.output
