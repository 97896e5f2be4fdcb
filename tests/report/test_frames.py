"""Frames about heads: every number against a slow twin, missing stays missing, what was run is told as it was recorded."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.profiles import HeadProfiles
from lmms_visual_heads.report import frames
from lmms_visual_heads.report.inputs import PLAIN_TASKS, VISUAL_TASKS, report_models
from lmms_visual_heads.tables import HeadTable
from tests.builders import synthetic
from tests.builders.report import profile


def head_table(name: str, seed: int, missing: bool = False) -> HeadTable:
    rows = synthetic.head_rows(np.random.default_rng(seed), documents=5)
    if missing:
        gone = (rows["layer"] == 0) & (rows["head"] == 1) & (rows["doc_id"] % 2 == 0)
        rows.loc[gone, ["concentration", "focus", "visual_head_score"]] = np.nan
        everything = (rows["layer"] == 2) & (rows["head"] == 3)
        rows.loc[everything, ["image_attention", "concentration", "focus", "visual_head_score", "region_attention"]] = (
            np.nan
        )
    return HeadTable.from_frame(rows, synthetic.metadata(name))


def slow_head(rows: pd.DataFrame) -> dict[str, float]:
    """One head's numbers over its documents, one document after the other."""
    sums = dict.fromkeys(("n", "w", "cn", "cd", "fn", "fd", "sn", "s", "r", "e"), 0.0)
    for one in rows.to_dict("records"):
        w, c, f, s = (one[k] for k in ("image_attention", "concentration", "focus", "visual_head_score"))
        if not math.isnan(w):
            sums["n"] += 1
            sums["w"] += w
            if not math.isnan(c):
                sums["cn"], sums["cd"] = sums["cn"] + w * c, sums["cd"] + w
            if not math.isnan(f):
                sums["fn"], sums["fd"] = sums["fn"] + w * f, sums["fd"] + w
        if not math.isnan(s):
            sums["s"], sums["sn"] = sums["s"] + s, sums["sn"] + 1
        if not math.isnan(one["region_attention"]):
            sums["r"] += one["region_attention"]
            sums["e"] += (w - one["newline_attention"]) * one["region_share"]

    def ratio(a: float, b: float) -> float:
        return a / b if b else math.nan

    return {
        "image_attention": ratio(sums["w"], sums["n"]),
        "concentration": ratio(sums["cn"], sums["cd"]),
        "focus": ratio(sums["fn"], sums["fd"]),
        "visual_head_score": ratio(sums["s"], sums["sn"]),
        "region_lift": math.log(sums["r"] / sums["e"]) if sums["r"] and sums["e"] else math.nan,
    }


def test_heads_pooled_over_tasks_equal_means_over_all_documents():
    tables = [head_table("a/one", 1), head_table("b/two", 2)]
    heads = frames.head_frame(report_models(tables))
    assert len(heads) == 2 * 3 * 4
    for table in tables:
        for (layer, head), rows in table.frame.groupby(["layer", "head"]):
            found = heads[(heads["model"] == table.model) & (heads["layer"] == layer) & (heads["head"] == head)].iloc[0]
            for name, expected in slow_head(rows).items():
                assert found[name] == pytest.approx(expected, rel=2e-5), (name, layer, head)
            assert found["n_documents"] == len(rows)


def test_missing_heads_stay_missing_and_are_never_zero():
    heads = frames.head_frame(report_models([head_table("a/one", 1, missing=True)])).set_index(["layer", "head"])
    lost = heads.loc[(2, 3)]
    assert lost[["image_attention", "concentration", "focus", "visual_head_score", "region_lift"]].isna().all()
    assert lost["n_documents"] == 0
    assert heads.loc[(0, 1), ["image_attention", "concentration"]].notna().all()
    summary = frames.model_frame(heads.reset_index())
    assert summary["n_missing"].tolist() == [1]
    assert summary["image_attention"][0] == pytest.approx(heads["image_attention"].dropna().mean())
    grid = frames.matrix(heads.reset_index(), "image_attention")
    assert grid.shape == (3, 4)
    assert np.isnan(grid[2, 3])
    assert np.isfinite(grid).sum() == 11


def test_a_model_without_any_value_has_missing_averages():
    made = profile("all/lost", seed=3)
    made.frame.loc[
        :, ["image_attention", "concentration", "focus", "visual_head_score", "region_attention", "region_lift"]
    ] = np.nan
    summary = frames.model_frame(frames.head_frame(report_models([made]))).iloc[0]
    assert (
        summary[["image_attention", "concentration", "focus", "largest_score", "top_layer", "region_lift"]].isna().all()
    )
    assert summary["visual_heads"] == 0
    assert summary["n_missing"] == 12


