"""The protocol: nothing leaks from the left-out lineage, and where there is nothing to know, it says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lab.study import metrics
from lab.study.cross_validation import (
    SETTINGS,
    Protocol,
    draw_items,
    lineage_folds,
    matrix,
    run_trials,
    situations,
)
from lab.study.dataset import ZooData, zoo_data
from lab.study.methods import base as m
from lab.study.methods.base import Budget, Features, RawConfidence, Spread, Training
from lab.study.methods.constants import CONSTANTS
from lab.study.methods.forest import Forest, TwoViews
from lab.study.methods.gaussian_process import NextCheckpoint
from lab.study.methods.label_correction import Cells, LabelsCorrectAnswers, corrected, learn_balance
from lab.study.methods.labelled import Direct
from lab.study.methods.registry import FREE, methods_of
from lab.study.summary import differences, lineage_errors, summary
from lab.tables.zoo import TABLES, ZooTables
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.zoo import make_zoo

MEAN, ANSWERS = Features("mean"), Features("answers", ("own_answers",))
HEADS, CAUSAL = Features("heads", ("own_heads",)), Features("causal", ("own_causal",))
AGREED = Forest("agreement", (), agreement=True)
NEW = Protocol(settings=("new_lineage",), n_folds=6, draws=1)


@pytest.fixture(scope="module")
def tables() -> ZooTables:
    return make_zoo(lineages=24, benchmarks=4, items=200)


@pytest.fixture(scope="module")
def data(tables: ZooTables) -> ZooData:
    return zoo_data(tables)


def with_frames(tables: ZooTables, **frames: pd.DataFrame) -> ZooTables:
    return ZooTables(**{name: frames.get(name, getattr(tables, name)) for name in TABLES})


def errors(data: ZooData, *methods: object, protocol: Protocol = NEW) -> dict[str, float]:
    trials = run_trials(data, lambda setting: methods, protocol)  # type: ignore[arg-type,return-value]
    return {one.name: float(lineage_errors(trials, protocol.settings[0], one.name).mean()) for one in methods}  # type: ignore[attr-defined]


def test_folds_judged_in_processes_of_their_own_give_the_same_trials(data: ZooData) -> None:
    def judged(jobs: int) -> pd.DataFrame:
        told: list[tuple[int, int]] = []
        frame = run_trials(data, lambda setting: (MEAN, ANSWERS), NEW, lambda *step: told.append(step), jobs=jobs)  # type: ignore[arg-type,return-value]
        assert told == [(done, 6) for done in range(1, 7)]
        return frame

    pd.testing.assert_frame_equal(judged(2), judged(1))


def test_constants_are_the_mean_and_the_median_of_the_known_final_checkpoints(data: ZooData) -> None:
    """Against sorting: one final checkpoint a lineage, so every score has the same weight."""
    (situation,) = situations(data, NEW, lineage_folds(data, 6, 0)[0])
    known = situation.training.models[situation.training.final]
    points = data.points["clean"][known]
    for constant in CONSTANTS:
        found = constant.predict(situation.training, situation.test, Budget(0.0, []))
        assert found is not None
        expected = np.median(points, axis=0) if constant.median else points.mean(axis=0)
        np.testing.assert_allclose(found.mean, np.broadcast_to(expected, found.mean.shape))
        off = np.sort(np.abs(points - expected), axis=0)
        rank = int(np.ceil(0.9 * (len(known) + 1) - 1e-9)) - 1
        np.testing.assert_allclose(found.high[0], np.minimum(expected + off[rank], 100))
    hidden = Training(data, situation.training.models, np.arange(len(data.benchmarks)) > 0)
    alone = CONSTANTS[0].predict(hidden, situation.test._replace(targets=np.array([0])), Budget(0.0, []))
    assert alone is not None
    np.testing.assert_allclose(alone.mean, points[:, 1:].mean())
    off = np.sort(np.abs(points[:, 1:] - points[:, 1:].mean()).ravel())
    rank = int(np.ceil(0.9 * (len(known) + 1) / len(known) * len(off) - 1e-9)) - 1  # one lineage more, not one score
    np.testing.assert_allclose(alone.high, np.minimum(points[:, 1:].mean() + off[min(rank, len(off) - 1)], 100))


def test_a_training_with_one_checkpoint_is_not_watched(tables: ZooTables) -> None:
    alone = tables.checkpoints["lineage"].iloc[0]
    gone = (tables.checkpoints["lineage"] == alone) & ~tables.checkpoints["final"]
    short = zoo_data(tables.only(tables.checkpoints["model"][~gone]))
    out = [alone, *(name for name in short.groups if name != alone)][:3]
    (watched,) = situations(short, Protocol(settings=("known_training",)), out)
    assert set(short.lineages[watched.test.models]) == set(out) - {alone}
    assert alone not in set(watched.training.groups)


def test_skill_is_found_where_it_is(data: ZooData) -> None:
    found = errors(data, MEAN, ANSWERS, CAUSAL)
    assert found["answers"] < 0.3 * found["mean"]
    assert found["causal"] < 0.8 * found["mean"]


def test_no_situation_shows_the_tested_lineage(data: ZooData) -> None:
    protocol = Protocol(n_folds=6)
    seen = set()
    for out in lineage_folds(data, 6, 0):
        for situation in situations(data, protocol, out):
            seen.add(situation.setting)
            trained, tested = situation.training.models, situation.test.models
            assert not set(trained) & set(tested)
            assert data.final[tested].all()
            shared = set(data.lineages[trained]) & set(data.lineages[tested])
            assert bool(shared) == (situation.setting == "known_training")
            if situation.setting == "new_benchmark":
                assert not situation.training.scored[situation.test.targets].any()
    assert seen == set(SETTINGS)


def test_every_lineage_is_left_out_once(data: ZooData) -> None:
    folds = lineage_folds(data, 6, 0)
    assert sorted(name for fold in folds for name in fold) == data.groups


@pytest.mark.parametrize(
    "method",
    [
        ANSWERS,
        AGREED,
        TwoViews("two views", FREE),
        LabelsCorrectAnswers("labels"),
        LabelsCorrectAnswers("labels and agreement", agreement=True),
        Direct("direct", True),
    ],
    ids=lambda one: one.name,
)
def test_scores_of_the_left_out_lineage_change_nothing(tables: ZooTables, data: ZooData, method: object) -> None:
    """Other scores of the tested lineage, and other labels of items that were not drawn, leave its predictions as they are."""
    out = lineage_folds(data, 6, 0)[0]
    budget = Budget(16.0, draw_items(data, 1, 0)[0])
    chosen = [set(order[:16].tolist()) for order in budget.items]
    tested = set(data.models[np.isin(data.lineages, out)])
    items = tables.items.copy()
    cells = []
    for row in items.to_dict("records"):
        correct = row["correct"].copy()
        if row["model"] in tested:
            keep = chosen[data.benchmarks.index(row["benchmark"])]
            correct[[i for i in range(len(correct)) if i not in keep]] ^= True
        cells.append(correct)
    items["correct"] = pd.Series(cells, dtype=object)
    scores = tables.scores.copy()
    for row, cell in zip(items.to_dict("records"), cells, strict=True):
        if row["condition"] == "clean":
            at = (scores["model"] == row["model"]) & (scores["benchmark"] == row["benchmark"])
            scores.loc[at, "score"] = float(cell.mean())
    other = zoo_data(with_frames(tables, items=items, scores=scores))
    for one in (data, other):
        assert one.evidence().blocks["own_answers"].shape == data.evidence().blocks["own_answers"].shape
    forecasts = []
    for world in (data, other):
        situation = next(iter(situations(world, NEW, out)))
        forecasts.append(method.predict(situation.training, situation.test, budget))  # type: ignore[attr-defined]
    np.testing.assert_allclose(forecasts[0].mean, forecasts[1].mean, atol=1e-9)
    np.testing.assert_allclose(forecasts[0].high, forecasts[1].high, atol=1e-9)


def shuffled(data: ZooData, block: str, seed: int) -> ZooData:
    """The same zoo with one block of evidence dealt to other lineages (whole lineages, checkpoint by checkpoint)."""
    table = data.evidence()
    random = np.random.default_rng(seed)
    order = np.arange(len(data.models)).reshape(-1, 3)[random.permutation(len(data.groups))].ravel()
    dealt = {name: values[order] if name == block else values for name, values in table.blocks.items()}
    other = type(table)(table.models, table.benchmarks, dealt, table.condition, table.n_prompts, table.heads)
    return data.replace_evidence({("clean", 256, -1): other})


@pytest.mark.parametrize("block", ["own_answers", "own_causal", "own_heads"])
def test_permuted_models_show_no_skill(data: ZooData, block: str) -> None:
    """Three deals: progress within a training stays (final ones are predicted), who is who does not."""
    gains = []
    for seed in range(3):
        found = errors(shuffled(data, block, seed), MEAN, Features("dealt", (block,)))
        gains.append(found["dealt"] / found["mean"])
    assert np.mean(gains) > 0.93


def test_answers_dealt_to_other_lineages_agree_about_nothing(data: ZooData) -> None:
    """Agreement of somebody else's answers says nothing of a model's score; that of its own does."""
    random = np.random.default_rng(1)
    gains = []
    for _ in range(2):
        order = np.arange(len(data.models)).reshape(-1, 3)[random.permutation(len(data.groups))].ravel()
        dealt = {condition: [said[order] for said in several] for condition, several in data.replies.items()}
        found = errors(replace(data, replies=dealt), MEAN, AGREED)
        gains.append(found["agreement"] / found["mean"])
    assert np.mean(gains) > 0.85
    assert errors(data, AGREED)["agreement"] < 0.4 * errors(data, MEAN)["mean"]


def test_random_labels_show_no_skill(tables: ZooTables) -> None:
    """Scores dealt to other lineages: no method without labels is better than the mean, and no permutation test is impressed."""
    random = np.random.default_rng(5)
    names = sorted(set(tables.checkpoints["lineage"]))
    dealt = dict(zip(names, random.permutation(names), strict=True))
    scores = tables.scores.copy()
    scores["model"] = [f"{dealt[name.rpartition('-')[0]]}-{name.rpartition('-')[2]}" for name in scores["model"]]
    world = zoo_data(with_frames(tables, scores=scores, items=tables.items.iloc[:0]))
    trials = run_trials(world, lambda setting: (MEAN, ANSWERS, CAUSAL, HEADS, AGREED), NEW)
    table = summary(trials[trials["stratum"] != "broken"]).set_index("method")
    for name in ("answers", "causal", "heads", "agreement"):
        assert table.loc[name, "error"] > 0.93 * table.loc["mean", "error"]
        assert table.loc[name, "p"] > 0.02
        assert table.loc[name, "r2"] < 0.1


def test_random_initialised_models_show_no_skill() -> None:
    """Untrained models: scores are chance and noise, evidence is noise; the protocol finds nothing."""
    tables = make_zoo(lineages=16, benchmarks=3, items=200, seed=3, skill=0.0)
    trials = run_trials(zoo_data(tables), lambda setting: (MEAN, ANSWERS, HEADS, CAUSAL), NEW)
    found = summary(trials[trials["stratum"] != "broken"]).set_index("method")
    for name in ("answers", "heads", "causal"):
        assert found.loc[name, "error"] > 0.85 * found.loc["mean", "error"]


def copied(tables: ZooTables, source: str, name: str, noise: bool = False) -> ZooTables:
    """The tables with one lineage standing twice under another name."""
    of = {m: m.replace(source, name) for m, line in tables.lineages.items() if line == source}
    frames = {}
    for table in TABLES:
        frame = getattr(tables, table)
        if "model" in frame.columns:
            twin = frame[frame["model"].isin(of)].copy()
            twin["model"] = [of[m] for m in twin["model"]]
            if "lineage" in twin.columns:
                twin["lineage"] = name
            if noise and table == "items":
                twin["confidence"] = [c * np.float32(1.0001) for c in twin["confidence"]]
            frame = pd.concat([frame, twin], ignore_index=True)
        frames[table] = frame
    return ZooTables(**frames)


@pytest.mark.parametrize("noise", [False, True])
def test_a_duplicated_lineage_is_noticed_and_counts_once(tables: ZooTables, noise: bool) -> None:
    world = zoo_data(copied(tables, "run-03", "stranger", noise))
    assert len(world.groups) == 24
    assert any("run-03" in note and "stranger" in note and "count as one" in note for note in world.notes)
    for fold in lineage_folds(world, 6, 0):
        left = set(world.models[np.isin(world.lineages, fold)])
        assert ("run-03-s2" in left) == ("stranger-s2" in left)


def test_a_duplicated_benchmark_is_left_out_with_its_twin(tables: ZooTables) -> None:
    frames = {}
    for name in TABLES:
        frame = getattr(tables, name)
        column = "benchmark" if "benchmark" in frame.columns else "task" if "task" in frame.columns else None
        if column:
            twin = frame[frame[column] == "suite_00"].assign(**{column: "copy"})
            frame = pd.concat([frame, twin], ignore_index=True)
        frames[name] = frame
    world = zoo_data(ZooTables(**frames))
    assert any("suite_00 and copy have the same scores" in note for note in world.notes)
    for situation in situations(world, Protocol(settings=("new_benchmark",)), world.groups[:2]):
        hidden = {world.benchmarks[t] for t in situation.test.targets}
        assert hidden == {"suite_00", "copy"} or not hidden & {"suite_00", "copy"}


def test_a_benchmark_with_one_value_is_left_out_by_name(tables: ZooTables) -> None:
    scores = tables.scores.copy()
    scores.loc[scores["benchmark"] == "suite_01", "score"] = 0.5
    world = zoo_data(with_frames(tables, scores=scores, items=tables.items[tables.items["benchmark"] != "suite_01"]))
    assert "suite_01" not in world.benchmarks
    assert any("suite_01" in note for note in world.notes)


def test_two_checkpoints_are_too_few(tables: ZooTables) -> None:
    with pytest.raises(VisualHeadsError, match="at least three separate lineages"):
        zoo_data(tables.only(["run-00-s2", "run-01-s2"]))


def test_repeats_are_neither_fitted_nor_tested() -> None:
    world = zoo_data(make_zoo(lineages=4, benchmarks=2, items=40, repeats=2))
    assert world.groups == ["run-00", "run-01", "run-02", "run-03"]
    assert any("run-00-repeat" in note for note in world.notes)


def test_missing_evidence_is_no_number(tables: ZooTables) -> None:
    """A checkpoint without own answers gets no prediction out of thin air in their place: the block counts as its mean."""
    answers = tables.answers[~tables.answers["model"].str.startswith("run-05")]
    world = zoo_data(with_frames(tables, answers=answers))
    rows = np.isin(world.lineages, ["run-05"])
    assert np.isnan(world.evidence().blocks["own_answers"][rows]).all()
    training = Training(world, np.flatnonzero(~rows), np.ones(4, dtype=bool))
    budget = Budget(768.0, [])
    assert ANSWERS.predict(training, m.Test(np.flatnonzero(rows), np.arange(4)), budget) is None


def test_direct_scoring_is_the_mean_of_the_drawn_items(data: ZooData) -> None:
    items = draw_items(data, 1, 0)[0]
    training = Training(data, np.arange(30), np.ones(4, dtype=bool))
    test = m.Test(np.array([40, 41]), np.array([1, 3]))
    found = Direct("direct").predict(training, test, Budget(16.0, items))
    assert found is not None
    for i, model in enumerate(test.models):
        for j, target in enumerate(test.targets):
            answers = data.items["clean"][target][0][model]
            expected = 100 * sum(answers[position] for position in items[target][:16]) / 16
            assert found.mean[i, j] == pytest.approx(expected)
    everything = Direct("direct").predict(training, test, Budget(200.0, items))
    assert everything is not None
    np.testing.assert_allclose(everything.mean, data.points["clean"][np.ix_(test.models, test.targets)], atol=1e-9)
    np.testing.assert_allclose(everything.high - everything.low, 0.0, atol=1e-9)


def test_raw_confidence_fits_nothing(data: ZooData) -> None:
    items = draw_items(data, 1, 0)[0]
    test = m.Test(np.array([40]), np.arange(4))
    means = [
        RawConfidence().predict(Training(data, np.arange(n), np.ones(4, dtype=bool)), test, Budget(32.0, items)).mean  # type: ignore[union-attr]
        for n in (12, 30)
    ]
    np.testing.assert_array_equal(means[0], means[1])


def test_labels_fall_back_to_direct_scoring_when_answers_mislead() -> None:
    """On the reference, answers are right within 2 points; a model for which they are 40 points off is corrected by its labels."""
    random = np.random.default_rng(0)
    score = random.uniform(0.3, 0.7, (60, 8))
    expected = score + random.normal(0, 0.02, score.shape)
    share = score + random.normal(0, 0.5 / np.sqrt(32), score.shape)
    far = np.full_like(score, 0.02)
    groups = np.repeat(np.arange(20), 3).astype(str)
    balance = learn_balance(score, Cells(expected, far, share, 32), groups, np.ones(60, dtype=bool))
    assert balance.noise == pytest.approx(1 / 32, rel=0.4)
    usual, _ = corrected(Cells(expected[:1], far[:1], share[:1], 32), balance)
    assert np.abs(usual - score[:1]).mean() < 0.6 * np.abs(share[:1] - score[:1]).mean()
    moved, std = corrected(Cells(np.full((1, 8), 0.2), far[:1], np.full((1, 8), 0.6), 32), balance)
    assert (moved > 0.5).all()
    assert (std > 0.02).all()


def test_luck_that_confidence_shares_with_labels_is_not_counted_twice() -> None:
    """The drawn items are easy for labels and confidence alike: expectation and share agree, and both are too high."""
    random = np.random.default_rng(1)
    score = random.uniform(0.3, 0.7, (90, 8))
    luck = random.normal(0, 0.05, score.shape)
    expected = score + luck + random.normal(0, 0.01, score.shape)
    share = score + luck + random.normal(0, 0.05, score.shape)
    groups = np.repeat(np.arange(30), 3).astype(str)
    cells = Cells(expected, np.full_like(score, 0.05), share, 32)
    balance = learn_balance(score, cells, groups, np.ones(90, dtype=bool))
    mean, std = corrected(cells, balance)
    assert np.abs(mean - score).mean() == pytest.approx(np.abs(luck).mean(), rel=0.1)
    inside = np.abs(mean - score) <= balance.quantile * std
    assert inside.mean() == pytest.approx(0.9, abs=0.05)


def test_spread_is_conformal_over_lineages() -> None:
    residuals = np.arange(1.0, 21.0)[:, None]
    found = Spread.of(residuals, np.arange(20).astype(str))
    assert found.quantile * found.scale[0] == pytest.approx(19.0)
    few = Spread.of(residuals[:5], np.arange(5).astype(str))
    assert few.quantile > 2.1


def test_summary_equals_a_slow_twin(data: ZooData) -> None:
    trials = run_trials(data, lambda setting: (ANSWERS,), NEW)
    row = summary(trials).iloc[0]
    per = []
    for lineage in sorted(set(trials["lineage"])):
        part = trials[trials["lineage"] == lineage]
        per.append(sum(abs(a - p) for a, p in zip(part["actual"], part["predicted"], strict=True)) / len(part))
    assert row["error"] == pytest.approx(sum(per) / len(per))
    inside = [(low <= a <= high) for a, low, high in zip(trials["actual"], trials["low"], trials["high"], strict=True)]
    assert row["coverage"] == pytest.approx(np.mean(inside))
    assert row["regret"] == pytest.approx(metrics.regret(matrix(trials, "actual"), matrix(trials, "predicted")))


def test_differences_are_paired_by_lineage(data: ZooData) -> None:
    trials = run_trials(data, lambda setting: (MEAN, ANSWERS), NEW)
    found = differences(trials, [(("answers", None), ("mean", None))], ["new_lineage"]).iloc[0]
    a, b = (lineage_errors(trials, "new_lineage", name) for name in ("answers", "mean"))
    assert found["difference"] == pytest.approx(float((a - b).mean()))
    assert found["low"] < found["difference"] < found["high"] < 0
    assert found["better_on"] == int((a < b).sum())


def test_the_next_checkpoint_builds_on_the_last_score(data: ZooData) -> None:
    protocol = Protocol(settings=("known_training",), n_folds=6, draws=1)
    found = errors(
        data, MEAN, NextCheckpoint("last"), NextCheckpoint("answers too", ("own_answers",)), protocol=protocol
    )
    assert found["last"] < 0.4 * found["mean"]
    assert found["answers too"] < found["last"]
    assert errors(data, MEAN)["mean"] > found["last"]


def test_every_method_of_the_catalogue_speaks_in_every_setting(data: ZooData) -> None:
    few = Protocol(n_folds=6, draws=1)
    budget = draw_items(data, 1, 0)[0]
    spoke: dict[str, set[str]] = {}
    for situation in situations(data, few, lineage_folds(data, 6, 0)[0]):
        for method in methods_of(situation.setting):
            passes = method.budgets(data)[-1]
            forecast = method.predict(situation.training, situation.test, Budget(passes, budget))
            if forecast is not None:
                spoke.setdefault(situation.setting, set()).add(method.name)
                assert np.isfinite(forecast.mean).all()
                assert (forecast.low <= forecast.mean + 1e-9).all()
                assert (forecast.mean <= forecast.high + 1e-9).all()
                assert (forecast.low >= 0).all()
                assert (forecast.high <= 100).all()
    assert spoke["new_lineage"] == {method.name for method in methods_of("new_lineage")}
    assert spoke["known_training"] == {method.name for method in methods_of("known_training")}
    assert {"own answers", "raw confidence", "direct scoring"} <= spoke["shift_corrupted"]
