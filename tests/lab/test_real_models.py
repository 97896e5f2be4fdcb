"""Real answers of real models: the tables that are committed, their families, and how they are imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lab.real_models import families, tables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables import ITEM_COLUMNS, read_scores
from tests.builders.paths import ROOT

FOLDER = ROOT / tables.TABLES


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    return pd.concat([tables.read_table(name, FOLDER) for name in (tables.RIGHT_WRONG, tables.ANSWERS_ITEMS)])


def test_committed_tables_are_complete_and_small(items: pd.DataFrame) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000
    assert list(items.columns) == [*(column.name for column in ITEM_COLUMNS), "group"]
    sizes = items.groupby("benchmark").agg(models=("model", "nunique"), items=("doc_id", "nunique"))
    assert sizes.loc["AI2D_TEST"].tolist() == [169, 3088]
    assert sizes.loc["MMMU_DEV_VAL"].tolist() == [168, 1050]
    assert sizes.loc["MMT-Bench_VAL"].tolist() == [137, 3127]
    assert sizes.loc["DynaMath"].tolist() == [14, 5010]
    answered = sizes[sizes["models"] == 26]
    assert len(answered) == 27
    assert answered["items"].sum() == 7221
    assert set(items["correct"].unique()) <= {0.0, 1.0}


def test_scores_follow_from_the_items(items: pd.DataFrame) -> None:
    scores = read_scores(FOLDER / tables.SCORES)
    assert len(scores) == 169 + 168 + 137 + 14 + 26 * 27
    again = items.groupby(["model", "benchmark"])["correct"].mean()
    expected = again.loc[list(zip(scores["model"], scores["benchmark"], strict=True))]
    np.testing.assert_allclose(scores["score"], expected, atol=1e-6)


def test_answers_give_the_items(items: pd.DataFrame) -> None:
    logits = tables.read_table(tables.ANSWERS, FOLDER)
    joined = logits.merge(tables.read_table(tables.QUESTIONS, FOLDER), on=["benchmark", "doc_id"], validate="m:1")
    letter = np.array(tables.LETTERS)[joined[list(tables.LOGITS)].to_numpy().argmax(axis=1)]
    joined["right"] = letter == joined["answer"].to_numpy()
    both = joined.merge(items, on=["model", "benchmark", "doc_id"], validate="1:1")
    assert len(both) == 187_746
    assert (both["right"] == (both["correct"] == 1)).all()


def test_rotated_copies_of_a_question_are_one_group(items: pd.DataFrame) -> None:
    mmbench = items[items["benchmark"].str.endswith("(MMBench)")].drop_duplicates(["benchmark", "doc_id"])
    assert mmbench["group"].nunique() == 1176
    assert mmbench.groupby("group")["benchmark"].nunique().max() == 1
    assert mmbench.groupby("group").size().max() == 4


def test_every_model_has_a_reviewed_family_and_kinship(items: pd.DataFrame) -> None:
    declared = families.read_families()
    assert set(items["model"]) == set(declared.index)
    assert set(families.family_of(items["model"].unique(), declared).values()) == set(declared["family"])
    undisclosed = declared[declared["language_model"] == ""]
    assert (undisclosed["kinship"] == undisclosed["family"]).all()
    # One language model belongs to one series: whoever shares it is kin.
    disclosed = declared[declared["language_model"] != ""]
    assert disclosed.groupby("language_model")["kinship"].nunique().max() == 1


def test_a_model_without_family_is_refused() -> None:
    with pytest.raises(VisualHeadsError, match=r"declared family; unheard-of has none"):
        families.family_of(["GPT4o", "unheard-of"], families.read_families())


def test_the_committed_split_follows_from_the_names(items: pd.DataFrame) -> None:
    declared = families.read_families()
    answered = items[items["benchmark"].str.contains("(", regex=False)]["model"].unique()
    again = families.sealed_split(families.family_of(answered, declared).values(), declared["family"])
    committed = pd.read_csv(families.SPLIT, dtype={"family": str, "digest": str})
    pd.testing.assert_frame_equal(again, committed, check_dtype=False)
    assert len(families.sealed_families()) == 20


def write_sources(folder: Path) -> None:
    """The three public files with a few drawn rows."""
    rng = np.random.default_rng(0)
    rows = [
        ("mmbench", 7, "ocr"),
        ("mmbench", 1_000_007, "ocr"),
        ("oodcv", 0, "pose"),
    ]
    answers = pd.DataFrame(
        [("Qwen-VL", benchmark, item, category, "B", *rng.normal(size=6)) for benchmark, item, category in rows],
        columns=["model", "benchmark", "item", "category", "answer", *tables.LOGITS],
    )
    answers.to_parquet(folder / "answers_26x7221.parquet")
    pd.DataFrame({"item": [0, 1], "model": "GPT4o", "correct": [True, False], "benchmark": "AI2D_TEST"}).to_parquet(
        folder / "correct_169models.parquet"
    )
    dynamath = pd.DataFrame(
        {"Question ID": ["Q1", "Q1", "Q2", None], "Unnamed: 1": ["Variant 1", "Variant 2", "Variant 1", "Variant 1"]}
    ).assign(GPT4o=[1, 0, 1, 99])
    dynamath.to_parquet(folder / "dynamath_correct.parquet")


def test_import_writes_what_the_sources_say(tmp_path: Path) -> None:
    write_sources(tmp_path)
    out = tmp_path / "tables"
    tables.import_tables(tmp_path, out)
    right_wrong = tables.read_table(tables.RIGHT_WRONG, out)
    dynamath = right_wrong[right_wrong["benchmark"] == "DynaMath"]
    assert dynamath[["doc_id", "group", "correct"]].to_numpy().tolist() == [[0, 0, 1], [1, 0, 0], [10, 1, 1]]
    answered = tables.read_table(tables.ANSWERS_ITEMS, out)
    assert answered["benchmark"].tolist() == ["ocr (MMBench)", "ocr (MMBench)", "pose (OOD-CV)"]
    assert answered["group"].tolist() == [7, 7, 0]
    assert tables.matrix(right_wrong, "AI2D_TEST").to_numpy().tolist() == [[1, 0]]
    with pytest.raises(VisualHeadsError, match="No item of POPE"):
        tables.matrix(right_wrong, "POPE")


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(VisualHeadsError, match=r"No such table: .*answers_26x7221"):
        tables.import_tables(tmp_path, tmp_path / "out")
