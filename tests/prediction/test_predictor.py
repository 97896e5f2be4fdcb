"""`BenchmarkPredictor`: what it predicts, what it refuses and with which words, and its file."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles, Measurements
from lmms_visual_heads.prediction import FLAG_WORDS, BenchmarkPredictor
from lmms_visual_heads.prediction.serialization import PREDICTOR_VERSION
from lmms_visual_heads.schema import PREDICTION_COLUMNS
from tests.builders import synthetic


@pytest.fixture(scope="module")
def made() -> synthetic.World:
    return synthetic.world(8, 2, seed=9)


@pytest.fixture(scope="module")
def profiles(made: synthetic.World) -> HeadProfiles:
    return HeadProfiles.from_tables(made.tables)


@pytest.fixture(scope="module")
def new(profiles: HeadProfiles) -> HeadProfiles:
    """The heads of a lineage that was not fitted on."""
    return profiles.only([name for name in profiles.models if "lineage7" in name])


@pytest.fixture(scope="module")
def old(profiles: HeadProfiles, new: HeadProfiles) -> HeadProfiles:
    return profiles.only(set(profiles.models) - set(new.models))


@pytest.fixture(scope="module")
def fitted(made: synthetic.World, old: HeadProfiles) -> BenchmarkPredictor:
    return BenchmarkPredictor().fit(Measurements(heads=old), made.scores, groups=made.lineages)


@pytest.fixture(scope="module")
def path(fitted: BenchmarkPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted.save(tmp_path_factory.mktemp("predictor") / "predictor.skops")


def changed(profiles: HeadProfiles, **changes: Any) -> HeadProfiles:
    """The same heads with other metadata; keys of the model's description go there."""
    documents = {}
    for name, document in profiles.metadata_by_model.items():
        model = {**document["model"], **{k: v for k, v in changes.items() if k in document["model"]}}
        documents[name] = {**document, **{k: v for k, v in changes.items() if k not in model}, "model": model}
    return HeadProfiles(profiles.frame, documents)


def flags_of(frame: pd.DataFrame) -> set[str]:
    return {flag for cell in frame["flags"] for flag in cell.split(";") if flag}


