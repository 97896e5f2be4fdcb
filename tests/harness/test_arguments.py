"""The arguments of `visual_heads_llava`: what is taken, and the words of every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.arguments import Arguments, check, parse
from lmms_visual_heads.schema import PROBE_TASKS


@pytest.mark.parametrize("revision", ["0123456", "12e4567", "1234567", "true", "v1.0"])
def test_values_that_look_like_numbers_stay_strings(revision: str) -> None:
    arguments = check(parse(f"pretrained=some/model,revision={revision}"))
    assert arguments.revision == revision


def test_what_lmms_eval_adds_is_taken() -> None:
    arguments = check({"pretrained": "x", "batch_size": "8", "max_batch_size": None, "device": "cpu"})
    assert (arguments.batch_size, arguments.device) == (8, "cpu")


def test_an_automatic_batch_size_begins_large() -> None:
    assert check({"pretrained": "x", "batch_size": "auto"}).batch_size == 64


def test_the_probe_is_captured_by_default_and_nothing_else() -> None:
    arguments = Arguments(pretrained="x")
    assert all(arguments.captures(task) for task in PROBE_TASKS)
    assert not arguments.captures("pope")
    assert not arguments.captures("vhead")


def test_capture_tasks_takes_several_and_wildcards() -> None:
    arguments = check(parse("pretrained=x,capture_tasks=pope+vhead_*"))
    assert arguments.captures("pope")
    assert arguments.captures("vhead_super")
    assert not arguments.captures("mme")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a checkpoint: --model_args pretrained=FOLDER_OR_HUB_ID"),
        ({"pretrained": "x", "qery": "last_prompt"}, "does not know the argument 'qery'.*Did you mean 'query'"),
        ({"pretrained": "x", "zzz": "1"}, "does not know the argument 'zzz'; it takes .*pretrained"),
        ({"pretrained": "x", "query": "last"}, "query must be one of first_generated, last_prompt; 'last' came"),
        ({"pretrained": "x", "batch_size": "many"}, "whole number or auto; 'many' came"),
        ({"pretrained": "x", "batch_size": 0}, "must be at least 1"),
    ],
)
def test_refusals_name_what_is_required_and_what_came(given: dict, words: str) -> None:
    with pytest.raises(VisualHeadsError, match=words):
        check(given)


def test_a_value_without_a_name_is_refused() -> None:
    with pytest.raises(VisualHeadsError, match=r"'pope' has no '='.*joined by '\+'"):
        parse("pretrained=x,capture_tasks=vhead_super,pope")


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(VisualHeadsError, match="heads= must name a folder that can be written"):
        Arguments(pretrained="x", heads=str(blocked / "below")).check_output_folder()
    assert Arguments(pretrained="x", heads=str(tmp_path / "new" / "folder")).check_output_folder().is_dir()
    assert not list((tmp_path / "new" / "folder").iterdir())
