"""Measuring shipped checkpoints through lmms-eval: what is kept of each, and what a second call does again."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from lab.measure.shipped import measure
from lmms_visual_heads.demo.manifest import shipped_checkpoints
from lmms_visual_heads.features.measurements import read_measurements


def test_probe_benchmarks_and_own_prompts_are_kept_and_not_measured_twice(tmp_path: Path) -> None:
    entry = min(shipped_checkpoints(), key=lambda entry: entry["parameters"])
    name = entry["name"]
    (results,) = measure({name: entry["path"]}, tmp_path, limit=3)
    assert set(json.loads(results.read_text())["results"]) >= {"vhead_super", "scenes_digit"}
    assert len(pd.read_parquet(tmp_path / "heads" / f"{name}.heads.parquet").doc_id.unique()) == 3
    own = read_measurements([tmp_path / "own"])
    assert own.answers.n_prompts.tolist() == [3] * 5
    assert own.answers[["swap_kl", "blank_kl"]].notna().all(axis=None)
    assert len(own.causal) == 5 * (1 + entry["layers"] + entry["layers"] * entry["heads"])
    before = results.stat().st_mtime_ns
    table = tmp_path / "own" / f"{name}.causal.parquet"
    table.unlink()
    measure({name: entry["path"]}, tmp_path, limit=3)
    assert table.exists()
    assert results.stat().st_mtime_ns == before
    again = read_measurements([tmp_path / "own"])
    pd.testing.assert_frame_equal(again.causal, own.causal)