def test_visual_heads_are_counted_above_the_threshold_and_ranked():
    heads = frames.head_frame(report_models([profile("a/one", 6, 5, seed=4), profile("b/two", 2, 2, seed=5)]))
    summary = frames.model_frame(heads, threshold=0.07).set_index("model")
    top = frames.top_head_frame(heads, n=7, threshold=0.07)
    for name, part in heads.groupby("model"):
        scores = sorted(part["visual_head_score"], reverse=True)
        assert summary.loc[name, "visual_heads"] == sum(score > 0.07 for score in scores)
        assert summary.loc[name, "largest_score"] == scores[0]
        listed = top[top["model"] == name]
        assert listed["visual_head_score"].tolist() == scores[:7]
        assert listed["rank"].tolist() == list(range(1, min(7, len(scores)) + 1))
        assert (listed["visual_head"] == (listed["visual_head_score"] > 0.07)).all()
    assert top["model"].unique().tolist() == ["a/one", "b/two"]


def test_averages_over_heads_weigh_c_and_f_by_w():
    heads = frames.head_frame(report_models([profile("a/one", 4, 3, seed=6, missing=True)]))
    found = frames.model_frame(heads).iloc[0]
    for name in ("concentration", "focus"):
        pairs = [(w, v) for w, v in zip(heads["image_attention"], heads[name], strict=True) if not math.isnan(w + v)]
        assert found[name] == pytest.approx(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))


def test_question_types_stand_side_by_side_with_the_plain_ones_first():
    made = profile("a/one", 5, 4, seed=7, tasks=(*VISUAL_TASKS, "pope", *PLAIN_TASKS))
    models = report_models([made])
    assert models[0].pooled_tasks == PLAIN_TASKS
    types = frames.question_type_frame(frames.profile_frame(models), threshold=0.05)
    assert types["task"].tolist() == [*PLAIN_TASKS, *VISUAL_TASKS, "pope"]
    assert types["question_type"].tolist()[:4] == ["general", "obj", "super", "general"]
    assert types["box_drawn"].tolist() == [False] * 3 + [True] * 3 + [False]
    assert types["same_heads"][0] == 1.0
    part = made.frame[made.frame["task"] == "vhead_obj"]
    assert types["image_attention"][1] == pytest.approx(part["image_attention"].mean())
    assert types["visual_heads"][1] == (part["visual_head_score"] > 0.05).sum()


def test_without_probe_tasks_the_maps_pool_what_is_there():
    assert report_models([profile("a", tasks=("pope", "gqa"))])[0].pooled_tasks == ("pope", "gqa")
    assert report_models([profile("a", tasks=("pope", *VISUAL_TASKS))])[0].pooled_tasks == VISUAL_TASKS


def test_what_was_run_is_told_as_recorded_and_missing_otherwise():
    full, bare = profile("a/one", seed=1), profile("b/two", seed=2, parameters=None)
    bare = type(bare)(bare.frame, {"model": {"name": "b/two"}})
    models = report_models([full, bare])
    runs = frames.run_frame(models).set_index("model")
    assert runs.loc["a/one", ["revision", "architecture", "query", "dtype"]].tolist() == [
        "4481d270",
        "LlavaForConditionalGeneration",
        "first_generated",
        "float32",
    ]
    assert runs.loc["b/two", ["revision", "query", "language_model_parameters"]].isna().all()
    assert runs.loc["b/two", ["layers", "heads"]].tolist() == [3, 4]
    tasks = frames.task_frame(models).set_index(["model", "task"])
    assert tasks.loc[("a/one", "vhead_obj"), "fingerprint"] == "9f3a61c2"
    assert tasks.loc[("b/two", "vhead_obj"), "n_documents"] == 256
    assert pd.isna(tasks.loc[("b/two", "vhead_obj"), "fingerprint"])
    versions = frames.version_frame(models)
    assert versions.loc[versions["package"] == "torch", ["version", "n_models"]].to_numpy().tolist() == [["2.15.0", 1]]


def test_models_that_were_measured_differently_are_named():
    assert frames.mixed_measurements(report_models([profile("a"), profile("b")])) == []
    sentences = frames.mixed_measurements(
        report_models(
            [
                profile("a"),
                profile("b", query="last_prompt"),
                profile("c", fingerprint="0000"),
                profile("d", tasks=("vhead_obj",)),
            ]
        )
    )
    assert any("different queries (first_generated, last_prompt)" in s for s in sentences)
    assert any("The data of vhead_obj differ between models (2 fingerprints)" in s for s in sentences)
    assert any("probed with different tasks" in s for s in sentences)


def test_tables_profiles_and_single_profiles_come_to_the_same():
    tables = [head_table("a/one", 1), head_table("b/two", 2)]
    joined = HeadProfiles.from_tables(tables)
    one, other = report_models(tables), report_models([joined])
    assert [m.name for m in one] == [m.name for m in other] == ["a/one", "b/two"]
    for a, b in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(a.profile, b.profile)
        assert a.metadata == b.metadata


def test_mistakes_end_in_one_sentence():
    with pytest.raises(VisualHeadsError, match=r"needs the heads of at least one model; none came. Give --heads PATH"):
        report_models([])
    with pytest.raises(VisualHeadsError, match="one head table per model; 'a' came twice"):
        report_models([profile("a"), profile("a", seed=1)])
    made = profile("a")
    with pytest.raises(VisualHeadsError, match="those of 'a' lack region_lift"):
        report_models([type(made)(made.frame.drop(columns="region_lift"), made.metadata)])
