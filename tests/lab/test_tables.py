"""Tables of a measured zoo: what is written is read, parts join, and what contradicts itself is refused in one sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lab.tables.zoo import (
    TABLES,
    ZooTables,
    join_parts,
    put_together,
    read_zoo_tables,
    write_part,
    write_zoo_tables,
)
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.zoo import make_zoo


@pytest.fixture(scope="module")
def zoo() -> ZooTables:
    return make_zoo(lineages=3, benchmarks=2, items=40)


def changed(zoo: ZooTables, **frames: pd.DataFrame) -> ZooTables:
    return ZooTables(**{name: frames.get(name, getattr(zoo, name)) for name in TABLES})


def test_what_is_written_is_read(zoo: ZooTables, tmp_path) -> None:
    write_zoo_tables(zoo, tmp_path)
    again = read_zoo_tables(tmp_path)
    for name in ("checkpoints", "scores", "scores_corrupted", "benchmarks", "profiles", "causal"):
        pd.testing.assert_frame_equal(getattr(zoo, name), getattr(again, name), check_dtype=False)
    for column in ("correct", "confidence", "entropy"):
        for a, b in zip(zoo.items[column], again.items[column], strict=True):
            np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2**-13)
    for column in ("confidence", "swap_kl"):
        np.testing.assert_array_equal(np.stack(zoo.answers[column]), np.stack(again.answers[column]))


def test_missing_stays_missing(zoo: ZooTables, tmp_path) -> None:
    profiles = zoo.profiles.assign(region_lift=np.nan)
    answers = zoo.answers.assign(swap_kl=None, accuracy=np.nan)
    checkpoints = zoo.checkpoints.assign(training_loss=np.nan, anyres=None)
    write_zoo_tables(changed(zoo, profiles=profiles, answers=answers, checkpoints=checkpoints), tmp_path)
    again = read_zoo_tables(tmp_path)
    assert again.profiles["region_lift"].isna().all()
    assert again.answers["swap_kl"].isna().all()
    assert again.answers["accuracy"].isna().all()
    assert again.checkpoints["training_loss"].isna().all()
    assert again.checkpoints["anyres"].isna().all()


def test_zoos_are_put_together_whole(zoo: ZooTables) -> None:
    other = make_zoo(lineages=2, benchmarks=2, items=40, seed=4, prefix="other")
    both = put_together([zoo, other])
    assert set(both.lineages.values()) == {*zoo.lineages.values(), *other.lineages.values()}
    for name in TABLES:
        if name != "benchmarks":
            assert len(getattr(both, name)) == len(getattr(zoo, name)) + len(getattr(other, name)), name
    pd.testing.assert_frame_equal(both.only(other.checkpoints["model"]).profiles, other.profiles)
    assert put_together([zoo]) is zoo
    with pytest.raises(VisualHeadsError, match=r"lineages of their own; run-00, .* stand in two of them"):
        put_together([zoo, other, zoo])
    with pytest.raises(VisualHeadsError, match="need the same benchmarks"):
        put_together([zoo, make_zoo(lineages=2, benchmarks=3, items=40, seed=4, prefix="more")])


def test_parts_join_to_the_whole(zoo: ZooTables, tmp_path) -> None:
    for model in zoo.checkpoints["model"]:
        write_part(zoo.only([model]), tmp_path)
    joined = join_parts(tmp_path)
    assert joined.notes == ()
    again = read_zoo_tables(tmp_path)
    for name in ("checkpoints", "scores", "causal"):
        key = list(TABLES[name].key)
        a, b = (t.sort_values(key).reset_index(drop=True) for t in (getattr(zoo, name), getattr(again, name)))
        pd.testing.assert_frame_equal(a, b, check_dtype=False)


def test_a_lineage_without_its_end_is_left_out_by_name(zoo: ZooTables, tmp_path) -> None:
    for model in zoo.checkpoints["model"]:
        if model != "run-01-s2":
            write_part(zoo.only([model]), tmp_path)
    joined = join_parts(tmp_path)
    assert set(joined.tables.checkpoints["lineage"]) == {"run-00", "run-02"}
    assert "run-01" in joined.notes[0]


def test_an_unfinished_lineage_is_refused_by_the_reader(zoo: ZooTables, tmp_path) -> None:
    write_zoo_tables(zoo.only([m for m in zoo.checkpoints["model"] if m != "run-01-s2"]), tmp_path)
    with pytest.raises(VisualHeadsError, match="exactly one final checkpoint; run-01 has 0"):
        read_zoo_tables(tmp_path)


def first(frame: pd.DataFrame, **cells: object) -> pd.DataFrame:
    """A copy whose first row has other cells."""
    copy = frame.copy().reset_index(drop=True)
    for name, value in cells.items():
        copy[name] = [value, *copy[name].tolist()[1:]]
    return copy


CASES = {
    "a model twice": ("checkpoints", lambda f: pd.concat([f, f.head(1)]), "stands once in a zoo; there are two of model run-00-s0"),
    "two scores of one model": (
        "scores", lambda f: pd.concat([f, first(f, score=0.99).head(1)]), "one score per benchmark",
    ),
    "percent beside 0..1": ("scores", lambda f: first(f, score=55.0), "Fractions and percent must not be mixed"),
    "two scales": ("scores", lambda f: first(f, score=55.0, scale=100.0), "need one scale"),
    "an unknown model": ("causal", lambda f: first(f, model="stranger"), "'stranger', which does not"),
    "an unknown benchmark": ("scores", lambda f: first(f, benchmark="stranger"), "stands in benchmarks.csv"),
    "an infinite feature": ("profiles", lambda f: first(f, focus=np.inf), "finite or missing; column focus"),
    "an infinite answer": ("answers", lambda f: first(f, swap_kl=[np.inf] * 5), "swap_kl of run-00-s0 .* is infinite"),
    "a list of another length": ("items", lambda f: first(f, confidence=[0.5] * 7), "has 7 entries instead of 40"),
    "another number of prompts": ("answers", lambda f: first(f, entropy=[0.5] * 4), "has 4 entries instead of 5"),
    "labels that contradict the score": (
        "items", lambda f: first(f, correct=np.ones(40, dtype=bool)), "A score is the mean of its items",
    ),
    "an unknown stratum": ("checkpoints", lambda f: first(f, stratum="odd"), "one of ordinary, smoothed, noisy, broken; 'odd'"),
    "an unknown condition": ("items", lambda f: first(f, condition="odd"), "'odd' came"),
    "a lineage without a name": ("checkpoints", lambda f: first(f, lineage=None), "lineage .* needs a value in every row"),
    "text for a number": ("checkpoints", lambda f: first(f, training_loss="low"), "must hold double"),
    "a missing column": ("causal", lambda f: f.drop(columns="kl"), "missing: kl"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_contradictions_are_refused_in_one_sentence(zoo: ZooTables, case: str) -> None:
    table, change, words = CASES[case]
    with pytest.raises(VisualHeadsError, match=words) as caught:
        changed(zoo, **{table: change(getattr(zoo, table))})
    assert "\n" not in str(caught.value)


def test_a_newer_file_is_refused(zoo: ZooTables, tmp_path, monkeypatch) -> None:
    from lab.tables import files

    monkeypatch.setattr(files, "SCHEMA_VERSION", 99)
    write_zoo_tables(zoo, tmp_path)
    monkeypatch.undo()
    with pytest.raises(VisualHeadsError, match="version 99"):
        read_zoo_tables(tmp_path)


def test_a_damaged_or_missing_file_is_named(zoo: ZooTables, tmp_path) -> None:
    write_zoo_tables(zoo, tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"not parquet")
    with pytest.raises(VisualHeadsError, match=r"items\.parquet is none"):
        read_zoo_tables(tmp_path)
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(VisualHeadsError, match=r"lacks scores\.csv"):
        read_zoo_tables(tmp_path)
    with pytest.raises(VisualHeadsError, match="there is no"):
        read_zoo_tables(tmp_path / "nowhere")
