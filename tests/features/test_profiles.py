"""Head profiles and features: against slow twins, and against copies of every head and layer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import (
    FEATURE_NAMES,
    FEATURES,
    HeadProfiles,
    common_tasks,
    feature_row,
    feature_table,
    head_profile,
    read_profiles,
    write_profiles,
)
from lmms_visual_heads.features.declared import Grid
from lmms_visual_heads.schema import PROFILE_COLUMNS, PROFILE_STATISTICS
from lmms_visual_heads.tables import HeadTable, HeadTableWriter
from tests.builders import synthetic


def slow_profile(frame: pd.DataFrame) -> pd.DataFrame:
    """The definitions of DESIGN.md, document by document."""
    rows = []
    for (task, layer, head), part in frame.groupby(["task", "layer", "head"]):
        row = {"task": task, "layer": layer, "head": head}
        for name in PROFILE_STATISTICS:
            total = weight = 0.0
            for _, document in part.iterrows():
                w = document["image_attention"] if name in ("concentration", "focus") else 1.0
                if not np.isnan(document[name]) and not np.isnan(w):
                    total, weight = total + w * document[name], weight + w
            row[name] = total / weight if weight > 0 else np.nan
        found = expected = 0.0
        for _, document in part.iterrows():
            terms = document[["region_attention", "image_attention", "newline_attention", "region_share"]].astype(float)
            if not terms.isna().any():
                found += terms.iloc[0]
                expected += (terms.iloc[1] - terms.iloc[2]) * terms.iloc[3]
        row["region_lift"] = np.log(found / expected) if found > 0 and expected > 0 else np.nan
        row["n_documents"] = int(part["image_attention"].notna().sum())
        rows.append(row)
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame, name: str = "m") -> HeadTable:
    document = synthetic.metadata(name, int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1)
    return HeadTable.from_frame(frame, document)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), missing=st.sampled_from([0.0, 0.2, 0.9]))
def test_profile_equals_its_slow_twin(seed: int, missing: float) -> None:
    random = np.random.default_rng(seed)
    frame = synthetic.head_rows(random, layers=2, heads=2, documents=3, tasks=("vhead_obj", "vhead_super"))
    for name in (*PROFILE_STATISTICS, "region_share"):
        frame.loc[random.random(len(frame)) < missing, name] = np.nan
    found = head_profile(table(frame)).sort_values(["task", "layer", "head"], ignore_index=True)
    expected = slow_profile(frame.astype({n: "float32" for n in PROFILE_STATISTICS}))
    assert list(found.columns) == [c.name for c in PROFILE_COLUMNS]
    for name in (*PROFILE_STATISTICS, "region_lift", "n_documents"):
        np.testing.assert_allclose(
            found[name].to_numpy(dtype=float), expected[name].to_numpy(dtype=float), rtol=1e-5, atol=1e-6
        )


def test_focus_of_a_head_that_hardly_looks_counts_little() -> None:
    frame = synthetic.head_rows(np.random.default_rng(0), layers=1, heads=1, documents=2, tasks=("vhead_obj",))
    frame["image_attention"], frame["focus"] = [0.9, 0.1], [1.0, 0.0]
    assert head_profile(table(frame))["focus"].iloc[0] == pytest.approx(0.9)


def test_a_table_in_pieces_gives_the_same_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = synthetic.head_rows(np.random.default_rng(1))
    with HeadTableWriter(tmp_path / "m.heads.parquet", synthetic.metadata("m")) as writer:
        writer.append(frame)
    monkeypatch.setattr("lmms_visual_heads.tables.parquet_reading._ROWS_PER_BATCH", 7)
    pieces = read_profiles(tmp_path).frame
    pd.testing.assert_frame_equal(pieces, head_profile(table(frame)), check_exact=False, rtol=1e-6)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with HeadTableWriter(tmp_path / "m.heads.parquet", synthetic.metadata("m")):
        pass
    with pytest.raises(VisualHeadsError, match=r"A head table with rows is required; .*m\.heads\.parquet has none"):
        read_profiles(tmp_path)


def test_profiles_round_trip_and_join(tmp_path: Path) -> None:
    made = synthetic.world(3, 1)
    profiles = HeadProfiles.from_tables(made.tables)
    write_profiles(profiles.only(profiles.models[:2]), tmp_path / "two.profiles.parquet")
    frame = synthetic.head_rows(np.random.default_rng(1))
    with HeadTableWriter(tmp_path / "own.heads.parquet", synthetic.metadata("own")) as writer:
        writer.append(frame)
    both = read_profiles(tmp_path)
    assert both.models == ["own", *profiles.models[:2]]
    pd.testing.assert_frame_equal(
        both.only(profiles.models[:2]).frame, profiles.only(profiles.models[:2]).frame, check_dtype=False
    )
    with pytest.raises(VisualHeadsError, match=f"{profiles.models[0]}, {profiles.models[1]} came twice"):
        HeadProfiles.join([profiles, read_profiles(tmp_path / "two.profiles.parquet")])
    with pytest.raises(VisualHeadsError, match=r"ends in \.profiles\.parquet"):
        write_profiles(profiles, tmp_path / "two.parquet")
    cut = (tmp_path / "two.profiles.parquet").read_bytes()[:200]
    (tmp_path / "cut.profiles.parquet").write_bytes(cut)
    with pytest.raises(VisualHeadsError, match=r"cut\.profiles\.parquet is truncated or not Parquet"):
        read_profiles(tmp_path / "cut.profiles.parquet")


def test_infinite_statistics_and_twice_the_same_model_are_refused() -> None:
    made = synthetic.world(2, 1)
    profiles = HeadProfiles.from_tables(made.tables)
    broken = profiles.frame.copy()
    broken.loc[3, "focus"] = np.inf
    with pytest.raises(VisualHeadsError, match="focus of 'runs/lineage0-step0' is infinite"):
        HeadProfiles(broken, profiles.metadata_by_model)
    with pytest.raises(VisualHeadsError, match="came twice"):
        HeadProfiles.from_tables([made.tables[0], made.tables[0]])
    with pytest.raises(VisualHeadsError, match="has two of layer"):
        HeadProfiles(pd.concat([profiles.frame, profiles.frame]), profiles.metadata_by_model)
    with pytest.raises(VisualHeadsError, match="came without"):
        HeadProfiles(profiles.frame, {})


def grid(random: np.random.Generator, layers: int, heads: int) -> Grid:
    return Grid(*(random.uniform(0.05, 0.95, (layers, heads)) for _ in range(4)))


def test_the_list_is_short_and_every_feature_explains_itself() -> None:
    assert 8 <= len(FEATURES) <= 14
    assert len(set(FEATURE_NAMES)) == len(FEATURES)
    for feature in FEATURES:
        assert feature.formula
        assert feature.reason
        assert np.isfinite(feature.compute(grid(np.random.default_rng(0), 4, 8)))


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
def test_features_do_not_depend_on_the_models_size(feature: object) -> None:
    """Copying every head changes nothing; copying every layer next to itself nothing but the rounding of depth."""
    random = np.random.default_rng(3)
    for layers, heads in ((4, 8), (8, 16), (32, 32)):
        one = grid(random, layers, heads)
        arrays = (one.image_attention, one.focus, one.region_lift, one.sink_attention)
        wide = Grid(*(np.repeat(array, 2, axis=1) for array in arrays))
        deep = Grid(*(np.repeat(array, 2, axis=0) for array in arrays))
        value = feature.compute(one)  # type: ignore[attr-defined]
        assert feature.compute(wide) == pytest.approx(value, rel=0.03)  # type: ignore[attr-defined]
        assert feature.compute(deep) == pytest.approx(value, rel=0.03)  # type: ignore[attr-defined]


def test_by_hand() -> None:
    w = np.array([[0.2, 0.4], [0.6, 0.8]])
    row = {f.name: f.compute(Grid(w, np.ones((2, 2)), np.full((2, 2), 0.5), 1 - w)) for f in FEATURES}
    assert row["attention_mean"] == pytest.approx(0.5)
    assert row["attention_top"] == pytest.approx(0.8)
    assert row["attention_depth"] == pytest.approx(1.4 / 2.0)
    assert row["focus_mean"] == pytest.approx(1.0)
    assert row["focused_attention_top"] == pytest.approx(0.8)
    assert row["region_lift_mean"] == pytest.approx(0.5)
    assert row["sink_attention_mean"] == pytest.approx(0.5)
    share = np.array([0.1, 0.2, 0.3, 0.4])
    assert row["attention_evenness"] == pytest.approx(np.exp(-(share * np.log(share)).sum()) / 4)


def test_missing_stays_missing() -> None:
    nothing = np.full((2, 2), np.nan)
    row = {f.name: f.compute(Grid(np.full((2, 2), 0.5), nothing, nothing, nothing)) for f in FEATURES}
    assert row["attention_mean"] == 0.5
    for name in ("focus_mean", "focus_top", "focused_attention_top", "region_lift_mean", "sink_attention_mean"):
        assert np.isnan(row[name])
    half = np.array([[np.nan, 1.0], [np.nan, 3.0]])
    assert {f.name: f.compute(Grid(np.full((2, 2), 0.5), half, half, half)) for f in FEATURES}["focus_mean"] == 2.0


def test_tasks_count_the_same_and_only_common_ones_are_used() -> None:
    made = synthetic.world(2, 1)
    profiles = HeadProfiles.from_tables(made.tables)
    assert common_tasks(profiles) == synthetic.TASKS
    whole = feature_table(profiles, synthetic.TASKS)
    single = [feature_table(profiles, [task]) for task in synthetic.TASKS]
    np.testing.assert_allclose(whole.to_numpy(), np.mean([t.to_numpy() for t in single], axis=0))
    less = profiles.frame[~((profiles.frame["model"] == profiles.models[0]) & (profiles.frame["task"] == "vhead_obj"))]
    fewer = HeadProfiles(less, profiles.metadata_by_model)
    assert common_tasks(fewer) == ("vhead_general", "vhead_super")
    with pytest.raises(VisualHeadsError, match=r"has none on vhead_obj\. Run lmms-eval with --tasks vhead_obj for it"):
        feature_table(fewer, synthetic.TASKS)
    with pytest.raises(VisualHeadsError, match="at least one common task out of pope"):
        common_tasks(profiles, ["pope"])
    with pytest.raises(VisualHeadsError, match="profile of one model; 2 came"):
        feature_row(profiles.frame)


def test_the_right_side_never_imports_torch() -> None:
    code = (
        "import sys, lmms_visual_heads.tables, lmms_visual_heads.features, lmms_visual_heads.prediction, "
        "lmms_visual_heads.prediction.serialization; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
