"""What is known beside the heads: own prompts, labelled items, measured scores, in one Gaussian; files; the commands."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from lab.tables import as_product
from lmms_visual_heads.cli import app
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.features.measurements import Measurements, answer_means, read_checkpoints, read_measurements
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.gaussian_update import Known, condition_on, observed, residual_correlation
from lmms_visual_heads.prediction.labelled_items import LabelledItems
from lmms_visual_heads.prediction.methods import METHOD_WORDS, METHODS, has_evidence, method_named
from lmms_visual_heads.schema import CAUSAL_SUFFIX, PREDICTION_COLUMNS
from lmms_visual_heads.tables import (
    SCORE_COLUMNS,
    AnswerTable,
    AnswerTableWriter,
    CausalTableWriter,
    HeadTableWriter,
    write_scores,
)
from tests.builders import synthetic
from tests.builders.paths import SAMPLES
from tests.builders.zoo import make_zoo

PROMPTS = 60
SAMPLE = SAMPLES / "predictor_1.skops"


class Run:
    """A synthetic world whose models also answered prompts of every benchmark; scores follow the answers, not the heads."""

    def __init__(self, lineages: int = 8, per: int = 2, seed: int = 0) -> None:
        self.heads = synthetic.world(lineages, per, relation="none", seed=seed)
        random = np.random.default_rng(seed)
        self.answers: list[AnswerTable] = []
        self.right: dict[tuple[str, str], np.ndarray] = {}
        rows = []
        skills: dict[str, np.ndarray] = {}
        for table in self.heads.tables:
            name = table.model
            lineage = self.heads.lineages[name]
            common = skills.setdefault(lineage, random.normal(0.5, 1.0) + random.normal(0, 0.5, 3))
            parts = []
            for benchmark, skill in zip(synthetic.BENCHMARKS, common + random.normal(0, 0.1, 3), strict=True):
                chance = expit(skill + random.normal(0, 1.0, 1000))
                right = (random.random(1000) < chance).astype(float)
                self.right[name, benchmark] = right
                rows.append((name, benchmark, "exact_match", 1.0, float(right.mean()), 1000, "synthetic"))
                parts.append(answer_rows(benchmark, chance[:PROMPTS]))
            self.answers.append(AnswerTable.from_frame(pd.concat(parts, ignore_index=True), answered(table.metadata)))
        self.scores = pd.DataFrame(rows, columns=[c.name for c in SCORE_COLUMNS])
        self.profiles = HeadProfiles.from_tables(self.heads.tables)
        self.measured = Measurements.of_tables(self.answers)
        self.lineages = self.heads.lineages
        self.new = [name for name in self.profiles.models if f"lineage{lineages - 1}" in name]
        self.old = sorted(set(self.profiles.models) - set(self.new))

    def items(self, models: list[str], n: int, benchmarks: tuple[str, ...] = synthetic.BENCHMARKS) -> pd.DataFrame:
        """The first `n` items of every benchmark, labelled."""
        cells = [(m, b, d, self.right[m, b][d]) for m in models for b in benchmarks for d in range(n)]
        frame = pd.DataFrame(cells, columns=["model", "benchmark", "doc_id", "correct"])
        return frame.astype({"doc_id": "int32", "correct": "float32"})

    def actual(self, frame: pd.DataFrame) -> np.ndarray:
        """Points behind the rows of a prediction."""
        scores = 100 * self.scores.set_index(["model", "benchmark"])["score"]
        return scores.loc[list(zip(frame["model"], frame["benchmark"], strict=True))].to_numpy()


def answered(metadata: Any) -> dict[str, Any]:
    """Metadata of an answer table over the benchmarks."""
    tasks = {
        b: {
            "fingerprint": f"{n + 50:064x}",
            "n_documents": PROMPTS,
            "cost": {"ordinary": {"flops": 10**6 * PROMPTS * (n + 1)}},
        }
        for n, b in enumerate(synthetic.BENCHMARKS)
    }
    return {**metadata, "tasks": tasks}


def answer_rows(task: str, confidence: np.ndarray) -> pd.DataFrame:
    n = len(confidence)
    high = np.maximum(confidence, 1 - confidence).astype(np.float32)
    return pd.DataFrame(
        {
            "task": task, "doc_id": np.arange(n), "item_id": None, "n_images": 1, "n_visual_tokens": 16, "n_prompt_tokens": 30,
            "n_answer_tokens": 2, "answer_token_index": 0, "confidence": confidence.astype(np.float32),
            "answer_entropy": -(high * np.log(high) + (1 - high) * np.log1p(-high)), "answer_log_probability": -0.1,
            "top_tokens": [[d % 4, 4] for d in range(n)], "top_probabilities": [[float(h), float(1 - h)] for h in high],
            "swap_kl": np.nan, "blank_kl": np.nan,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


@pytest.fixture(scope="module")
def fitted(run: Run) -> BenchmarkPredictor:
    return BenchmarkPredictor().fit(
        run.profiles.only(run.old), run.scores, run.lineages, run.measured, run.items(run.old, PROMPTS)
    )


class TestSituations:
    def test_own_prompts_are_used_where_they_are_there(self, run: Run, fitted: BenchmarkPredictor) -> None:
        new = run.profiles.only(run.new)
        heads, answers = fitted.predict(new), fitted.predict(new, measured=run.measured)
        assert list(answers.columns) == list(PREDICTION_COLUMNS)
        assert set(heads["method"]) <= {"mean", "probe_heads"}
        assert all(method_named(name).own_prompts for name in answers["method"])
        actual = run.actual(answers)
        assert np.abs(answers["predicted"] - actual).mean() < 0.6 * np.abs(heads["predicted"] - actual).mean()
        assert (answers["high"] - answers["low"]).mean() < (heads["high"] - heads["low"]).mean()

    def test_every_method_was_judged_beside_the_mean(self, fitted: BenchmarkPredictor) -> None:
        frame = fitted.methods_
        assert frame.groupby("benchmark")["chosen"].sum().eq(1).all()
        assert set(frame["method"]) <= set(METHOD_WORDS)
        chosen = frame[frame["chosen"]]
        assert all(method_named(name).own_prompts for name in chosen["method"])
        assert (chosen["error"] < chosen["baseline_error"]).all()
        assert (fitted.errors_["error"] < fitted.errors_["baseline_error"]).all()
        json.dumps(fitted.describe(), allow_nan=False)
        assert fitted.describe()["own_prompts"] == dict.fromkeys(sorted(synthetic.BENCHMARKS), PROMPTS)

    def test_fewer_prompts_are_flagged_and_wider(self, run: Run, fitted: BenchmarkPredictor) -> None:
        few = Measurements.of_tables(
            AnswerTable.from_frame(t.frame[t.frame["doc_id"] < 8], few_documents(t.metadata, 8)) for t in run.answers
        )
        new = run.profiles.only(run.new)
        frame, full = fitted.predict(new, measured=few), fitted.predict(new, measured=run.measured)
        assert frame["flags"].str.contains("fewer_prompts").all()
        assert ((frame["high"] - frame["low"]) >= (full["high"] - full["low"]) - 1e-9).mean() > 0.8

    def test_answers_far_outside_are_flagged_and_wider(self, run: Run, fitted: BenchmarkPredictor) -> None:
        wild = replace(
            run.measured, answers=run.measured.answers.assign(confidence=0.001, entropy=9.0, information=9.0)
        )
        new = run.profiles.only(run.new)
        frame, plain = fitted.predict(new, measured=wild), fitted.predict(new, measured=run.measured)
        assert frame["flags"].str.contains("outside_training_range").all()
        assert (frame["high"] - frame["low"] > plain["high"] - plain["low"]).all()

    def test_labels_move_the_prediction_and_are_said(self, run: Run, fitted: BenchmarkPredictor) -> None:
        new = run.profiles.only(run.new)
        items = run.items(run.new, 32, ("scenes_color",))
        frame = fitted.predict(new, measured=run.measured, items=items).set_index(["model", "benchmark"])
        row = frame.loc[(run.new[0], "scenes_color")]
        assert row["method"].endswith("+32 labels")
        assert "labelled" in row["flags"].split(";")
        assert row["low"] <= row["predicted"] <= row["high"]
        assert "labelled" not in frame.loc[(run.new[0], "scenes_digit"), "flags"].split(";")
        alone = fitted.predict(new, items=items).set_index(["model", "benchmark"])
        assert alone.loc[(run.new[0], "scenes_color"), "method"].endswith("+32 labels")
        everything = fitted.predict(new, measured=run.measured, items=run.items(run.new, PROMPTS))
        actual = run.actual(everything)
        assert np.abs(everything["predicted"] - actual).mean() < 5
        assert np.abs(everything["predicted"] - actual).mean() < np.abs(everything["baseline"] - actual).mean()

    def test_an_interval_holds_a_perfect_score_where_all_labels_are_right(
        self, run: Run, fitted: BenchmarkPredictor
    ) -> None:
        new = run.profiles.only(run.new)
        perfect = run.items(run.new, 48).assign(correct=1.0)
        frame = fitted.predict(new, measured=run.measured, items=perfect)
        assert (frame["high"] == 100.0).all()
        assert (frame["low"] > 50).all()
        none = fitted.predict(new, measured=run.measured, items=perfect.assign(correct=0.0))
        assert (none["low"] == 0.0).all()

    def test_labels_that_contradict_the_prediction_are_flagged(self, run: Run, fitted: BenchmarkPredictor) -> None:
        new = run.profiles.only(run.new[:1])
        wrong = run.items(run.new[:1], PROMPTS).assign(correct=0.0)
        frame = fitted.predict(new, measured=run.measured, items=wrong)
        assert frame["flags"].str.contains("labels_contradict").all()
        assert (frame["predicted"] < 25).all()

    def test_a_known_score_stands_and_the_others_keep_their_intervals(
        self, run: Run, fitted: BenchmarkPredictor
    ) -> None:
        known = run.scores[run.scores["benchmark"] == "scenes_color"]
        new = run.profiles.only(run.new)
        frame = fitted.predict(new, known=known, measured=run.measured).set_index(["model", "benchmark"])
        assert set(frame.xs("scenes_color", level="benchmark")["flags"]) == {"known"}
        rest = frame.drop("scenes_color", level="benchmark")
        assert rest[["predicted", "low", "high", "baseline"]].notna().all(axis=None)
        assert (rest["low"] <= rest["predicted"]).all()

    def test_models_of_the_fit_get_their_left_out_prediction(self, run: Run, fitted: BenchmarkPredictor) -> None:
        one = run.profiles.only(run.old[:1])
        frame = fitted.predict(one, measured=run.measured)
        left_out = fitted.evaluation_[fitted.evaluation_["model"] == run.old[0]].set_index("benchmark")
        np.testing.assert_array_equal(frame["predicted"], left_out.loc[frame["benchmark"], "predicted"])
        without = fitted.predict(one)
        assert without["flags"].str.contains("in_training").all()

    def test_random_answers_give_the_mean_and_say_so(self, run: Run) -> None:
        random = np.random.default_rng(0)
        shuffled = run.measured.answers.copy()
        order = random.permutation(len(shuffled))
        names = ["confidence", "entropy", "information"]
        shuffled[names] = shuffled[names].to_numpy()[order]
        predictor = BenchmarkPredictor().fit(
            run.profiles.only(run.old), run.scores, run.lineages, replace(run.measured, answers=shuffled)
        )
        assert predictor.errors_["error"].sum() > 0.8 * predictor.errors_["baseline_error"].sum()
        assert predictor.predict(run.profiles.only(run.new))["flags"].str.contains("no_better_than_baseline").any()


def few_documents(metadata: Any, n: int) -> dict[str, Any]:
    tasks = {name: {**about, "n_documents": n, "fingerprint": "other"} for name, about in metadata["tasks"].items()}
    return {**metadata, "tasks": tasks}


class TestBadInput:
    def labels(self, run: Run, fitted: BenchmarkPredictor, items: pd.DataFrame) -> pd.DataFrame:
        return fitted.predict(run.profiles.only(run.new), measured=run.measured, items=items)

    def test_labels_that_contradict_the_ids(self, run: Run, fitted: BenchmarkPredictor) -> None:
        items = run.items(run.new, 20, ("scenes_color",))
        with pytest.raises(
            VisualHeadsError, match=r"the answer table of .* does not have, the first 1000 \(it has 60 documents"
        ):
            self.labels(run, fitted, items.assign(doc_id=items["doc_id"] + 1000))
        with pytest.raises(VisualHeadsError, match=r"has two for runs/lineage7-step0\. Keep one run's samples file"):
            self.labels(run, fitted, pd.concat([items, items.head(1).assign(correct=1 - items["correct"].iloc[0])]))
        with pytest.raises(VisualHeadsError, match=r"benchmark that was fitted \(scenes_color, .*they are of pope"):
            self.labels(run, fitted, items.assign(benchmark="pope"))
        with pytest.raises(VisualHeadsError, match=r"whose heads are given .*they are of somebody"):
            self.labels(run, fitted, items.assign(model="somebody"))
        with pytest.raises(VisualHeadsError, match=r"Labels must lie in 0\.\.1"):
            self.labels(run, fitted, items.assign(correct=50.0))
        with pytest.raises(VisualHeadsError, match="need the columns correct"):
            self.labels(run, fitted, items.drop(columns="correct"))

    def test_other_prompts_under_the_same_name(self, run: Run, fitted: BenchmarkPredictor) -> None:
        other = replace(run.measured, fingerprints={key: ("ff", PROMPTS) for key in run.measured.fingerprints})
        new = run.profiles.only(run.new)
        with pytest.raises(VisualHeadsError, match=r"answered other data of scenes_color \(another fingerprint\)"):
            fitted.predict(new, measured=other)
        assert fitted.predict(new, measured=other, force=True)["flags"].str.contains("forced:other_probe").all()
        mixed = {**run.measured.fingerprints, (run.old[1], "scenes_digit"): ("ff", PROMPTS)}
        with pytest.raises(VisualHeadsError, match="have different fingerprints of scenes_digit"):
            BenchmarkPredictor().fit(
                run.profiles.only(run.old), run.scores, run.lineages, replace(run.measured, fingerprints=mixed)
            )

    def test_infinite_answers(self, run: Run) -> None:
        with pytest.raises(
            VisualHeadsError, match="Features must be finite or missing; the answers hold an infinite one"
        ):
            replace(run.measured, answers=run.measured.answers.assign(swap_kl=np.inf))

    def test_checkpoints(self, tmp_path: Path) -> None:
        with pytest.raises(VisualHeadsError, match="No such table of checkpoints"):
            read_checkpoints(tmp_path / "none.csv")
        for text, words in (
            ("name,training_loss\na,1\n", "needs the column model, each name once"),
            ("model,training_loss\na,1\na,2\n", "needs the column model, each name once"),
            ("model,training_loss\na,low\n", "Column 'training_loss' of .* must hold numbers"),
            ("model,training_loss\na,inf\n", "training_loss of .* holds an infinite one"),
        ):
            (tmp_path / "c.csv").write_text(text)
            with pytest.raises(VisualHeadsError, match=words):
                read_checkpoints(tmp_path / "c.csv")


class TestConditioning:
    def test_equals_the_inverse(self) -> None:
        random = np.random.default_rng(0)
        root = random.normal(size=(4, 4))
        correlation = root @ root.T + np.eye(4)
        scale = np.sqrt(np.diag(correlation))
        correlation = correlation / scale / scale[:, None]
        mean, std = random.uniform(40, 60, 4), random.uniform(3, 8, 4)
        known = {"b": Known(70.0, 4.0), "d": Known(30.0, 0.0)}
        found = condition_on("abcd", mean, std, correlation, known, {}, {}, 0.9, {})
        prior = correlation * std * std[:, None]
        at = [1, 3]
        inner = prior[np.ix_(at, at)] + np.diag([4.0, 0.0])
        expected = mean + prior[:, at] @ np.linalg.solve(inner, np.array([70.0, 30.0]) - mean[at])
        np.testing.assert_allclose(found.belief.mean, np.clip(expected, 0, 100))
        np.testing.assert_allclose(
            found.belief.covariance, prior - prior[:, at] @ np.linalg.solve(inner, prior[at]), atol=1e-9
        )
        assert found.surprise > 1
        assert observed(mean, prior, 0, 99.0, np.inf)[0] is mean

    def test_labels_of_one_benchmark_move_the_related_one(self) -> None:
        correlation = np.array([[1.0, 0.9], [0.9, 1.0]])
        labelled = {"a": LabelledItems.of([1.0] * 40)}
        found = condition_on(
            "ab", np.array([50.0, 50.0]), np.array([10.0, 10.0]), correlation, {}, labelled, {}, 0.9, {}
        )
        assert found.labels["a"].mean > 75
        assert found.belief.mean[1] > 65
        alone = condition_on("ab", np.array([50.0, 50.0]), np.array([10.0, 10.0]), np.eye(2), {}, labelled, {}, 0.9, {})
        assert alone.belief.mean[1] == 50

    def test_correlations_are_used_where_left_out_lineages_ask_for_them(self) -> None:
        random = np.random.default_rng(0)
        blocks = np.array(list("abcd"))
        lineages = np.repeat(np.arange(20), 2)
        shared = np.repeat(random.normal(size=(20, 1)), 2, axis=0)
        related = 5 * (shared + 0.4 * random.normal(size=(40, 4)))
        found = residual_correlation(related, lineages, blocks)
        assert found[~np.eye(4, dtype=bool)].min() > 0.4
        related[:5, 2] = np.nan
        assert residual_correlation(related, lineages, blocks)[0, 2] > 0.3
        unrelated = np.repeat(random.normal(size=(20, 4)), 2, axis=0)
        np.testing.assert_array_equal(residual_correlation(unrelated, lineages, blocks), np.eye(4))
        np.testing.assert_array_equal(residual_correlation(related[:8], lineages[:8], blocks), np.eye(4))


class TestDeclared:
    def test_names_are_unique_and_have_words(self) -> None:
        assert len({method.name for method in METHODS}) == len(METHODS) == len(METHOD_WORDS) - 1
        with pytest.raises(VisualHeadsError, match="Methods are probe_heads"):
            method_named("magic")

    def test_evidence_needs_a_number_of_every_block(self) -> None:
        values = np.array([[1.0, np.nan, 2.0], [1.0, np.nan, np.nan]])
        names = ("own_answers.confidence", "own_answers.entropy", "probe_heads.attention_mean")
        assert has_evidence(values, names).tolist() == [True, False]

    def test_answer_means(self) -> None:
        frame = answer_rows("x", np.full(8, 0.75))
        means = answer_means(frame)
        assert means["confidence"] == pytest.approx(0.75)
        # four answers in turn, each with 0.75: H(mean) - mean H over 0.1875 x 4 and 0.25
        p = np.array([0.1875] * 4 + [0.25])
        assert means["information"] == pytest.approx(-(p * np.log(p)).sum() + 0.75 * np.log(0.75) + 0.25 * np.log(0.25))
        assert np.isnan(means["swap_kl"])
        assert np.isnan(answer_means(frame.assign(top_tokens=None, top_probabilities=None))["information"])


class TestFiles:
    def test_what_is_read_predicts_the_same(self, run: Run, fitted: BenchmarkPredictor, tmp_path: Path) -> None:
        again = BenchmarkPredictor.load(fitted.save(tmp_path / "p.skops"))
        new = run.profiles.only(run.new)
        given: dict[str, Any] = {"measured": run.measured, "items": run.items(run.new, 16, ("scenes_color",))}
        pd.testing.assert_frame_equal(again.predict(new, **given), fitted.predict(new, **given), check_exact=True)
        pd.testing.assert_frame_equal(again.methods_, fitted.methods_, check_exact=True)
        assert again.describe() == fitted.describe()
        assert again.maps_ == fitted.maps_

    def test_a_file_of_the_first_version_still_predicts_what_it_did(self) -> None:
        made = synthetic.world(5, 2, seed=4)
        profiles = HeadProfiles.from_tables(made.tables)
        new = profiles.only([m for m in profiles.models if "lineage4" in m])
        old = BenchmarkPredictor.load(SAMPLE)
        frame = old.predict(new)
        expected = pd.read_csv(SAMPLE.with_suffix(".csv"), keep_default_na=False)
        pd.testing.assert_frame_equal(frame[list(expected.columns)], expected)
        assert set(frame["method"]) == {"probe_heads"}
        known = made.scores[made.scores["benchmark"] == "scenes_color"]
        assert (old.predict(new, known=known)["flags"] == "known").sum() == 2

    def test_a_file_of_the_second_version_still_predicts_what_it_did(self) -> None:
        """Every kind of estimator, votes and confidence maps, written when the classes lay elsewhere."""
        zoo = make_zoo(lineages=13, benchmarks=2, items=48, seed=5)
        zoo = zoo.only(zoo.checkpoints["model"][zoo.checkpoints["final"]])
        new = sorted(set(zoo.checkpoints["lineage"]))[:2]
        fresh = zoo.only(zoo.checkpoints["model"][zoo.checkpoints["lineage"].isin(new)])
        measurements = as_product.measurements(fresh)
        old = BenchmarkPredictor.load(SAMPLES / "predictor_2.skops")
        used = {name for methods in old.models_.values() for name in methods}
        assert used == {"probe_heads", "own_answers_curve", "own_agreement", "own_agreement_trees"}
        assert set(old.maps_) == set(old.votes_) == {"suite_00", "suite_01"}
        first = fresh.scores[fresh.scores["benchmark"] == fresh.scores["benchmark"].iloc[0]]
        frames = [
            old.predict(measurements, known_scores=known).assign(known=known is not None) for known in (None, first)
        ]
        expected = pd.read_csv(SAMPLES / "predictor_2.csv", keep_default_na=False)
        pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True)[list(expected.columns)], expected)
        for benchmark, methods in old.models_.items():
            for name, fitted in methods.items():
                low, high = np.nan_to_num(fitted.low), np.nan_to_num(fitted.high)
                assert np.isfinite(fitted.model.predict(((low + high) / 2)[None])).all(), (benchmark, name)


def typed(*arguments: str | Path) -> tuple[str, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


class TestCommands:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """What five trainings and a new one leave on disk."""
        root = tmp_path
        made = Run(6, 1, seed=3)
        for heads, answers in zip(made.heads.tables, made.answers, strict=True):
            place = root / ("new" if heads.model in made.new else "heads")
            stem = heads.model.replace("/", "__")
            with HeadTableWriter(place / f"{stem}.heads.parquet", heads.metadata) as writer:
                writer.append(heads.frame)
            with AnswerTableWriter(place / f"{stem}.answers.parquet", answers.metadata) as table:
                table.append(answers.frame)
            with CausalTableWriter(place / f"{stem}{CAUSAL_SUFFIX}", answers.metadata) as cuts:
                for document in range(3):
                    cuts.add("scenes_color", document, all=0.5, layers=[0.1, 0.2], heads=np.full((2, 2), 0.1))
            logs = root / "logs" / stem
            logs.mkdir(parents=True)
            lines = [
                json.dumps({"doc_id": d, "exact_match": made.right[heads.model, "scenes_color"][d]}) for d in range(24)
            ]
            (logs / "20260101_120000_samples_scenes_color.jsonl").write_text("\n".join(lines))
        write_scores(made.scores, root / "scores.csv")
        named = "\n".join(["model,lineage", *(f"{m},{lineage}" for m, lineage in made.lineages.items())])
        (root / "lineages.csv").write_text(named)
        return root

    def test_from_tables_to_a_plan(self, folder: Path) -> None:
        measured = read_measurements(folder / "heads")
        assert measured.causal["kl"].round(4).isin([0.5, 0.1, 0.2]).all()
        assert read_measurements([*folder.glob("new/*.heads.parquet")]).answers["n_prompts"].tolist() == [PROMPTS] * 3
        assert read_measurements([*folder.glob("new/*.answers.parquet")]).answers["n_prompts"].tolist() == [PROMPTS] * 3
        assert measured.item_flops[measured.answers["model"].iloc[0], "scenes_color"] > 0
        out, _ = typed(
            "fit", "--heads", folder / "heads", "--scores", folder / "scores.csv", "--lineages", folder / "lineages.csv",
            "--out", folder / "p.skops",
        )  # fmt: skip
        assert "own_" in out
        assert "predicted from the" in out
        new = folder / "new"
        out, err = typed(
            "predict", folder / "p.skops", "--heads", new, "--items", folder / "logs" / "runs__lineage5-step0"
        )
        assert "+24 labels" in out
        assert "24 labelled items" in err
        assert "their number alone leaves" in err
        rows = pd.read_csv(io.StringIO(typed("predict", folder / "p.skops", "--heads", new, "--format", "csv")[0]))
        assert list(rows.columns) == list(PREDICTION_COLUMNS)
        arguments = ("plan", "--predictor", folder / "p.skops", "--heads", new, "--budget", "64", "--format", "csv")
        before = pd.read_csv(io.StringIO(typed(*arguments)[0]))
        known = pd.read_csv(folder / "scores.csv")
        known[(known["model"] == "runs/lineage5-step0") & (known["benchmark"] == "scenes_digit")].to_csv(
            folder / "known.csv", index=False
        )
        after = pd.read_csv(io.StringIO(typed(*arguments, "--known", folder / "known.csv")[0]))
        labelled = pd.read_csv(io.StringIO(typed(*arguments, "--items", folder / "logs" / "runs__lineage5-step0")[0]))
        assert after["error_before"].iloc[0] < before["error_before"].iloc[0]
        assert labelled["error_before"].iloc[0] < before["error_before"].iloc[0]
        assert "scenes_digit" not in set(after["benchmark"])
        labels = folder / "logs" / "runs__lineage5-step0"
        records = json.loads(typed("estimate", "--heads", new, "--items", labels, "--format", "json")[0])
        assert [(row["labels"], row["unlabelled"]) for row in records] == [(24, PROMPTS - 24)]
        assert records[0]["low"] <= records[0]["estimate"] <= records[0]["high"]
        assert "interval is exact" in typed("estimate", "--heads", new, "--items", labels)[0]
        with pytest.raises(VisualHeadsError, match="head or answer tables is required"):
            typed("estimate", "--heads", folder / "logs", "--items", labels)
        with pytest.raises(VisualHeadsError, match="--items needs --heads"):
            typed("plan", "--predictor", folder / "p.skops", "--items", folder / "logs")
