"""Trees in the predictor: slow twins, intervals that follow the error, the choice between methods, and the predictor's file."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.methods import ESTIMATORS
from lmms_visual_heads.prediction.model_selection import (
    FEWEST_LINEAGES_OF_TREES,
    Rows,
    best_method,
    fit_methods,
    method_data,
    nested_evaluation,
)
from lmms_visual_heads.prediction.regressors.extra_trees import PooledForest, PooledTrees, TreesOfBenchmark
from lmms_visual_heads.prediction.regressors.pooled_ridge import PooledBenchmarks
from lmms_visual_heads.prediction.regressors.tree_arrays import TreeArrays
from lmms_visual_heads.tables import SCORE_COLUMNS
from tests.builders import synthetic

N_LINEAGES, PER = 24, 2


@parametrize_with_checks([PooledTrees(n_trees=4, n_folds=2)])
def test_scikit_learn_accepts_the_trees(estimator: Any, check: Any) -> None:
    check(estimator)


def step_world(seed: int, lineages: int = N_LINEAGES, benchmarks: int = 3) -> dict[str, Any]:
    """Points that step where a confidence passes 0.5, far noisier for models whose second feature is above 0.5.

    X [M, B, 3], y [M, B], groups [M], wild [M]: whether a model is of the noisy kind. The third feature says nothing.
    """
    random = np.random.default_rng(seed)
    n = lineages * PER
    wild = np.repeat(random.permutation(lineages) % 2 == 0, PER)
    x = random.uniform(0, 1, (n, benchmarks, 3))
    x[:, :, 1] = np.where(wild, 0.9, 0.1)[:, None]
    noise = np.where(wild, 12.0, 1.0)[:, None] * random.normal(size=(n, benchmarks))
    y = np.where(x[:, :, 0] > 0.5, 75.0, 25.0) + 2.0 * np.arange(benchmarks) + noise
    return {
        "x": x,
        "y": np.clip(y, 0, 100),
        "groups": np.repeat([f"l{i:02d}" for i in range(lineages)], PER),
        "wild": wild,
        "names": [f"b{i}" for i in range(benchmarks)],
    }


def flat(world: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows [n, F], points [n], lineages [n], benchmarks [n] of a world, models first."""
    n, b = world["y"].shape
    return world["x"].reshape(n * b, -1), world["y"].ravel(), np.repeat(world["groups"], b), np.tile(world["names"], n)


def fitted_on(world: dict[str, Any], **parameters: Any) -> PooledTrees:
    x, y, groups, names = flat(world)
    return PooledTrees(**parameters).fit(x, y, groups=groups, benchmarks=names)


@pytest.fixture(scope="module")
def trees() -> PooledTrees:
    return fitted_on(step_world(0))


class TestArrays:
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 1000), leaf=st.integers(1, 8), n_trees=st.integers(1, 7))
    def test_they_predict_what_scikit_learn_predicts(self, seed: int, leaf: int, n_trees: int) -> None:
        random = np.random.default_rng(seed)
        x, y = random.normal(size=(40, 3)), random.normal(size=40)
        forest = ExtraTreesRegressor(n_trees, min_samples_leaf=leaf, random_state=seed).fit(x, y)
        arrays = TreeArrays.of(forest)
        arrays.check(3)
        new = np.vstack([x, 100 * random.normal(size=(20, 3)), np.full((1, 3), -99.0)])
        np.testing.assert_allclose(arrays.predict(new), forest.predict(new), rtol=1e-12, atol=1e-12)
        one_by_one = [arrays.predict(row[None])[0] for row in new]
        np.testing.assert_array_equal(one_by_one, arrays.predict(new))

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("left", 0, "out of order"),  # a walk in a circle
            ("right", 10**6, "out of order"),
            ("feature", 3, "other columns"),
            ("feature", -5, "other columns"),
            ("number", np.nan, "other columns"),
            ("roots", -1, "out of order"),
        ],
    )
    def test_arrays_that_are_no_trees_are_refused(self, name: str, value: float, words: str) -> None:
        random = np.random.default_rng(0)
        arrays = TreeArrays.of(ExtraTreesRegressor(3).fit(random.normal(size=(20, 3)), random.normal(size=20)))
        getattr(arrays, name)[0] = value
        with pytest.raises(ValueError, match=words):
            arrays.check(3)
        arrays.left = arrays.left[:-1]
        with pytest.raises(ValueError, match="differ in length"):
            arrays.check(3)