class TestPredicting:
    def test_a_planted_relation_is_predicted_better_than_by_the_mean(
        self, fitted: BenchmarkPredictor, made: synthetic.World, new: HeadProfiles
    ) -> None:
        frame = fitted.predict(Measurements(heads=new))
        assert list(frame.columns) == list(PREDICTION_COLUMNS)
        actual = made.scores.set_index(["model", "benchmark"])["score"] * 100
        actual = actual.loc[list(zip(frame["model"], frame["benchmark"], strict=True))].to_numpy()
        assert np.abs(frame["predicted"] - actual).mean() < 0.5 * np.abs(frame["baseline"] - actual).mean()
        assert (frame["level"] == 0.9).all()
        assert ((frame["low"] <= frame["predicted"]) & (frame["predicted"] <= frame["high"])).all()
        assert ((frame["low"] >= 0) & (frame["high"] <= 100)).all()
        assert (fitted.errors_["error"] < 0.5 * fitted.errors_["baseline_error"]).all()
        assert flags_of(frame) == {"few_lineages"}

    def test_every_number_is_in_points_whatever_the_scale(
        self, made: synthetic.World, old: HeadProfiles, new: HeadProfiles
    ) -> None:
        scaled = made.scores.assign(score=made.scores["score"] * 2800, scale=2800.0)
        one = (
            BenchmarkPredictor()
            .fit(Measurements(heads=old), made.scores, groups=made.lineages)
            .predict(Measurements(heads=new))
        )
        other = (
            BenchmarkPredictor()
            .fit(Measurements(heads=old), scaled, groups=made.lineages)
            .predict(Measurements(heads=new))
        )
        np.testing.assert_allclose(one["predicted"], other["predicted"], rtol=1e-6)

    def test_baseline_is_the_mean_of_the_other_trainings(
        self, made: synthetic.World, old: HeadProfiles, new: HeadProfiles
    ) -> None:
        predictor = BenchmarkPredictor().fit(Measurements(heads=old), made.scores, groups=made.lineages)
        scores = made.scores[made.scores["model"].isin(old.models)]
        by_lineage = (
            scores.assign(lineage=scores["model"].map(made.lineages)).groupby(["benchmark", "lineage"])["score"].mean()
        )
        expected = 100 * by_lineage.groupby("benchmark").mean()
        found = predictor.predict(Measurements(heads=new)).groupby("benchmark")["baseline"].first()
        np.testing.assert_allclose(found, expected.loc[found.index])
        own = predictor.evaluation_.query("lineage == 'lineage2'").groupby("benchmark")["baseline"].first()
        without = 100 * by_lineage.drop("lineage2", level="lineage").groupby("benchmark").mean()
        np.testing.assert_allclose(own, without.loc[own.index])

    def test_evaluation_and_errors(self, fitted: BenchmarkPredictor, old: HeadProfiles) -> None:
        names = ["model", "lineage", "benchmark", "actual", "predicted", "low", "high", "baseline", "method"]
        assert list(fitted.evaluation_.columns) == names
        assert len(fitted.evaluation_) == len(old.models) * 3
        assert fitted.evaluation_.notna().all(axis=None)
        assert fitted.errors_["n_models"].tolist() == [14] * 3
        assert fitted.errors_["n_lineages"].tolist() == [7] * 3

    def test_order_of_models_and_rows_does_not_matter(
        self, made: synthetic.World, old: HeadProfiles, new: HeadProfiles
    ) -> None:
        shuffled = HeadProfiles(old.frame.sample(frac=1, random_state=0), dict(reversed(old.metadata_by_model.items())))
        scores = made.scores.sample(frac=1, random_state=0)
        one = (
            BenchmarkPredictor()
            .fit(Measurements(heads=old), made.scores, groups=made.lineages)
            .predict(Measurements(heads=new))
        )
        other = (
            BenchmarkPredictor()
            .fit(Measurements(heads=shuffled), scores, groups=made.lineages)
            .predict(Measurements(heads=new))
        )
        pd.testing.assert_frame_equal(one, other)

    def test_a_copy_of_a_checkpoint_in_its_lineage_adds_nothing(
        self, made: synthetic.World, old: HeadProfiles, new: HeadProfiles
    ) -> None:
        name = old.models[0]
        twin = old.only([name])
        twin = HeadProfiles(twin.frame.assign(model="copy"), {"copy": _renamed(twin.metadata_by_model[name], "copy")})
        only_first = old.only([m for m in old.models if m.endswith("step0")])
        scores = pd.concat([made.scores, made.scores[made.scores["model"] == name].assign(model="copy")])
        lineages = {**made.lineages, "copy": made.lineages[name]}
        plain = BenchmarkPredictor().fit(Measurements(heads=only_first), made.scores, groups=lineages)
        more = BenchmarkPredictor().fit(
            Measurements(heads=HeadProfiles.join([only_first, twin])), scores, groups=lineages
        )
        columns = ["predicted", "low", "high", "baseline"]
        np.testing.assert_allclose(
            more.predict(Measurements(heads=new))[columns], plain.predict(Measurements(heads=new))[columns], rtol=1e-6
        )
        np.testing.assert_allclose(more.errors_["error"], plain.errors_["error"], rtol=1e-6)

    def test_no_relation_is_said(self) -> None:
        made = synthetic.world(8, 2, relation="none", seed=3)
        predictor = BenchmarkPredictor().fit(
            Measurements(heads=HeadProfiles.from_tables(made.tables)), made.scores, groups=made.lineages
        )
        worse = predictor.errors_[predictor.errors_["error"] >= predictor.errors_["baseline_error"]]["benchmark"]
        assert len(worse)
        frame = predictor.predict(Measurements(heads=HeadProfiles.from_tables(made.tables[:1])))
        flagged = frame[frame["flags"].str.contains("no_better_than_baseline")]["benchmark"]
        assert set(flagged) == set(worse)

    def test_models_of_the_fit_get_their_left_out_prediction(
        self, fitted: BenchmarkPredictor, old: HeadProfiles
    ) -> None:
        frame = fitted.predict(Measurements(heads=old.only(old.models[:1])))
        left_out = fitted.evaluation_[fitted.evaluation_["model"] == old.models[0]]
        np.testing.assert_array_equal(frame["predicted"], left_out["predicted"])
        assert "in_training" in flags_of(frame)

    def test_known_scores_stand_in_the_place_of_predictions(
        self, fitted: BenchmarkPredictor, made: synthetic.World, new: HeadProfiles
    ) -> None:
        known = made.scores[made.scores["benchmark"] == "scenes_color"]
        frame = fitted.predict(Measurements(heads=new), known_scores=known).set_index(["benchmark", "model"])
        row = frame.loc[("scenes_color", new.models[0])]
        actual = 100 * known.set_index("model").loc[new.models[0], "score"]
        assert row["predicted"] == pytest.approx(actual)
        assert row["flags"] == "known"
        assert 1 < row["high"] - row["low"] < 6
        assert "known" not in frame.loc[("scenes_digit", new.models[0]), "flags"]
        with pytest.raises(VisualHeadsError, match="Known scores must be in the fitted metric"):
            fitted.predict(Measurements(heads=new), known_scores=known.assign(metric="f1"))

    def test_other_scikit_learn_estimators_do_as_well(
        self, made: synthetic.World, old: HeadProfiles, new: HeadProfiles
    ) -> None:
        predictor = BenchmarkPredictor(
            make_pipeline(SimpleImputer(), Ridge()), level=0.8, features=["attention_mean", "region_lift_mean"]
        )
        frame = predictor.fit(Measurements(heads=old), made.scores, groups=made.lineages).predict(
            Measurements(heads=new)
        )
        assert (frame["level"] == 0.8).all()
        assert predictor.describe()["features"] == ["attention_mean", "region_lift_mean"]

    def test_parameters_stay_as_given(self) -> None:
        predictor = BenchmarkPredictor(level=0.5, size_factor=2.0)
        assert clone(predictor).get_params() == predictor.get_params()


