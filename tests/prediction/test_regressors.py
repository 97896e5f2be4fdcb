"""The Gaussian process and the pooled regression: scikit-learn's checks, slow twins, lineages, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.utils.estimator_checks import parametrize_with_checks

from lmms_visual_heads.prediction import LineageRidge
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.regressors.gaussian_process import LineageProcess, _kernel, _mean_left_out
from lmms_visual_heads.prediction.regressors.pooled_ridge import OneBenchmark, PooledBenchmarks, _Parts
from tests.prediction.test_ridge_and_protocol import rows

REGRESSORS = [LineageRidge, LineageProcess, PooledBenchmarks]


@parametrize_with_checks([LineageProcess(), PooledBenchmarks(link="identity")])
def test_scikit_learn_accepts_them(estimator: Any, check: Any) -> None:
    check(estimator)


class TestAll:
    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_a_planted_relation_is_found_on_new_lineages(self, kind: Any) -> None:
        X, y, lineages = rows(24, per=2, seed=3)
        seen = np.isin(lineages, np.unique(lineages)[:16])
        predicted = kind().fit(X[seen], y[seen], groups=lineages[seen]).predict(X[~seen])
        assert np.abs(predicted - y[~seen]).mean() < 0.5 * np.abs(y[seen].mean() - y[~seen]).mean()

    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_noise_gives_the_mean(self, kind: Any) -> None:
        used = 0
        for seed in range(6):
            X, y, lineages = rows(12, seed=seed, signal=0.0)
            predicted = kind().fit(X, y, groups=lineages).predict(X)
            used += np.ptp(predicted) > 1e-3
        assert used <= 3

    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_a_copy_of_a_checkpoint_in_its_lineage_adds_nothing(self, kind: Any) -> None:
        X, y, lineages = rows(9, per=1, seed=2)
        twice = np.append(np.arange(9), 0)
        one = kind().fit(X, y, groups=lineages).predict(X)
        other = kind().fit(X[twice], y[twice], groups=lineages[twice]).predict(X)
        np.testing.assert_allclose(other, one, rtol=1e-5)

    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_order_of_rows_and_missing_features(self, kind: Any) -> None:
        X, y, lineages = rows(10)
        X[0, 0] = np.nan
        X[:, 5] = np.nan
        order = np.random.default_rng(0).permutation(len(y))
        one = kind().fit(X, y, groups=lineages).predict(X)
        other = kind().fit(X[order], y[order], groups=lineages[order]).predict(X)
        np.testing.assert_allclose(other, one, rtol=1e-6)
        assert np.isfinite(one).all()

    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_far_rows_are_held_near_the_training_rows(self, kind: Any) -> None:
        X, y, lineages = rows(10)
        wild = kind().fit(X, y, groups=lineages).predict(1e9 * np.ones((1, 12)))
        assert abs(wild[0] - y.mean()) < 10 * np.ptp(y)

    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_infinite_features_and_other_groups_are_refused(self, kind: Any) -> None:
        with pytest.raises(ValueError, match="infinity"):
            kind().fit([[np.inf], [1.0]], [0.0, 1.0])
        with pytest.raises(ValueError, match="groups must have one entry per row; got 1 for 2 rows"):
            kind().fit([[0.0], [1.0]], [0.0, 1.0], groups=["a"])

    @pytest.mark.parametrize("kind", REGRESSORS)
    def test_ten_thousand_features_on_nine_rows(self, kind: Any) -> None:
        random = np.random.default_rng(0)
        X, y = random.normal(size=(9, 10_000)), random.uniform(20, 80, 9)
        model = kind(**({"penalties": (0.01, 1.0)} if kind is PooledBenchmarks else {}))
        if kind is PooledBenchmarks:
            X = X[:, :300]  # its slopes are solved for one by one: few declared features are what it is for
        predicted = model.fit(X, y).predict(random.normal(size=(3, X.shape[1])))
        assert (np.abs(predicted - y.mean()) < 3 * np.ptp(y)).all()

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (LineageProcess(lengths=()), "lengths and noises must be positive"),
            (LineageProcess(margin=1.5), "margin must lie"),
            (PooledBenchmarks(penalties=(0,)), "penalties and shrinkages must be positive"),
            (PooledBenchmarks(reach=-1), "reach be at least 0"),
            (PooledBenchmarks(link="probit"), "link must be one of logit, identity"),
        ],
    )
    def test_parameters_are_checked_in_fit(self, model: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            model.fit([[0.0], [1.0]], [0.0, 1.0])


class TestProcess:
    def test_left_out_errors_equal_refits(self) -> None:
        random = np.random.default_rng(0)
        lineages = np.repeat(np.arange(5), [1, 2, 3, 2, 2])
        z, y = random.normal(size=(10, 3)), random.normal(size=10)
        y = y - y.mean()
        weights = lineage_weights(lineages)
        for length in (1.0, 4.0):
            gram = _kernel(1.0, length, 3)(z)
            for choice in LineageProcess(noises=(0.1, 2.0))._tried(z, y, lineages, length):
                errors = []
                for name in range(5):
                    out = lineages == name
                    inner = gram[np.ix_(~out, ~out)] + np.diag(choice.noise / weights[~out])
                    errors.append(np.mean((y[out] - gram[np.ix_(out, ~out)] @ np.linalg.solve(inner, y[~out])) ** 2))
                assert choice.error == pytest.approx(np.mean(errors), rel=1e-6)

    def test_mean_left_out(self) -> None:
        y, lineages = np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 1, 2])
        expected = np.mean([np.mean([(1 - 7) ** 2, (3 - 7) ** 2]), (5 - 5.5) ** 2, (9 - 3.5) ** 2])
        assert _mean_left_out(y, lineages) == pytest.approx(expected)

    def test_its_spread_covers_new_lineages(self) -> None:
        inside = []
        for seed in range(6):
            X, y, lineages = rows(30, per=2, seed=seed)
            seen = np.isin(lineages, np.unique(lineages)[:20])
            mean, std = LineageProcess().fit(X[seen], y[seen], groups=lineages[seen]).predict(X[~seen], return_std=True)
            inside.append(np.abs(y[~seen] - mean) < 1.645 * std)
        assert 0.78 <= np.mean(inside) <= 0.97

    def test_a_bend_is_followed_where_a_plane_is_not(self) -> None:
        x = np.linspace(-2, 2, 30)[:, None]
        y = 50 + 20 * np.cos(2 * x[:, 0])
        assert np.abs(LineageProcess().fit(x, y).predict(x) - y).mean() < 1
        assert np.abs(LineageRidge().fit(x, y).predict(x) - y).mean() > 5


def pooled_world(seed: int, lineages: int = 14, benchmarks: int = 4) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    offsets = random.normal(0, 0.7, benchmarks)
    skill = random.normal(0, 1, (lineages, benchmarks))
    x = (skill + random.normal(0, 0.2, skill.shape)).ravel()[:, None]
    y = 100 * expit(skill + offsets).ravel()
    names = np.tile([f"b{i}" for i in range(benchmarks)], lineages)
    return x, y, np.repeat([f"l{i}" for i in range(lineages)], benchmarks), names


class TestPooled:
    def test_left_out_error_equals_refits(self) -> None:
        random = np.random.default_rng(0)
        design = np.column_stack([random.normal(size=(12, 3)), np.ones(12)])
        lineages, linked = np.repeat(np.arange(4), 3), random.normal(size=12)
        points = 100 * expit(linked)
        weights = random.uniform(0.5, 1, 12)
        penalty = np.diag([0.3, 0.3, 2.0, 0.0])
        parts = _Parts.of(design, linked, points, weights, lineages)
        errors = []
        for name in range(4):
            out = lineages == name
            a, w = design[~out], weights[~out, None]
            beta = np.linalg.solve(a.T @ (w * a) + penalty, a.T @ (w[:, 0] * linked[~out]))
            errors.append(np.mean((points[out] - 100 * expit(design[out] @ beta)) ** 2))
        assert parts.left_out_error(penalty, lambda v: 100 * expit(v)) == pytest.approx(np.mean(errors), rel=1e-6)

    def test_benchmarks_teach_each_other_and_an_unseen_one_gets_the_common_intercept(self) -> None:
        x, y, lineages, names = pooled_world(0)
        model = PooledBenchmarks().fit(x, y, groups=lineages, benchmarks=names)
        assert np.abs(model.predict(x, names) - y).mean() < 5
        logits = logit(model.predict(np.zeros((1, 1)), ["never seen"])[0] / 100)
        # features are centred inside: a row at their mean is what the common intercept stands for
        assert logits == pytest.approx(model.intercept_ + model._z(np.zeros((1, 1)))[0] @ model.coef_)
        assert model.predict(np.zeros((1, 1)))[0] == pytest.approx(model.predict(np.zeros((1, 1)), ["x"])[0])
        view = OneBenchmark(model, "b1")
        np.testing.assert_array_equal(view.predict(x[:3]), model.predict(x[:3], ["b1"] * 3))

    def test_few_models_of_a_benchmark_borrow_from_the_others(self) -> None:
        x, y, lineages, names = pooled_world(1)
        few = (names != "b3") | np.isin(lineages, ["l0", "l1"])
        model = PooledBenchmarks().fit(x[few], y[few], groups=lineages[few], benchmarks=names[few])
        out = ~few
        assert np.abs(model.predict(x[out], names[out]) - y[out]).mean() < 0.6 * np.abs(y[out] - y.mean()).mean()

    def test_edges_count_as_half_an_item_from_them(self) -> None:
        model = PooledBenchmarks()
        few, many = model._linked(np.array([0.0, 0.0]), np.array([10.0, 1000.0]))
        assert few == pytest.approx(logit(0.05))
        assert many == pytest.approx(logit(0.0005))

    def test_scores_outside_points_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"y must lie in 0\.\.100 points"):
            PooledBenchmarks().fit([[0.0], [1.0]], [-1.0, 50.0])
        with pytest.raises(ValueError, match="benchmarks and items must have one entry per row"):
            PooledBenchmarks().fit([[0.0], [1.0]], [1.0, 50.0], benchmarks=["a"])