class TestEstimator:
    def test_it_is_the_studys_forest(self) -> None:
        # Four benchmarks of two models: weights differ by a power of two, so that no rounding breaks a tie another way.
        world, new = step_world(0, benchmarks=4), step_world(1, benchmarks=4)
        trees = fitted_on(world, n_trees=60)
        forest = PooledForest(per_benchmark=True).fit(world["x"], world["y"], world["groups"])
        np.testing.assert_array_equal(trees.residuals_, forest.residuals_.ravel())
        np.testing.assert_array_equal(trees.sizes_, np.abs(forest.residuals_ / forest.spread_).ravel())
        mean, spread = forest.predict(new["x"])
        x, _, _, names = flat(new)
        own_mean, own_spread = trees.predict_with_spread(x, names)
        np.testing.assert_allclose(own_mean, mean.ravel(), rtol=1e-12)
        np.testing.assert_allclose(own_spread, spread.ravel(), rtol=1e-12)

    def test_a_step_is_followed_where_a_slope_is_not(self, trees: PooledTrees) -> None:
        x, y, groups, names = flat(step_world(0))
        slope = PooledBenchmarks().fit(x, y, groups=groups, benchmarks=names)
        new_x, new_y, _, new_names = flat(step_world(1))
        errors = [np.abs(model.predict(new_x, new_names) - new_y).mean() for model in (trees, slope)]
        assert errors[0] < 0.8 * errors[1]

    def test_missing_features_and_unknown_benchmarks(self) -> None:
        world = step_world(0)
        world["x"][3, 1, 0] = np.nan
        trees = fitted_on(world, n_trees=5)
        predicted = trees.predict([[np.nan] * 3, [0.9, 0.1, 0.5]], ["b0", "never seen"])
        assert ((predicted >= 0) & (predicted <= 100)).all()
        view = TreesOfBenchmark(trees, "b1")
        np.testing.assert_array_equal(view.predict(world["x"][:3, 1]), trees.predict(world["x"][:3, 1], ["b1"] * 3))

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="infinity"):
            PooledTrees().fit([[np.inf], [1.0]], [0.0, 1.0])
        with pytest.raises(ValueError, match="groups and benchmarks must have one entry per row; got 1 and 2"):
            PooledTrees().fit([[0.0], [1.0]], [0.0, 1.0], groups=["a"])

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 1000), level=st.sampled_from([0.5, 0.8, 0.9]))
    def test_the_factor_is_the_smallest_that_covers(self, seed: int, level: float) -> None:
        """Against trying every left-out error as the factor; every lineage counts the same."""
        random = np.random.default_rng(seed)
        trees = PooledTrees()
        trees.groups_ = np.array([f"l{i}" for i in [*range(16), *random.integers(0, 16, 30)]])
        trees.sizes_ = random.exponential(size=46)
        weights = lineage_weights(trees.groups_) / 16
        enough = [s for s in trees.sizes_ if weights[trees.sizes_ <= s].sum() >= level - 1e-12]
        assert trees.factor(level) == min(enough)


class TestIntervals:
    def test_they_are_wider_where_errors_are_larger_and_cover_both_kinds_of_models(self) -> None:
        inside, half, kinds = [], [], []
        for seed in range(4):
            new = step_world(100 + seed)
            trees = fitted_on(step_world(seed), n_trees=20)
            for b, name in enumerate(new["names"]):
                view = TreesOfBenchmark(trees, name)
                own = view.half_width(new["x"][:, b], 0.9)
                inside.append(np.abs(new["y"][:, b] - view.predict(new["x"][:, b])) <= own)
                half.append(own)
                kinds.append(new["wild"])
        covered, width, wild = map(np.concatenate, (inside, half, kinds))
        assert 0.84 <= covered.mean() <= 0.97
        assert covered[wild].mean() > 0.8
        assert covered[~wild].mean() > 0.8
        assert width[wild].mean() > 1.5 * width[~wild].mean()

    def test_the_standard_deviation_follows_the_error_and_is_measured(self, trees: PooledTrees) -> None:
        world, view = step_world(1), TreesOfBenchmark(trees, "b1")
        std, wild = view.std(world["x"][:, 1]), world["wild"]
        assert std[wild].mean() > 1.5 * std[~wild].mean()
        by_lineage = [np.mean(trees.sizes_[trees.groups_ == name] ** 2) for name in np.unique(trees.groups_)]
        assert trees.relative_std() == pytest.approx(np.sqrt(np.mean(by_lineage) * (1 + 1 / N_LINEAGES)))
        spread = trees.predict_with_spread(world["x"][:, 1], ["b1"] * len(wild))[1]
        np.testing.assert_allclose(std, trees.relative_std() * spread)

    def test_few_lineages_widen(self) -> None:
        few = fitted_on(step_world(0, lineages=10), n_trees=10)
        weights = lineage_weights(few.groups_) / 10
        order = np.argsort(few.sizes_)
        plain = few.sizes_[order][np.searchsorted(np.cumsum(weights[order]), 0.9)]
        assert few.factor(0.9) > 1.1 * plain