def _renamed(document: Any, name: str) -> dict[str, Any]:
    return {**document, "model": {**document["model"], "name": name}}


class TestWorlds:
    @pytest.mark.parametrize(
        ("changes", "words", "flag"),
        [
            ({"query": "last_prompt"}, "read at last_prompt, not first_generated", "forced:other_query"),
            (
                {"language_model_parameters": 7_000_000_000},
                "7,000,000,000 parameters, the fitted ones 100,000 to 160,000",
                "forced:other_size",
            ),
            ({"language_model_parameters": 30_000}, "30,000 parameters", "forced:other_size"),
            (
                {"tasks": {task: {"fingerprint": "ff", "n_documents": 6} for task in synthetic.TASKS}},
                "data of vhead_general have another fingerprint",
                "forced:other_probe",
            ),
        ],
    )
    def test_heads_from_another_world_are_refused_unless_forced(
        self, fitted: BenchmarkPredictor, new: HeadProfiles, changes: dict[str, Any], words: str, flag: str
    ) -> None:
        other = changed(new, **changes)
        with pytest.raises(VisualHeadsError, match=words) as caught:
            fitted.predict(Measurements(heads=other))
        assert "use --force (every row is then flagged)" in str(caught.value)
        assert all(flag in cell.split(";") for cell in fitted.predict(Measurements(heads=other), force=True)["flags"])

    @pytest.mark.parametrize(
        ("changes", "flag"),
        [
            ({"dtype": "bfloat16"}, "different_dtype"),
            ({"image_processor": "torchvision"}, "different_image_processor"),
            ({"language_model_parameters": None}, "unknown_size"),
            ({"language_model_parameters": 40_000}, None),
        ],
    )
    def test_smaller_differences_are_flagged(
        self, fitted: BenchmarkPredictor, new: HeadProfiles, changes: dict[str, Any], flag: str | None
    ) -> None:
        assert flags_of(fitted.predict(Measurements(heads=changed(new, **changes)))) == {
            "few_lineages",
            *([flag] if flag else []),
        }

    def test_fewer_documents(self, fitted: BenchmarkPredictor, new: HeadProfiles) -> None:
        fewer = HeadProfiles(new.frame.assign(n_documents=2), new.metadata_by_model)
        assert "fewer_documents" in flags_of(fitted.predict(Measurements(heads=fewer)))

    def test_a_missing_task_cannot_be_forced(self, fitted: BenchmarkPredictor, new: HeadProfiles) -> None:
        less = HeadProfiles(new.frame[new.frame["task"] != "vhead_obj"], new.metadata_by_model)
        with pytest.raises(VisualHeadsError, match=r"has none on vhead_obj\. Run lmms-eval --model visual_heads_llava"):
            fitted.predict(Measurements(heads=less), force=True)

    def test_missing_features_are_flagged(self, fitted: BenchmarkPredictor, new: HeadProfiles) -> None:
        blind = HeadProfiles(new.frame.assign(region_lift=np.nan), new.metadata_by_model)
        frame = fitted.predict(Measurements(heads=blind))
        assert "missing_features" in flags_of(frame)
        assert frame[["predicted", "low", "high"]].notna().all(axis=None)

    def test_far_outside_is_flagged_and_wider(self, fitted: BenchmarkPredictor, new: HeadProfiles) -> None:
        far = HeadProfiles(new.frame.assign(region_lift=25.0), new.metadata_by_model)
        frame, plain = fitted.predict(Measurements(heads=far)), fitted.predict(Measurements(heads=new))
        assert "outside_training_range" in flags_of(frame)
        assert ((frame["high"] - frame["low"]) > (plain["high"] - plain["low"])).all()

    def test_every_flag_has_words(self) -> None:
        assert all(" " in words for words in FLAG_WORDS.values())

    def test_describe_says_what_it_was_fitted_on(self, fitted: BenchmarkPredictor, old: HeadProfiles) -> None:
        described = fitted.describe()
        json.dumps(described, allow_nan=False)
        assert described["models"] == old.models
        assert described["n_lineages"] == 7
        assert described["query"] == "first_generated"
        assert set(described["probe"]) == set(synthetic.TASKS)
        assert described["language_model_parameters"] == [100_000, 160_000]
        assert {"benchmark", "metric", "scale", "error", "baseline_error"} <= set(described["benchmarks"][0])


