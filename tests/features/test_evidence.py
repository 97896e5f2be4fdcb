"""Evidence of checkpoints: each declared number against a slow twin, the same for zoo tables and for frames of real runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lab.tables.as_product import evidence_table
from lab.tables.zoo import ZooTables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import evidence
from lmms_visual_heads.features.evidence import (
    BLOCKS,
    AnswerMeans,
    CausalGrid,
    HeadGrid,
    evidence_hash,
    evidence_row,
)
from lmms_visual_heads.features.evidence_table import EvidenceTable, evidence_of
from lmms_visual_heads.features.rows import feature_row
from tests.builders.zoo import make_zoo

RANDOM = np.random.default_rng(1)


@pytest.fixture(scope="module")
def zoo() -> ZooTables:
    return make_zoo(lineages=3, benchmarks=3, items=300)


@pytest.fixture(scope="module")
def table(zoo: ZooTables) -> EvidenceTable:
    return evidence_table(zoo)


def grids(layers: int = 3, heads: int = 4) -> HeadGrid:
    return HeadGrid(*RANDOM.uniform(0.05, 0.9, (8, layers, heads)))


def named(block: str, given: object) -> dict[str, float]:
    return dict(zip([item.name for item in BLOCKS[block]], evidence_row(block, given), strict=True))


def test_heads_equal_their_twins() -> None:
    g = grids()
    found = named("own_heads", g)
    flat = [(g.image_attention[i, j], i, j) for i in range(3) for j in range(4)]
    top = sorted(flat, reverse=True)[: round(12 / 8)]
    assert found["attention_top"] == pytest.approx(np.mean([w for w, _, _ in top]))
    assert found["grid_focus_top"] == pytest.approx(np.mean([g.grid_focus[i, j] for _, i, j in top]))
    assert found["log_share_mean"] == pytest.approx(g.image_log_share.mean())
    weight = sum(w for w, _, _ in flat)
    assert found["region_lift_mean"] == pytest.approx(sum(w * g.region_lift[i, j] for w, i, j in flat) / weight)
    assert found["attention_depth"] == pytest.approx(sum(w * i / 2 for w, i, _ in flat) / weight)
    assert found["content_dependence_top"] == pytest.approx(np.sort(g.content_dependence.ravel())[-2:].mean(), rel=0.2)


def test_cuts_and_answers_equal_their_twins() -> None:
    heads = RANDOM.uniform(0.1, 1.0, (2, 3))
    found = named("own_causal", CausalGrid(2.0, np.array([0.5, 1.5]), heads))
    share = heads / heads.sum()
    assert found["every_kl"] == pytest.approx(np.log(2.01))
    assert found["layer_kl_largest"] == pytest.approx(np.log(1.51))
    assert found["head_kl_mean"] == pytest.approx(np.log(heads.mean() + 0.01))
    assert found["head_kl_evenness"] == pytest.approx(np.exp(-(share * np.log(share)).sum()) / 6)
    assert found["head_kl_depth"] == pytest.approx(heads[1].sum() / heads.sum())
    answers = named("own_answers", AnswerMeans(0.8, 0.5, 0.3, 1.0, 0.0))
    assert answers["confidence"] == pytest.approx(np.log(4))
    assert answers["swap_kl"] == pytest.approx(np.log(1.01))
    assert answers["blank_kl"] == pytest.approx(np.log(0.01))
    assert (answers["entropy"], answers["information"]) == (0.5, 0.3)


def test_missing_is_missing_and_never_a_number() -> None:
    assert np.isnan(evidence_row("own_answers", AnswerMeans())).all()
    nothing = np.full((2, 2), np.nan)
    assert np.isnan(evidence_row("own_heads", HeadGrid(*[nothing] * 8))).all()
    assert np.isnan(evidence_row("own_causal", CausalGrid(np.nan, nothing[0], nothing))).all()
    assert np.isnan(evidence_row("metadata", {})).all()
    assert np.isnan(evidence_row("metadata", {"tokens_seen": 0, "parameters": None})[:4]).all()


def test_copying_every_head_changes_nothing() -> None:
    g = grids()
    twice = HeadGrid(*[np.repeat(getattr(g, name), 2, axis=1) for name in HeadGrid.__dataclass_fields__])
    for block in ("own_heads", "probe_heads"):
        a, b = named(block, g), named(block, twice)
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=0.35), name
    heads = RANDOM.uniform(0.1, 1, (2, 3))
    one, two = (named("own_causal", CausalGrid(1.0, np.ones(2), h)) for h in (heads, np.repeat(heads, 2, axis=1)))
    assert one == pytest.approx(two)


def test_probe_heads_are_the_declared_features_of_the_probe(zoo: ZooTables, table: EvidenceTable) -> None:
    probe = zoo.profiles[(zoo.profiles["half"] == -1) & zoo.profiles["task"].str.startswith("vhead")]
    for m, model in enumerate(table.models):
        expected = feature_row(probe[probe["model"] == model]).to_numpy()
        np.testing.assert_allclose(table.blocks["probe_heads"][m, 0], expected, rtol=1e-9)
        np.testing.assert_array_equal(table.blocks["probe_heads"][m, 0], table.blocks["probe_heads"][m, 1])


def test_answers_are_those_of_so_many_prompts(zoo: ZooTables) -> None:
    for number, count in enumerate((16, 32, 64, 128, 256)):
        found = evidence_table(zoo, count)
        row = zoo.answers[(zoo.answers["model"] == "run-01-s1") & (zoo.answers["condition"] == "clean")]
        row = row[row["task"] == "suite_02"].iloc[0]
        at = found.models.index("run-01-s1")
        assert found.blocks["own_answers"][at, 2, 1] == pytest.approx(float(row["entropy"][number]))
    with pytest.raises(VisualHeadsError, match="n_prompts is one of 16"):
        evidence_table(zoo, 100)


def test_frames_of_runs_give_the_same_as_the_zoo(zoo: ZooTables, table: EvidenceTable) -> None:
    answers = zoo.answers[zoo.answers["condition"] == "clean"].copy()
    for name in ("confidence", "entropy", "information", "swap_kl", "blank_kl"):
        answers[name] = [float(cell[-1]) for cell in answers[name]]
    profiles = zoo.profiles[zoo.profiles["half"] == -1].drop(columns=["half", "condition"])
    found = evidence_of(zoo.checkpoints, table.benchmarks, answers, profiles, zoo.causal)
    for name, block in table.blocks.items():
        np.testing.assert_array_equal(found.blocks[name], block)


def test_what_a_condition_did_not_measure_is_missing(zoo: ZooTables, table: EvidenceTable) -> None:
    hot, broken = (evidence_table(zoo, 256, condition) for condition in ("temperature", "corrupted"))
    np.testing.assert_array_equal(hot.blocks["own_heads"], table.blocks["own_heads"])
    assert np.isnan(hot.blocks["own_causal"]).all()
    assert np.isnan(broken.blocks["own_heads"]).all()
    assert np.isfinite(broken.blocks["own_answers"]).any()
    shared = evidence_table(zoo, 16, "clean", share=table)
    np.testing.assert_array_equal(shared.blocks["own_causal"], table.blocks["own_causal"])
    assert not np.array_equal(shared.blocks["own_answers"], table.blocks["own_answers"])


def test_stack_only_and_cost(table: EvidenceTable) -> None:
    x, names = table.stack(["own_answers.entropy", "own_causal"])
    assert names[0] == "own_answers.entropy"
    assert x.shape == (9, 3, 6)
    np.testing.assert_array_equal(x[:, :, 0], table.blocks["own_answers"][:, :, 1])
    part = table.only(["run-02-s0", "run-00-s1"])
    np.testing.assert_array_equal(part.blocks["loss"][1], table.blocks["loss"][table.models.index("run-00-s1")])
    assert table.passes_per_prompt(["metadata", "probe_heads"]) == 0.0
    assert table.passes_per_prompt(["own_answers.confidence"]) == 1.0
    assert table.passes_per_prompt(["own_answers"]) == 3.0
    assert table.passes_per_prompt(["own_causal"]) == 1 + 1 + 2 + 6
    with pytest.raises(VisualHeadsError, match="At least one feature"):
        table.stack(["own_answers.nothing"])


def test_an_infinite_feature_is_refused(table: EvidenceTable) -> None:
    blocks = {**table.blocks, "loss": np.full_like(table.blocks["loss"], np.inf)}
    with pytest.raises(VisualHeadsError, match="block loss holds an infinite one"):
        EvidenceTable(table.models, table.benchmarks, blocks, "clean", 256, table.heads)


def test_the_hash_shows_another_list_and_another_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = evidence_hash()
    assert before == evidence_hash()
    monkeypatch.setattr(evidence, "BLOCKS", {**BLOCKS, "loss": ()})
    assert evidence_hash() != before
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "FLOOR", 0.02)
    assert evidence_hash() != before


def test_every_number_says_what_it_is() -> None:
    for block, items in BLOCKS.items():
        names = [item.name for item in items]
        assert len(set(names)) == len(names), block
        assert len(names) <= 12
        for item in items:
            assert item.formula
            assert item.reason
            assert item.unit is not None


def test_accuracy_on_the_probe_is_read_per_question_type(zoo: ZooTables) -> None:
    answers = zoo.answers[zoo.answers["task"] != "vhead_obj"]
    tables = ZooTables(**{**{n: getattr(zoo, n) for n in zoo.__dataclass_fields__}, "answers": pd.DataFrame(answers)})
    found = evidence_table(tables).blocks["probe_accuracy"]
    assert np.isnan(found[:, :, 1]).all()
    assert np.isfinite(found[:, :, [0, 2]]).all()
