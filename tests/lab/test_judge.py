"""The judge: its numbers are those of a slow twin, nobody sees what is to be predicted, what is finished is not made again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from lab.study import judge as judging
from lab.study.baselines import Constant, DirectScoring, ItemResponseScoring
from lab.study.contestants import PRODUCT, Contestant, UnexaminedPredictor, contestants
from lab.study.judge import JUDGED_COLUMNS, Sets, Shelf, judge, judge_all, shown, trainings
from lab.study.run import write_study
from lab.study.settings import OWN, Fit, Subjects, Trial, finals, plan, training_folds, trials
from lab.study.summary import differences, primary, summary
from lab.tables import as_product
from lab.tables.zoo import TABLES, ZooTables, write_zoo_tables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.schema import PREDICTION_COLUMNS
from tests.builders.zoo import make_zoo


class Spy:
    """Says what the name of a model makes it say, and keeps what it was given."""

    seen: ClassVar[list[tuple[str, Any]]] = []

    def fit(self, measurements: Any, scores: pd.DataFrame, *, groups: Any = None, items: Any = None) -> Spy:
        self.names = sorted(set(scores["benchmark"]))
        Spy.seen.append(("fit", (measurements, scores, groups, items)))
        return self

    def predict(self, measurements: Any, *, known_scores: Any = None, items: Any = None) -> pd.DataFrame:
        Spy.seen.append(("predict", (measurements, known_scores, items)))
        rows = [
            (model, name, says(model, name), says(model, name) - 9, says(model, name) + 9, 0.9, 50.0, "", "spy")
            for model in measurements.models
            for name in self.names
        ]
        return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))


def says(model: str, benchmark: str) -> float:
    return float(sum(map(ord, model + benchmark)) % 83)


def always(trial: Trial) -> bool:
    return True


def labelled(trial: Trial) -> bool:
    return trial.labels > 0


def unlabelled(trial: Trial) -> bool:
    return not trial.labels


SPY = Contestant("spy", Spy, always)
FEW = (
    SPY,
    Contestant("mean", Constant, unlabelled),
    Contestant("direct", DirectScoring, labelled),
    Contestant("item response", ItemResponseScoring, labelled, reference_items=True),
)


@pytest.fixture(scope="module")
def zoo() -> ZooTables:
    return make_zoo(lineages=12, benchmarks=3, items=256, layers=1, heads=2)


@pytest.fixture(scope="module")
def folder(zoo: ZooTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judge")
    write_zoo_tables(zoo, root / "zoo")
    write_zoo_tables(make_zoo(lineages=4, seed=7, prefix="new", benchmarks=3, items=256), root / "new")
    return root


def with_frames(zoo: ZooTables, **frames: pd.DataFrame) -> ZooTables:
    return ZooTables(**{name: frames.get(name, getattr(zoo, name)) for name in TABLES})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    shape: dict[str, Any] = {"benchmarks": 2, "items": 256, "layers": 1, "heads": 2}
    write_zoo_tables(make_zoo(lineages=4, **shape), root / "zoo")
    write_zoo_tables(make_zoo(lineages=2, seed=7, prefix="new", **shape), root / "new")
    return root


def everything(folder: Path, work: Path, everyone: tuple[Contestant, ...] = FEW, **options: Any) -> pd.DataFrame:
    sets = Sets((folder / "zoo",), (("new", folder / "new"),))
    groups, _ = trainings(sets)
    fits = plan(sets.tables(OWN), {"new": sets.tables("new")}, groups=groups)
    return judge_all(sets, fits, everyone, groups.to_dict(), work, **options)


def test_numbers_are_those_of_a_slow_twin(folder: Path, zoo: ZooTables, tmp_path: Path) -> None:
    judged = everything(folder, tmp_path)
    assert tuple(judged.columns) == JUDGED_COLUMNS
    table = summary(primary(judged)).set_index(["set", "setting", "prompts", "labels", "contestant"])
    row = table.loc[(OWN, "new_training", 256, 16, "spy")]
    strata = dict(zip(zoo.checkpoints["model"], zoo.checkpoints["stratum"], strict=True))
    errors: dict[str, list[float]] = {}
    inside: dict[str, list[bool]] = {}
    learnt = []
    for score in zoo.scores.to_dict("records"):
        model, benchmark = score["model"], score["benchmark"]
        about = zoo.benchmarks[zoo.benchmarks["benchmark"] == benchmark].iloc[0]
        if model not in finals(zoo) or strata[model] == "broken" or about["counting"]:
            continue
        error = abs(100 * score["score"] - says(model, benchmark))
        errors.setdefault(zoo.lineages[model], []).append(error)
        inside.setdefault(zoo.lineages[model], []).append(error <= 9)
        if 100 * score["score"] > 100 * about["chance"] + 5:
            learnt.append(error)
    means = np.array([np.mean(errors[name]) for name in sorted(errors)])
    assert row["mae"] == pytest.approx(means.mean())
    assert row["n_trainings"] == len(errors)
    assert row["n_cells"] == sum(map(len, errors.values()))
    assert row["mae_learnt"] == pytest.approx(np.mean(learnt))
    assert row["coverage"] == pytest.approx(np.mean([np.mean(part) for part in inside.values()]))
    random = np.random.default_rng(0)
    drawn = sorted(np.mean([means[i] for i in random.integers(0, len(means), len(means))]) for _ in range(2000))
    assert row["mae_low"] == pytest.approx(drawn[50], abs=0.3 * means.std())
    assert row["mae_high"] == pytest.approx(drawn[1950], abs=0.3 * means.std())
    both = differences(primary(judged), [("spy", "mean")])
    both = both[(both["set"] == OWN) & (both["setting"] == "new_training")].iloc[0]
    assert both["difference"] == pytest.approx(both["mae"] - both["mae_beside"])
    assert both["mae"] == pytest.approx(means.mean())


def test_plan_leaves_every_training_out_once(zoo: ZooTables) -> None:
    fits = plan(zoo, {})
    assert sorted(name for fold in training_folds(list(zoo.checkpoints["lineage"]), 4) for name in fold) == sorted(
        set(zoo.checkpoints["lineage"])
    )
    asked = [model for fit in fits if fit.name.startswith("fold") for model in fit.asked[0].models]
    assert sorted(asked) == sorted(finals(zoo))
    for fit in fits:
        references, models = set(fit.references), set(fit.asked[0].models)
        assert not references & models
        shared = {zoo.lineages[name] for name in references} & {zoo.lineages[name] for name in models}
        assert bool(shared) == fit.name.startswith("known")
    points = zoo.scores.groupby("model")["score"].mean()
    (stronger,) = (fit for fit in fits if fit.name == "weaker half")
    assert (
        points[list(stronger.asked[0].models)].min()
        > points[[m for m in stronger.references if m in finals(zoo)]].max()
    )


def test_copies_are_left_out_together(zoo: ZooTables) -> None:
    joined = pd.Series({model: "run-00" if run == "run-05" else run for model, run in zoo.lineages.items()})
    for fit in plan(zoo, {}, groups=joined):
        if fit.name.startswith("fold"):
            assert ("run-00-s2" in fit.references) == ("run-05-s0" in fit.references)


def test_nobody_is_shown_a_score_or_a_label_that_was_not_bought(zoo: ZooTables) -> None:
    Spy.seen.clear()
    fit = next(iter(plan(zoo, {})))
    judge(fit, SPY, Shelf(lambda name: zoo), zoo.lineages)
    (_, (references, scores, groups, items)), *predicts = Spy.seen
    models = set(fit.asked[0].models)
    assert items is None
    for given in (references.models, scores["model"], groups):
        assert set(given) == set(fit.references)
    asked = [trial for trial in fit.asked[0].trials]
    assert len(predicts) == len(asked) == len(trials())
    for trial, (_, (measurements, known_scores, items)) in zip(asked, predicts, strict=True):
        assert known_scores is None
        assert set(measurements.models) == models
        assert not {"stratum", "hidden_temperature"} & set(measurements.checkpoints.columns)
        if not trial.labels:
            assert items is None
            continue
        assert set(items["doc_id"]) == set(trial.doc_ids.tolist())
        assert len(items) == len(models) * 3 * trial.labels
        assert max(trial.doc_ids) < trial.prompts


def test_scores_of_asked_checkpoints_change_no_prediction(zoo: ZooTables) -> None:
    """The product and every baseline say the same when scores, and labels that were not bought, are turned round."""
    fit = replace(plan(zoo, {})[0], asked=())
    models = tuple(name for name in finals(zoo) if name not in fit.references)
    bought = Trial("new_training", labels=16)
    fit = replace(fit, asked=(Subjects(OWN, models, (Trial("new_training"), bought)),))
    correct = [
        cell if model not in models else np.where(np.isin(np.arange(len(cell)), bought.doc_ids), cell, ~cell)
        for model, cell in zip(zoo.items["model"], zoo.items["correct"], strict=True)
    ]
    items = zoo.items.assign(correct=pd.Series(correct, dtype=object))
    clean = items[items["condition"] == "clean"]
    means = {
        (m, b): cell.mean() for m, b, cell in zip(clean["model"], clean["benchmark"], clean["correct"], strict=True)
    }
    scores = zoo.scores.assign(
        score=[means[m, b] for m, b in zip(zoo.scores["model"], zoo.scores["benchmark"], strict=True)]
    )
    answers = zoo.answers.copy()
    answers.loc[answers["task"].isin(zoo.benchmarks["benchmark"]) & answers["model"].isin(models), "accuracy"] = 0.5
    turned = with_frames(zoo, items=items, scores=scores, answers=answers)
    for contestant in (
        c for c in contestants(zoo.benchmarks) if not c.alone and any(map(c.answers, fit.asked[0].trials))
    ):
        before, after = (
            judge(fit, contestant, Shelf(lambda name, one=one: one), zoo.lineages) for one in (zoo, turned)
        )
        columns = ["setting", "labels", "model", "benchmark", "predicted", "low", "high", "method"]
        pd.testing.assert_frame_equal(before[columns], after[columns])
        assert before.empty or not np.allclose(before["actual"], after["actual"])


def test_labels_are_drawn_from_the_answered_prompts(zoo: ZooTables) -> None:
    first, second = (Trial("new_training", labels=16, draw=draw).doc_ids for draw in (0, 1))
    assert len(set(first.tolist())) == 16
    assert set(first.tolist()) != set(second.tolist())
    assert set(first.tolist()) < set(Trial("new_training", labels=32).doc_ids.tolist())
    assert Trial("equal_cost", 64, 64).doc_ids.tolist() == list(range(64))
    measurements, items = shown(zoo.only(finals(zoo)), Trial("equal_cost", 64, 64))
    assert items is not None
    assert {len(series) for series in measurements.prompts.values()} == {64}


def test_a_shift_is_asked_under_its_condition(zoo: ZooTables) -> None:
    hot, clean = (as_product.measurements(zoo, condition) for condition in ("temperature", "clean"))
    key = next(iter(clean.prompts))
    assert not np.allclose(hot.prompts[key], clean.prompts[key])
    assert hot.replies[key].equals(clean.replies[key])
    assert set(hot.causal["task"]) < set(clean.causal["task"])
    corrupted = judging.actual(zoo, "corrupted").set_index(["model", "benchmark"])["actual"]
    expected = zoo.scores_corrupted.set_index(["model", "benchmark"])["score"] * 100
    assert len(corrupted) == len(expected)
    np.testing.assert_allclose(corrupted, expected.reindex(corrupted.index))


def test_what_is_finished_is_not_made_again_and_the_table_is_the_same(small: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, of: int) -> None:
        if done == 5:
            raise Stopped

    def study(out: Path, work: Path, **options: Any) -> dict[str, bytes]:
        everyone = (product, FEW[1], FEW[3])
        write_study([small / "zoo"], out, {"new": small / "new"}, work=work, everyone=everyone, command="c", **options)
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    product = Contestant(PRODUCT, partial(Constant, "median"), always)
    with pytest.raises(Stopped):
        study(tmp_path / "a", tmp_path / "work", progress=stop)
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert len(first) == 5
    told: list[tuple[int, int]] = []
    resumed = study(tmp_path / "a", tmp_path / "work", progress=lambda *step: told.append(step))
    assert told[0][0] == 5
    assert told[-1][0] == told[-1][1] == len(list((tmp_path / "work").iterdir()))
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert first.items() <= again.items()
    whole = study(tmp_path / "b", tmp_path / "other", jobs=2)
    assert resumed == whole
    assert {"README.md", "summary.csv", "differences.csv", "predictions.csv", "labels.svg"} <= set(whole)
    page, table = whole["README.md"].decode(), pd.read_csv(tmp_path / "b" / "summary.csv")
    row = table[(table["set"] == "new") & (table["labels"] == 32) & (table["contestant"] == "item response")].iloc[0]
    assert f"{row['mae']:.1f} [{row['mae_low']:.1f}, {row['mae_high']:.1f}]" in page


def test_other_inputs_and_settings_have_other_digests(folder: Path, zoo: ZooTables, tmp_path: Path) -> None:
    fit = plan(zoo, {})[0]
    sets = Sets((folder / "zoo",), (("new", folder / "new"),))
    ground = [sets.digest(), judging.code_digest(SPY)]
    own = judging._digest(ground, fit, SPY, zoo.lineages)
    assert own == judging._digest(ground, fit, SPY, zoo.lineages)
    others = [
        judging._digest([Sets((folder / "new",)).digest(), ground[1]], fit, SPY, zoo.lineages),
        judging._digest([ground[0], "other code"], fit, SPY, zoo.lineages),
        judging._digest(ground, replace(fit, references=fit.references[1:]), SPY, zoo.lineages),
        judging._digest(ground, replace(fit, asked=()), SPY, zoo.lineages),
        judging._digest(ground, fit, FEW[1], zoo.lineages),
        judging._digest(ground, fit, SPY, {**zoo.lineages, fit.references[0]: "another"}),
    ]
    assert len({own, *others}) == 7
    codes = {c.name: judging.code_digest(c) for c in contestants(zoo.benchmarks)}
    assert codes["mean"] == codes["item response"] != codes[PRODUCT] == codes["probe_heads"]


def test_a_held_out_set_with_a_studied_training_is_refused(zoo: ZooTables, folder: Path, tmp_path: Path) -> None:
    for name, tables, words in (
        ("same", make_zoo(lineages=2, seed=3, benchmarks=3, items=256), "lineages of their own; run-00"),
        (
            "copies",
            make_zoo(lineages=12, prefix="other", benchmarks=3, items=256),
            "hold copies of studied checkpoints",
        ),
        ("fewer", make_zoo(lineages=2, seed=5, prefix="x", benchmarks=2, items=256), "need the same benchmarks"),
    ):
        write_zoo_tables(tables, tmp_path / name)
        with pytest.raises(VisualHeadsError, match=words):
            trainings(Sets((folder / "zoo",), ((name, tmp_path / name),)))
    few = zoo.only(name for name, run in zoo.lineages.items() if run < "run-02")
    write_zoo_tables(few, tmp_path / "few")
    with pytest.raises(VisualHeadsError, match="at least three separate trainings"):
        write_study([tmp_path / "few"], tmp_path / "out", work=tmp_path / "work", everyone=FEW)


def test_contestants_are_asked_what_they_can_answer(zoo: ZooTables) -> None:
    everyone = {c.name: c for c in contestants(zoo.benchmarks)}
    assert everyone[PRODUCT].answers(Trial("equal_cost", 16, 16))
    assert not everyone["mean"].answers(Trial("new_training", labels=16))
    assert not everyone["direct"].answers(Trial("new_training"))
    assert not everyone["last score"].answers(Trial("new_training"))
    assert everyone["own_causal"].answers(Trial("new_training"))
    assert not everyone["own_causal"].answers(Trial("new_training", labels=16))
    assert isinstance(Fit("x", (), ()).alone, bool)


def test_the_judged_product_predicts_what_the_product_does(zoo: ZooTables) -> None:
    """Bit for bit, without labels and with them, for models that were not fitted; only flags may differ."""
    new = zoo.only(name for name, run in zoo.lineages.items() if run >= "run-10")
    known = zoo.only(name for name, run in zoo.lineages.items() if run < "run-10")
    pairs = []
    for kind in (BenchmarkPredictor, UnexaminedPredictor):
        names = ("probe_heads", "own_answers_free", "own_answers_curve", "own_agreement_trees")
        fitted = kind(methods=names).fit(as_product.measurements(known), known.scores, groups=known.lineages)
        measurements, labels = shown(new, Trial("new_training", labels=16))
        pairs.append([fitted.predict(measurements, items=items).drop(columns="flags") for items in (None, labels)])
    for one, other in zip(*pairs, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