class TestBadInput:
    def fit(self, made: synthetic.World, heads: Any, scores: pd.DataFrame | None = None) -> BenchmarkPredictor:
        return BenchmarkPredictor().fit(
            Measurements(heads=heads), made.scores if scores is None else scores, groups=made.lineages
        )

    def test_two_checkpoints(self, made: synthetic.World, old: HeadProfiles) -> None:
        with pytest.raises(
            VisualHeadsError, match=r"A fit needs at least 3 checkpoints with heads and scores, .*; 2 came"
        ):
            self.fit(made, old.only(old.models[:2]))
        with pytest.raises(VisualHeadsError, match="no name stands in both tables"):
            self.fit(made, old, made.scores.assign(model=made.scores["model"] + "x"))

    def test_models_without_scores_and_scores_without_heads_are_named(
        self, made: synthetic.World, old: HeadProfiles, new: HeadProfiles
    ) -> None:
        scores = made.scores[made.scores["model"] != old.models[0]]
        predictor = self.fit(made, old, scores)
        assert f"Left out 1 models with heads but no scores: {old.models[0]}." in predictor.notes_
        assert f"Left out 2 models with scores but no heads: {', '.join(new.models)}." in predictor.notes_

    def test_a_benchmark_known_for_two_is_left_out_and_named(self, made: synthetic.World, old: HeadProfiles) -> None:
        rare = (made.scores["benchmark"] == "scenes_digit") & ~made.scores["model"].isin(old.models[:2])
        predictor = self.fit(made, old, made.scores[~rare])
        assert predictor.benchmarks_["benchmark"].tolist() == ["scenes_color", "scenes_existence"]
        assert any("Left out benchmark scenes_digit: it is known for 2" in note for note in predictor.notes_)
        with pytest.raises(VisualHeadsError, match="at least one benchmark that can be fitted; none is left"):
            self.fit(
                made, old, made.scores[~rare & (made.scores["benchmark"] == "scenes_digit")].pipe(_with_a_third, old)
            )

    def test_one_value_only(self, made: synthetic.World, old: HeadProfiles) -> None:
        scores = made.scores.copy()
        scores.loc[scores["benchmark"] == "scenes_color", "score"] = 0.5
        assert any("scenes_color: every checkpoint scores 0.5" in note for note in self.fit(made, old, scores).notes_)

    def test_without_lineages_it_says_what_that_means(self, made: synthetic.World, old: HeadProfiles) -> None:
        said = "every checkpoint counts as a separate training"
        assert any(said in note for note in BenchmarkPredictor().fit(Measurements(heads=old), made.scores).notes_)
        assert not any(said in note for note in self.fit(made, old).notes_)

    def test_one_training_only(self, made: synthetic.World, old: HeadProfiles) -> None:
        with pytest.raises(VisualHeadsError, match="come from one training"):
            BenchmarkPredictor().fit(Measurements(heads=old), made.scores, groups=dict.fromkeys(old.models, "one"))

    def test_one_model_twice_with_different_scores(self, made: synthetic.World, old: HeadProfiles) -> None:
        with pytest.raises(VisualHeadsError, match="one score per benchmark"):
            self.fit(made, old, pd.concat([made.scores, made.scores.head(1).assign(score=0.123)]))

    def test_fractions_beside_percent(self, made: synthetic.World, old: HeadProfiles) -> None:
        scores = made.scores.drop(columns=["scale"]).copy()
        scores.loc[scores["model"].isin(old.models[3:]), "score"] *= 100
        with pytest.raises(VisualHeadsError, match="fraction beside percent"):
            self.fit(made, old, scores)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"query": "last_prompt"}, "All models of a fit need one query; .* has last_prompt"),
            (
                {"tasks": {t: {"fingerprint": "ff"} for t in synthetic.TASKS}},
                "must be probed on the same data; .* different fingerprints",
            ),
        ],
    )
    def test_different_queries_or_data(
        self, made: synthetic.World, old: HeadProfiles, changes: dict[str, Any], words: str
    ) -> None:
        last = old.models[-1]
        mixed = HeadProfiles.join([old.only(set(old.models) - {last}), changed(old.only([last]), **changes)])
        with pytest.raises(VisualHeadsError, match=words):
            self.fit(made, mixed)

    def test_the_probe_itself_is_not_predicted(self, made: synthetic.World, old: HeadProfiles) -> None:
        scores = pd.concat(
            [made.scores, made.scores[made.scores["benchmark"] == "scenes_color"].assign(benchmark="vhead_super")]
        )
        predictor = self.fit(made, old, scores)
        assert "vhead_super" not in set(predictor.benchmarks_["benchmark"])
        assert any("Left out benchmark vhead_super: the heads come from it" in note for note in predictor.notes_)

    def test_heads_without_metadata_are_refused(
        self, made: synthetic.World, fitted: BenchmarkPredictor, old: HeadProfiles
    ) -> None:
        with pytest.raises(
            VisualHeadsError, match="Measurements, or paths of head tables, are required; a DataFrame came"
        ):
            fitted.predict(old.frame)  # type: ignore[arg-type]
        with pytest.raises(VisualHeadsError, match="at least one model are required; none came"):
            fitted.predict([])
        pd.testing.assert_frame_equal(
            fitted.predict(made.tables[-1]), fitted.predict([HeadProfiles.from_tables(made.tables[-1:])])
        )

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"level": 1.5}, "level must lie"),
            ({"size_factor": 0}, "size_factor must be"),
            ({"features": ["x"]}, "unknown: x"),
        ],
    )
    def test_parameters(self, made: synthetic.World, old: HeadProfiles, parameters: dict[str, Any], words: str) -> None:
        with pytest.raises(VisualHeadsError, match=words):
            BenchmarkPredictor(**parameters).fit(Measurements(heads=old), made.scores)


