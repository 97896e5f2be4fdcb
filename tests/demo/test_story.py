"""The demo's steps that need no model: who takes part, folders, the comparison."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lmms_visual_heads.demo import story
from lmms_visual_heads.demo.manifest import shipped_checkpoints
from lmms_visual_heads.errors import VisualHeadsError


def test_the_probed_checkpoints_own_training_is_left_out() -> None:
    lineages = {entry["name"]: entry["lineage"] for entry in shipped_checkpoints()}
    actors = story.cast("w80-d3-t16-s4000")
    assert actors.probed["name"] in actors.relatives
    assert {lineages[name] for name in actors.relatives} == {actors.probed["lineage"]}
    assert actors.probed["lineage"] not in {lineages[name] for name in actors.others}
    assert sorted(actors.relatives + actors.others) == sorted(lineages)
    with pytest.raises(VisualHeadsError, match=r"--checkpoint must be one of .*w96-d2-t16-s4000.*; 'w1' came"):
        story.cast("w1")


def test_folders_are_made_and_emptied_of_older_tables(tmp_path: Path) -> None:
    story.make_folders(tmp_path)
    old, other = tmp_path / story.HEADS / "m.heads.parquet", tmp_path / story.LOGS / "lmms-eval.log"
    old.touch()
    other.touch()
    story.make_folders(tmp_path)
    assert not old.exists()
    assert other.exists()
    with pytest.raises(VisualHeadsError, match="--out must name a folder that can be written"):
        story.make_folders(other)


def test_the_comparison_counts_what_it_says() -> None:
    predictions = pd.DataFrame(
        {
            "benchmark": ["a", "b", "c"],
            "predicted": [50.0, 60.0, 70.0],
            "low": [40.0, 55.0, 60.0],
            "high": [60.0, 65.0, 80.0],
            "baseline": [30.0, 80.0, 72.0],
        }
    )
    scores = pd.DataFrame({"benchmark": ["c", "b", "a"], "score": [80.0, 0.7, 0.45], "scale": [100.0, 1.0, 1.0]})
    table = story.compared(predictions, scores).set_index("benchmark")
    assert table.actual.to_dict() == pytest.approx({"a": 45, "b": 70, "c": 80})
    assert table.inside.to_dict() == {"a": True, "b": False, "c": True}
    assert table.nearer.to_dict() == {"a": True, "b": False, "c": False}, "equally far is not nearer"
