"""The study's command says what it needs; head statistics are reliable where the world says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.__main__ import VERBS, main
from lab.study.head_reliability import depths, feature_reliability, head_maps, split_half, stability
from tests.builders.zoo import make_zoo

SMALL = {"benchmarks": 3, "items": 64}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study") == 2
    assert run("study", str(tmp_path), "--out", str(tmp_path / "out")) == 1
    assert "lacks checkpoints.csv" in capsys.readouterr().err
    twice = [str(tmp_path / "a" / "x"), str(tmp_path / "b" / "x")]
    assert run("study", str(tmp_path), "--out", "o", "--held-out", twice[0], "--held-out", twice[1]) == 1
    assert "two have the same name" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_ends_in_two_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert shown[shown.rindex("Examples:") :].count(f"python -m lab {verb}") >= 2


def test_which_heads_on_a_world_whose_truth_is_known() -> None:
    zoo = make_zoo(lineages=5, layers=3, heads=4, **SMALL)
    maps = head_maps(zoo)
    reliability = split_half(maps).set_index(["statistic", "prompts"])["reliability"]
    assert reliability["kl", "own"] > 0.9
    assert reliability["image_attention", "own"] > reliability["content_dependence", "own"] + 0.3
    stable = stability(maps, zoo.checkpoints).set_index(["statistic", "between"])["correlation"]
    assert stable["image_attention", "last two checkpoints of a training"] > 0.8
    assert abs(stable["kl", "benchmarks"]) < 0.3
    where = depths(maps, zoo.checkpoints)
    thirds = where[["first third", "middle third", "last third"]]
    assert thirds.sum(axis=1).round(6).eq(1).all()
    features = feature_reliability(zoo).set_index(["block", "feature"])["reliability"]
    assert features["own_heads", "attention_top"] > 0.8
