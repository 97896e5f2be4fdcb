"""The table of known models and their published scores."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from lmms_visual_heads.checkpoints.known_models import (
    compared_with_study,
    find_known,
    known_models,
    published_scores,
    score_sources,
    source_document,
)
from lmms_visual_heads.cli import main
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables import read_scores

STUDY = {
    "llava-v1.5-7b": ("LLaVA-1.5", 32, 32, "336", "frozen", "576"),
    "llava-v1.5-13b": ("LLaVA-1.5", 40, 40, "336", "frozen", "576"),
    "llava-v1.6-vicuna-7b": ("LLaVA-1.6", 32, 32, "dynamic", "full", "up to 2880"),
    "llava-v1.6-vicuna-13b": ("LLaVA-1.6", 40, 40, "dynamic", "full", "up to 2880"),
    "llava-v1.6-mistral-7b": ("LLaVA-1.6", 32, 32, "dynamic", "full", "up to 2880"),
    "vip-llava-7b": ("ViP-LLaVA", 32, 32, "336", "frozen", "576"),
    "vip-llava-13b": ("ViP-LLaVA", 40, 40, "336", "frozen", "576"),
    "llava-1.5-phi-3-mini-3.8B": ("LLaVA-1.5", 32, 32, "336", "frozen", "576"),
    "llava-1.5-llama-3-8b": ("LLaVA-1.5", 32, 32, "336", "frozen", "576"),
    "vip-llava-phi-3-mini-3.8B": ("ViP-LLaVA", 32, 32, "336", "frozen", "576"),
    "vip-llava-llama-3-8b": ("ViP-LLaVA", 32, 32, "336", "frozen", "576"),
}


def test_the_table_is_the_studys() -> None:
    found = {
        one.model: (
            one.family,
            one.layers,
            one.heads,
            one.resolution,
            one.training_strategy.split()[0],
            one.visual_tokens,
        )
        for one in known_models()
    }
    assert found == STUDY
    nine = [one for one in known_models() if "statistics" in one.named_in]
    assert len(nine) == 9
    assert sum("table" in one.named_in for one in known_models()) == 9
    for one in known_models():
        assert one.sources
        assert one.original_repository.split("/")[0] in ("liuhaotian", "mucai")
        assert (one.huggingface_repository is None) == (one.twin is not None)
        assert one.study_layers_x_heads == ("24 x 32" if one.twin else one.layers_x_heads)
    assert {one.model: one.key_value_heads for one in known_models() if one.key_value_heads != one.heads} == {
        "llava-v1.6-mistral-7b": 8,
        "llava-1.5-llama-3-8b": 8,
        "vip-llava-llama-3-8b": 8,
    }


def test_names_of_checkpoints() -> None:
    assert find_known("llava-hf/llava-1.5-7b-hf").model == "llava-v1.5-7b"
    assert find_known("downloads/vip-llava-7b/").model == "vip-llava-7b"
    assert find_known("mucai/llava-1.5-phi-3-mini-3.8B").twin == "vip-llava-phi-3-mini-3.8B"
    assert find_known("runs/step-100") is None
    assert compared_with_study("runs/step-100", 3, 4) == {}
    assert compared_with_study("liuhaotian/llava-v1.5-7b", 32, 32) == {"known_model": "llava-v1.5-7b"}
    note = compared_with_study("mucai/vip-llava-llama-3-8b", 32, 32)["heads_note"]
    assert note == "32 x 32 layers x heads by this checkpoint's config; the study says 24 x 32"


def test_one_source_per_benchmark_unless_asked() -> None:
    documents: dict[str, set[str]] = {}
    for row in published_scores():
        documents.setdefault(row["benchmark"], set()).add(source_document(row["source"]))
    assert all(len(one) == 1 for one in documents.values())
    pope = [row for row in published_scores() if row["benchmark"] == "pope"]
    assert len(pope) == 8
    assert {row["scale"] for row in pope} == {100.0}
    mixed = [row for row in published_scores(mix_sources=True) if row["benchmark"] == "pope"]
    assert len(mixed) == 11
    assert {row["model"]: row["score"] for row in pope}.items() <= {row["model"]: row["score"] for row in mixed}.items()
    zoo = published_scores(source="haotian-liu/LLaVA")
    assert {source_document(row["source"]) for row in zoo} == {"haotian-liu/LLaVA@c121f04 docs/MODEL_ZOO.md"}
    assert len(zoo) == score_sources()["haotian-liu/LLaVA@c121f04 docs/MODEL_ZOO.md"]
    renamed = {row["model"] for row in published_scores(names="huggingface")}
    assert {"llava-hf/llava-1.5-7b-hf", "mucai/vip-llava-llama-3-8b"} <= renamed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "nobody"}, "'nobody' names 0"),
        ({"source": "a"}, "must name one of these documents"),
        ({"source": "haotian", "mix_sources": True}, "give one of them"),
        ({"names": "short"}, "--names must be original or huggingface"),
    ],
)
def test_refusals(settings: dict, words: str) -> None:
    with pytest.raises(VisualHeadsError, match=words):
        published_scores(**settings)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["models", *arguments])
        assert ended.value.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    listed = json.loads(run("--format", "json"))
    assert isinstance(listed, list)
    assert [one["model"] for one in listed][:2] == ["llava-v1.5-7b", "llava-v1.5-13b"]
    assert {one["model"] for one in listed} == set(STUDY)
    assert len(list(csv.DictReader(io.StringIO(run("--format", "csv"))))) == len(STUDY)
    table = run()
    assert "llava" in table
    assert "study" in table.lower()
    out = tmp_path / "published.csv"
    assert "published scores of" in run("--scores", str(out))
    frame = read_scores(out)
    assert len(frame) == len(published_scores())
    assert frame["n_items"].isna().all()
    run("--scores", str(out), "--mix-sources")
    assert len(read_scores(out)) > len(frame)
    with pytest.raises(SystemExit):
        main(["models", "--format", "xml"])
    with pytest.raises(SystemExit):
        main(["models", "--mix-sources"])
    assert "Documents with scores" in capsys.readouterr().err
