"""What the fitted models answered: votes joined by document, leave-own-lineage-out, and through the predictor's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lab.tables import as_product
from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.references import Votes, agreement_of, votes_of
from lmms_visual_heads.prediction.regressors.extra_trees import PooledTrees
from lmms_visual_heads.tables import ANSWER_COLUMNS, AnswerTable
from tests.builders import synthetic
from tests.builders.zoo import make_zoo

LINEAGES = {"a": "run-1", "b": "run-1", "c": "run-2", "d": "run-3"}
POINTS = {"a": 90.0, "b": 80.0, "c": 60.0, "d": 55.0}


def votes() -> Votes:
    replies = {
        "a": pd.Series(["red", "red", "red", "red"], index=[0, 1, 2, 3]),
        "b": pd.Series(["red", "red", "red", "blue"], index=[0, 1, 2, 3]),
        "c": pd.Series(["blue", "blue", "red", "blue"], index=[3, 2, 1, 0]),
        "d": pd.Series(["blue", "red", "blue", "blue", "red"], index=[0, 1, 2, 3, 9]),
    }
    found = Votes.of(replies, POINTS, dict.fromkeys(POINTS, 100.0))
    assert found is not None
    return found


def test_only_prompts_that_all_answered_are_voted_on() -> None:
    found = votes()
    assert found.doc_ids.tolist() == [0, 1, 2, 3]
    assert found.words == ("blue", "red")
    assert found.codes.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


def test_who_only_guesses_has_no_vote_whatever_single_models_say() -> None:
    """Yes or no, and two models that now and then say something else: whoever is right by half still says nothing."""
    random = np.random.default_rng(0)
    replies = {name: pd.Series(random.choice(["yes", "no"], 200)) for name in "abcde"}
    replies["d"][:8] = [str(number) for number in range(8)]
    found = Votes.of(replies, {"a": 50.0, "b": 51.0, "c": 90.0, "d": 49.0, "e": 30.0}, dict.fromkeys("abcde", 1000.0))
    assert found is not None
    assert found.weights.tolist() == pytest.approx([0, 0, np.log(9), 0, 0], abs=0.1)
    even = {name: pd.Series([str(k) for k in random.integers(0, 10, 2000)]) for name in "abc"}
    found = Votes.of(even, {"a": 10.0, "b": 50.0, "c": 90.0}, {})
    assert found is not None
    assert found.weights.tolist() == pytest.approx([0, np.log(9), np.log(81)], abs=0.05)


def test_a_new_model_is_compared_on_what_it_answered() -> None:
    # a outweighs b, c and d on document 0: ln 9 + ln 4 > ln 1.5 + ln 1.2; on document 3 b votes against it.
    new = pd.Series(["red", "red", "green"], index=[0, 1, 2])
    assert votes().agreement(new, "new", LINEAGES) == pytest.approx(2 / 3)
    assert votes().agreement(pd.Series(["red"], index=[3]), "new", LINEAGES) == pytest.approx(1.0)
    assert np.isnan(votes().agreement(pd.Series(["red"], index=[77]), "new", LINEAGES))


def test_a_fitted_model_is_compared_with_other_lineages_only() -> None:
    own = pd.Series(["red", "red", "red", "red"], index=[0, 1, 2, 3])
    assert votes().agreement(own, "run-1", LINEAGES) == pytest.approx(0.25)


def test_too_few_to_vote_and_nothing_in_common() -> None:
    one = {"a": pd.Series(["x"], index=[0])}
    assert Votes.of(one, POINTS, {}) is None
    assert Votes.of({**one, "c": pd.Series(["x"], index=[1])}, POINTS, {}) is None
    assert Votes.of({**one, "z": pd.Series(["x"], index=[0])}, POINTS, {}) is None  # no score, no vote


def test_votes_survive_a_file_and_a_changed_one_is_refused() -> None:
    document = json.loads(json.dumps(votes().document()))
    again = Votes.of_document(document)
    assert again.words == votes().words
    np.testing.assert_array_equal(again.codes, votes().codes)
    for change in ({"codes": [[0, 1]]}, {"weights": [1.0]}, {"codes": [[7, 0, 0, 0]] * 4}):
        with pytest.raises(ValueError, match="fitted models"):
            Votes.of_document({**document, **change})


def answer_table(said: list[str | None] | None) -> AnswerTable:
    """Answers to the documents 5, 4, ... of one task; None: a table from before there was such a column."""
    counts = {"n_images": 1, "n_visual_tokens": 4, "n_prompt_tokens": 9, "n_answer_tokens": 2, "answer_token_index": 0}
    frame = pd.DataFrame({c.name: [None] * 3 for c in ANSWER_COLUMNS if c.nullable}).assign(
        task="t", doc_id=[5, 4, 3], **counts, answer=said or [None] * 3
    )
    metadata = {**synthetic.metadata("m"), "tasks": {"t": {"fingerprint": "0", "n_documents": 3}}}
    return AnswerTable.from_frame(frame if said else frame.drop(columns="answer"), metadata)


def test_replies_of_a_table_are_its_answers_in_lower_case() -> None:
    replies = Measurements.of_tables([answer_table(["Red", None, "7 cats"])]).replies
    assert {key: series.to_dict() for key, series in replies.items()} == {("m", "t"): {3: "7 cats", 5: "red"}}
    assert replies["m", "t"].index.tolist() == [3, 5]
    assert Measurements.of_tables([answer_table([None, None, None])]).replies == {}
    assert Measurements.of_tables([answer_table(None)]).replies == {}


def test_replies_of_a_zoo_are_its_clean_ones_as_text() -> None:
    zoo = make_zoo(lineages=2, benchmarks=2, items=20, seed=1)
    replies = as_product.measurements(zoo).replies
    clean = zoo.replies[zoo.replies["condition"] == "clean"]
    assert len(replies) == len(clean) > 0
    for row in clean.to_dict("records"):
        said = replies[row["model"], row["benchmark"]]
        assert said.to_dict() == {doc_id: str(number) for doc_id, number in enumerate(row["answer"])}
    assert as_product.measurements(replace(zoo, replies=zoo.replies.iloc[:0])).replies == {}


def test_missing_answers_give_missing_agreement() -> None:
    points = np.array([[90.0], [60.0], [40.0]])
    measured = Measurements(replies={("a", "x"): pd.Series(["1"], index=[0]), ("c", "x"): pd.Series(["1"], index=[0])})
    found = votes_of(measured, ["a", "c", "d"], ["x"], points, np.full_like(points, 10.0))
    assert set(found) == {"x"}
    assert found["x"].models == ("a", "c")
    table = agreement_of(found, measured, ["a", "d", "new"], ["x", "y"], LINEAGES)
    assert table[0, 0] == pytest.approx(1.0)
    assert np.isnan(table[1:]).all()
    assert np.isnan(table[:, 1]).all()


def test_the_predictor_uses_agreement_and_keeps_it_in_its_file(tmp_path: Path) -> None:
    """Confidence says nothing here (a temperature per model, and noise); the answers do."""
    zoo = make_zoo(lineages=13, benchmarks=2, items=300, seed=5)
    zoo = zoo.only(zoo.checkpoints["model"][zoo.checkpoints["final"]])
    lineages = zoo.checkpoints[["model", "lineage"]]
    new = sorted(set(lineages["lineage"]))[:2]
    out = lineages["lineage"].isin(new)
    known, fresh = zoo.only(lineages["model"][~out]), zoo.only(lineages["model"][out])
    names = ("probe_heads", "own_answers_free", "own_agreement", "own_agreement_trees")
    predictor = BenchmarkPredictor(methods=names).fit(as_product.measurements(known), known.scores, groups=lineages)
    assert {"own_agreement", "own_agreement_trees"} & set(predictor.methods_["method"])
    errors = predictor.methods_.groupby("method")["error"].mean()
    assert (
        errors[[name for name in errors.index if name.startswith("own_agreement")]].min() < errors["own_answers_free"]
    )
    said = predictor.predict(as_product.measurements(fresh))
    assert said["method"].str.startswith("own_agreement").any()
    actual = fresh.scores.set_index(["model", "benchmark"])["score"] * 100
    merged = said.set_index(["model", "benchmark"])
    assert (merged["predicted"] - actual).abs().mean() < 0.7 * (merged["baseline"] - actual).abs().mean()
    again = BenchmarkPredictor.load(predictor.save(tmp_path / "p.skops"))
    pd.testing.assert_frame_equal(again.predict(as_product.measurements(fresh)), said)
    # Sure of everything, saying the same: the views differ, which is said, and intervals widen.
    sure = as_product.measurements(fresh)
    sure.answers["confidence"], sure.answers["entropy"] = 0.999, 0.001
    warned = predictor.predict(sure)
    by_trees = said["method"] == "own_agreement_trees"
    if by_trees.any():
        width, usual = warned["high"] - warned["low"], said["high"] - said["low"]
        assert width[by_trees].mean() > usual[by_trees].mean()
    # Without answers the same models are predicted by another method, and nothing breaks.
    without = predictor.predict(Measurements(heads=as_product.head_profiles(fresh)))
    assert not without["method"].str.startswith("own_").any()


def test_a_judged_lineage_has_no_vote_in_what_it_is_judged_by() -> None:
    """What a lineage scored and answered changes nothing of what is said of it, agreement among the features included."""
    zoo = make_zoo(lineages=9, benchmarks=2, items=200, seed=5)
    zoo = zoo.only(zoo.checkpoints["model"][zoo.checkpoints["final"]])
    lineages, own = zoo.checkpoints[["model", "lineage"]], str(zoo.checkpoints["lineage"].iloc[3])
    models = set(lineages["model"][lineages["lineage"] == own])
    there = zoo.scores["model"].isin(models)
    turned = zoo.scores.assign(score=zoo.scores["score"].where(~there, 1 - zoo.scores["score"]))
    names = ("own_answers_free", "own_agreement")
    found = [
        BenchmarkPredictor(methods=names).fit(as_product.measurements(zoo), scores, groups=lineages).evaluation_
        for scores in (zoo.scores, turned)
    ]
    before, after = (frame[frame["lineage"] == own] for frame in found)
    assert (before["method"] == "own_agreement").any()
    columns = ["model", "benchmark", "predicted", "low", "high", "baseline", "method"]
    pd.testing.assert_frame_equal(before[columns], after[columns])


def test_a_confidence_that_the_agreement_contradicts_is_noticed() -> None:
    """Columns: confidence, agreement. A new model is as sure as the best and agrees as the middle ones do."""
    random = np.random.default_rng(0)
    truth = random.uniform(0, 100, 200)
    columns = np.stack([truth / 100 + random.normal(0, 0.02, 200), truth / 100 + random.normal(0, 0.05, 200)], axis=1)
    trees = PooledTrees(check=(1,)).fit(columns, truth, np.repeat(np.arange(40), 5).astype(str))
    usual, odd = np.array([[0.5, 0.5]]), np.array([[0.95, 0.5]])
    assert trees.excess(usual)[0] < 1 < trees.excess(odd)[0]
    mean, spread = trees.predict_with_spread(odd)
    one = PooledTrees().fit(columns, truth, np.repeat(np.arange(40), 5).astype(str))
    plain, narrow = one.predict_with_spread(odd)
    assert mean[0] < plain[0] - 5
    assert spread[0] > 1.5 * narrow[0]
    assert one.excess(odd)[0] == 0
