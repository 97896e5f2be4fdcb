"""`visual-heads check`: its table, its JSON, its exit codes."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from lmms_visual_heads.capture import selfcheck
from lmms_visual_heads.capture.selfcheck import Finding


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


def test_bad_input_is_one_sentence(run, tmp_path) -> None:
    for arguments in ([tmp_path], [tmp_path, "--format", "xml"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert type(result.exception).__name__ == "VisualHeadsError"