def columns_of(world: dict[str, Any]) -> dict[str, Any]:
    header = ("own_answers.confidence", "own_answers.entropy", "own_answers.information")
    return {"own_answers_free": (world["x"], header), "own_answers_trees": (world["x"], header)}


def data_of(world: dict[str, Any]) -> dict[str, dict[str, Rows]]:
    models = [f"m{i:02d}" for i in range(len(world["y"]))]
    lineages = dict(zip(models, map(str, world["groups"]), strict=True))
    items = np.full(world["y"].shape, 500.0)
    return method_data(columns_of(world), models, world["names"], world["y"], items, lineages)


class TestChoice:
    def test_a_method_is_judged_by_its_error_on_all_benchmarks_too(self) -> None:
        """A lucky error on one benchmark does not choose what errs more everywhere; old files go by the one alone."""
        data = data_of(step_world(0))
        fitted = fit_methods(data)
        for methods in fitted.values():
            for name, of in methods.items():
                every = [others[name] for others in fitted.values()]
                twin = np.mean([one.error for one in every]) / np.mean([one.baseline_error for one in every])
                assert of.usual == pytest.approx(twin)
                assert of.judged == pytest.approx((of.error / of.baseline_error + twin) / 2)
        trees, slope = (fitted["b0"][name] for name in ("own_answers_trees", "own_answers_free"))
        lucky = replace(slope, error=0.95 * trees.error)
        assert best_method({"own_answers_trees": trees, "own_answers_free": lucky}) == "own_answers_trees"
        alone = {"own_answers_trees": replace(trees, usual=None), "own_answers_free": replace(lucky, usual=None)}
        assert best_method(alone) == "own_answers_free"

    def test_trees_are_chosen_where_the_truth_is_a_step_and_slopes_where_it_is_a_slope(self) -> None:
        step, slope = step_world(0), step_world(0)
        slope["y"] = 100 * expit(4 * slope["x"][:, :, 0] - 2) + np.random.default_rng(1).normal(
            0, 0.3, slope["y"].shape
        )
        for world, name in ((step, "own_answers_trees"), (slope, "own_answers_free")):
            data = data_of(world)
            fitted = fit_methods(data)
            assert {best_method(methods) for methods in fitted.values()} == {name}
        errors = fit_methods(data_of(step))["b1"]["own_answers_trees"].model.errors
        trees = fitted_on(step)
        # the predictor puts benchmark after benchmark, and randomised trees see another order of rows
        assert np.abs(errors.residuals).mean() == pytest.approx(np.abs(trees.residuals_[1::3]).mean(), rel=0.2)

    def test_the_choice_is_nested(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a lineage scored changes nothing of what is said of it."""
        monkeypatch.setitem(ESTIMATORS, "trees", partial(PooledTrees, n_trees=8))  # type: ignore[arg-type]
        world = step_world(0, lineages=13)
        before, used = nested_evaluation(lambda _: data_of(world), data_of(world)["own_answers_free"], 0.9)
        assert "own_answers_trees" in used.values()
        own = world["groups"] == "l03"
        world["y"][own] = 100 - world["y"][own]
        after, used_after = nested_evaluation(lambda _: data_of(world), data_of(world)["own_answers_free"], 0.9)
        lineage = (before["lineage"] == "l03").to_numpy()
        columns = ["predicted", "low", "high", "baseline"]
        np.testing.assert_array_equal(before.loc[lineage, columns], after.loc[lineage, columns])
        assert not np.allclose(before.loc[~lineage, columns], after.loc[~lineage, columns])
        names = {(m, b): name for (m, b), name in used.items() if m in set(before.loc[lineage, "model"])}
        assert names.items() <= used_after.items()

    def test_with_few_lineages_there_are_no_trees(self) -> None:
        assert "own_answers_trees" not in data_of(step_world(0, lineages=FEWEST_LINEAGES_OF_TREES - 1))
        assert "own_answers_trees" in data_of(step_world(0, lineages=FEWEST_LINEAGES_OF_TREES))


class Product:
    """A predictor fitted on a step world: heads that say nothing, answers that do; the last two lineages are new."""

    def __init__(self) -> None:
        heads = synthetic.world(16, 1, relation="none", seed=3)
        self.profiles = HeadProfiles.from_tables(heads.tables)
        world = step_world(3, lineages=8)  # two models a lineage there; a lineage each here
        cells = [
            (model, benchmark, world["x"][m, b], world["y"][m, b])
            for m, model in enumerate(self.profiles.models)
            for b, benchmark in enumerate(synthetic.BENCHMARKS)
        ]
        answers = [(m, b, 256, np.nan, *x, np.nan, np.nan) for m, b, x, _ in cells]
        names = [
            "model",
            "task",
            "n_prompts",
            "accuracy",
            "confidence",
            "entropy",
            "information",
            "swap_kl",
            "blank_kl",
        ]
        self.measured = Measurements(pd.DataFrame(answers, columns=names))
        rows = [(m, b, "exact_match", 1.0, y / 100, 1000, "synthetic") for m, b, _, y in cells]
        self.scores = pd.DataFrame(rows, columns=[c.name for c in SCORE_COLUMNS])
        self.new = self.profiles.only(self.profiles.models[-2:])
        old = self.profiles.only(self.profiles.models[:-2])
        self.predictor = BenchmarkPredictor().fit(old, self.scores, heads.lineages, self.measured)

    def predict(self, predictor: BenchmarkPredictor | None = None, **more: Any) -> pd.DataFrame:
        return (predictor or self.predictor).predict(self.profiles, measured=self.measured, **more)


@pytest.fixture(scope="module")
def product() -> Product:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ESTIMATORS, "trees", partial(PooledTrees, n_trees=12))  # type: ignore[arg-type]
        return Product()


class TestProduct:
    def test_the_method_is_named_and_widths_differ_from_model_to_model(self, product: Product) -> None:
        frame = product.predict()
        spoken = frame[frame["method"] == "own_answers_trees"]
        assert spoken["model"].isin(product.new.models).any()
        assert ((spoken["low"] <= spoken["predicted"]) & (spoken["predicted"] <= spoken["high"])).all()
        assert "by trees" in product.predictor.describe()["methods"]["own_answers_trees"]

    def test_models_of_the_fit_get_their_left_out_prediction(self, product: Product) -> None:
        frame = product.predict().set_index(["model", "benchmark"])
        seen = product.predictor.evaluation_.set_index(["model", "benchmark"])
        own = frame.loc[seen.index]
        np.testing.assert_array_equal(own["predicted"], seen["predicted"])
        assert own["flags"].str.contains("in_training").all()

    def test_labels_weigh_more_where_the_trees_are_less_sure(self, product: Product) -> None:
        """Same predictor and labels; only the size of the error that is expected at the model differs."""
        benchmark = next(b for b, m in product.predictor.models_.items() if best_method(m) == "own_answers_trees")
        pooled = product.predictor.models_[benchmark]["own_answers_trees"].model.estimator.pooled
        model = product.new.models[0]
        documents = np.arange(16)
        items = pd.DataFrame({"model": model, "benchmark": benchmark, "doc_id": documents, "correct": documents % 2.0})
        numbers, moved = pooled.forest_.sizes_.number.copy(), []
        leaves = pooled.forest_.sizes_.feature < 0
        plain = product.predict().set_index(["model", "benchmark"]).loc[(model, benchmark), "predicted"]
        try:
            for size in (1.0, 5.0, 25.0):
                pooled.forest_.sizes_.number[leaves] = size
                row = product.predict(items=items).set_index(["model", "benchmark"]).loc[(model, benchmark)]
                assert row["method"] == "own_answers_trees+16 labels"
                moved.append(abs(row["predicted"] - plain))
        finally:
            pooled.forest_.sizes_.number[:] = numbers
        assert moved[0] < 0.5 * moved[1] < 0.5 * moved[2]

    def test_what_is_read_predicts_the_same(self, product: Product, tmp_path: Path) -> None:
        path = product.predictor.save(tmp_path / "predictor.skops")
        assert path.stat().st_size < 2_000_000
        again = BenchmarkPredictor.load(path)
        pd.testing.assert_frame_equal(product.predict(again), product.predict(), check_exact=True)
        assert again.describe() == product.predictor.describe()

    def test_no_compiled_structure_is_in_the_file_and_changed_trees_are_refused(
        self, product: Product, tmp_path: Path
    ) -> None:
        path = product.predictor.save(tmp_path / "predictor.skops")
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(io.BytesIO(content["estimators.skops"])) as inner:
            parts = {name: inner.read(name) for name in inner.namelist()}
        assert b"sklearn.tree" not in parts["schema.json"]
        changed = 0
        for name in [name for name in parts if name.endswith(".npy")]:
            array = np.load(io.BytesIO(parts[name]))
            if array.dtype == np.int32 and array.ndim == 1 and len(array) > 100:
                written = io.BytesIO()
                np.save(written, np.where(array > 0, 1, array))  # every walk in a circle
                parts[name], changed = written.getvalue(), changed + 1
        assert changed
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as inner:
            for name, data in parts.items():
                inner.writestr(name, data)
        content["estimators.skops"] = whole.getvalue()
        manifest = json.loads(content["manifest.json"])
        manifest["sha256"] = {n: hashlib.sha256(d).hexdigest() for n, d in content.items() if n != "manifest.json"}
        content["manifest.json"] = json.dumps(manifest).encode()
        target = tmp_path / "changed.skops"
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        with pytest.raises(VisualHeadsError, match=r"its parts do not fit together .*the trees"):
            BenchmarkPredictor.load(target)