def _with_a_third(scores: pd.DataFrame, old: HeadProfiles) -> pd.DataFrame:
    """Another benchmark that two other models are known for: three models in all, no benchmark with three."""
    other = scores.assign(benchmark="other", model=[old.models[1], old.models[2]])
    return pd.concat([scores, other])


class TestFile:
    def test_what_is_read_predicts_the_same(
        self, path: Path, fitted: BenchmarkPredictor, profiles: HeadProfiles
    ) -> None:
        again = BenchmarkPredictor.load(path)
        pd.testing.assert_frame_equal(
            again.predict(Measurements(heads=profiles)), fitted.predict(Measurements(heads=profiles)), check_exact=True
        )
        pd.testing.assert_frame_equal(again.evaluation_, fitted.evaluation_, check_exact=True)
        pd.testing.assert_frame_equal(again.errors_, fitted.errors_, check_exact=True)
        assert again.describe() == fitted.describe()
        assert again.get_params() == fitted.get_params()

    def test_the_same_fit_writes_the_same_numbers(
        self, path: Path, made: synthetic.World, old: HeadProfiles, tmp_path: Path
    ) -> None:
        other = (
            BenchmarkPredictor()
            .fit(Measurements(heads=old), made.scores, groups=made.lineages)
            .save(tmp_path / "again.skops")
        )
        with zipfile.ZipFile(path) as one, zipfile.ZipFile(other) as two:
            assert one.read("predictor.json") == two.read("predictor.json")

    def test_no_pickle_inside(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            assert sorted(archive.namelist()) == ["estimators.skops", "manifest.json", "predictor.json"]
            with zipfile.ZipFile(io.BytesIO(archive.read("estimators.skops"))) as inner:
                assert {Path(name).suffix for name in inner.namelist()} <= {".json", ".npy"}

    def rewrite(self, path: Path, target: Path, change: Callable[[dict[str, bytes]], None], seal: bool = False) -> Path:
        """A changed copy; `seal` makes the checksums fit again, as somebody who means harm would."""
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        change(content)
        if seal:
            manifest = json.loads(content["manifest.json"])
            manifest["sha256"] = {n: hashlib.sha256(d).hexdigest() for n, d in content.items() if n != "manifest.json"}
            content["manifest.json"] = json.dumps(manifest).encode()
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return target

    def test_newer_files_are_refused_by_name(self, path: Path, tmp_path: Path) -> None:
        def newer(content: dict[str, bytes]) -> None:
            content["manifest.json"] = json.dumps(
                {**json.loads(content["manifest.json"]), "schema_version": PREDICTOR_VERSION + 1}
            ).encode()

        target = self.rewrite(path, tmp_path / "new.skops", newer)
        with pytest.raises(
            VisualHeadsError, match=rf"new\.skops has version {PREDICTOR_VERSION + 1}\. Upgrade with: pip install"
        ):
            BenchmarkPredictor.load(target)

    @pytest.mark.parametrize("name", ["predictor.json", "estimators.skops"])
    def test_changed_files_are_refused(self, path: Path, tmp_path: Path, name: str) -> None:
        def change(content: dict[str, bytes]) -> None:
            content[name] = content[name].replace(b"lineage0", b"lineage9") + b" "

        with pytest.raises(
            VisualHeadsError, match=f"was changed after it was written: {name} does not fit its checksum"
        ):
            BenchmarkPredictor.load(self.rewrite(path, tmp_path / "x.skops", change))

    def test_parts_that_do_not_belong_together_are_refused_even_with_good_checksums(
        self, path: Path, tmp_path: Path
    ) -> None:
        def rename(content: dict[str, bytes]) -> None:
            content["predictor.json"] = content["predictor.json"].replace(b"scenes_color", b"scenes_colour")

        with pytest.raises(VisualHeadsError, match="its parts do not fit together"):
            BenchmarkPredictor.load(self.rewrite(path, tmp_path / "x.skops", rename, seal=True))

        def fewer_features(content: dict[str, bytes]) -> None:
            document = json.loads(content["predictor.json"])
            del document["frames"]["features_"]["columns"]["attention_mean"]
            content["predictor.json"] = json.dumps(document).encode()

        with pytest.raises(VisualHeadsError, match="numbers of features differ"):
            BenchmarkPredictor.load(self.rewrite(path, tmp_path / "y.skops", fewer_features, seal=True))

    def test_foreign_types_are_never_built(
        self, path: Path, tmp_path: Path, made: synthetic.World, old: HeadProfiles
    ) -> None:
        import skops.io

        harm = skops.io.dumps({"template": None, "models": FunctionTransformer(func=print)})

        def plant(content: dict[str, bytes]) -> None:
            content["estimators.skops"] = harm

        with pytest.raises(VisualHeadsError, match="holds types that are not trusted"):
            BenchmarkPredictor.load(self.rewrite(path, tmp_path / "x.skops", plant, seal=True))

        def garbage(content: dict[str, bytes]) -> None:
            content["estimators.skops"] = b"not a zip"

        with pytest.raises(VisualHeadsError, match="its estimators cannot be built"):
            BenchmarkPredictor.load(self.rewrite(path, tmp_path / "y.skops", garbage, seal=True))
        strange = make_pipeline(FunctionTransformer(func=np.nan_to_num), DummyRegressor())
        with pytest.raises(
            VisualHeadsError, match=r"may hold scikit-learn estimators only; this one holds numpy\.nan_to_num"
        ):
            BenchmarkPredictor(strange).fit(Measurements(heads=old), made.scores, groups=made.lineages).save(
                tmp_path / "z.skops"
            )

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04rest"])
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(
            VisualHeadsError, match=r"A predictor written by visual-heads fit is required; .*other is none"
        ):
            BenchmarkPredictor.load(tmp_path / "other")
        with pytest.raises(VisualHeadsError, match=r"No such predictor: .*nowhere"):
            BenchmarkPredictor.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("keep", [0.2, 0.7, 0.99])
    def test_truncated_files_are_refused(self, path: Path, tmp_path: Path, keep: float) -> None:
        content = path.read_bytes()
        (tmp_path / "cut").write_bytes(content[: int(keep * len(content))])
        with pytest.raises(VisualHeadsError, match="it is damaged"):
            BenchmarkPredictor.load(tmp_path / "cut")
