"""The ridge, the intervals and the protocol: against slow twins, and against leaks between checkpoints of one training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks

from lmms_visual_heads.prediction import LineageRidge, lineage_mean
from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES, LeftOutErrors, sampling_interval
from lmms_visual_heads.prediction.evaluation import errors_of
from lmms_visual_heads.prediction.lineages import lineage_blocks, lineage_weights
from lmms_visual_heads.prediction.model_selection import Rows, fit_methods, nested_evaluation
from lmms_visual_heads.prediction.regressors.ridge import _left_out_error


@parametrize_with_checks([LineageRidge()])
def test_scikit_learn_accepts_the_ridge(estimator: Any, check: Any) -> None:
    check(estimator)


def rows(
    n_lineages: int, per: int = 2, n_features: int = 12, seed: int = 0, signal: float = 1.0, noise: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checkpoints of lineages that differ more between than within; y in points."""
    random = np.random.default_rng(seed)
    lineages = np.repeat([f"lineage{i:03d}" for i in range(n_lineages)], per)
    hidden = np.repeat(random.normal(size=(n_lineages, 3)), per, axis=0) + 0.2 * random.normal(size=(len(lineages), 3))
    mixing = random.normal(size=(3, n_features))
    X = hidden @ mixing + 0.3 * random.normal(size=(len(lineages), n_features))
    own = np.repeat(random.normal(size=n_lineages), per)
    y = 50 + 10 * (signal * hidden[:, 0] + (1 - signal) * own) + noise * random.normal(size=len(lineages))
    return X, np.clip(y, 0, 100), lineages


def slow_left_out_error(Z: np.ndarray, y: np.ndarray, groups: np.ndarray, alpha: float) -> float:
    """Leave each lineage out, refit the weighted ridge by its normal equations, and measure."""
    weights = lineage_weights(groups)
    errors = []
    for group in np.unique(groups):
        rest = groups != group
        A = np.column_stack([np.ones(rest.sum()), Z[rest]])
        W = np.diag(weights[rest])
        penalty = alpha * np.eye(A.shape[1])
        penalty[0, 0] = 0
        beta = np.linalg.solve(A.T @ W @ A + penalty, A.T @ W @ y[rest])
        out = np.column_stack([np.ones((~rest).sum()), Z[~rest]])
        errors.append(np.mean((y[~rest] - out @ beta) ** 2))
    return float(np.mean(errors))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.1, 3.0, 100.0]))
def test_the_fast_left_out_error_equals_the_slow_one(seed: int, alpha: float) -> None:
    random = np.random.default_rng(seed)
    groups = random.integers(0, 4, 11)
    groups[:4] = range(4)
    y, weights = random.normal(size=11), lineage_weights(groups)
    Z = random.normal(size=(11, 3))
    Z -= np.average(Z, axis=0, weights=weights)
    root = np.sqrt(weights)
    u, s, _ = np.linalg.svd(root[:, None] * Z, full_matrices=False)
    fast = _left_out_error(u * np.sqrt(s**2 / (s**2 + alpha)), root, y, lineage_blocks(groups))
    assert fast == pytest.approx(slow_left_out_error(Z, y, groups, alpha), rel=1e-8)


class TestRidge:
    def test_a_copy_of_a_checkpoint_changes_nothing(self) -> None:
        X, y, lineages = rows(6, per=1, seed=2)
        plain = LineageRidge().fit(X, y, groups=lineages)
        twice = LineageRidge().fit(np.vstack([X, X[:1]]), np.append(y, y[0]), groups=np.append(lineages, lineages[0]))
        assert twice.penalty_ == plain.penalty_
        np.testing.assert_allclose(twice.predict(X), plain.predict(X), rtol=1e-8)
        assert lineage_mean(np.append(y, y[0]), np.append(lineages, lineages[0])) == pytest.approx(y.mean())

    def test_order_of_rows_does_not_matter(self) -> None:
        X, y, lineages = rows(8)
        order = np.random.default_rng(0).permutation(len(y))
        one = LineageRidge().fit(X, y, groups=lineages)
        other = LineageRidge().fit(X[order], y[order], groups=lineages[order])
        np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-8)

    def test_noise_gives_the_mean(self) -> None:
        used = 0
        for seed in range(20):
            X, y, lineages = rows(12, seed=seed, signal=0.0)
            used += np.isfinite(LineageRidge().fit(X, y, groups=lineages).penalty_)
        assert used <= 10

    def test_missing_features_count_as_the_mean(self) -> None:
        X, y, lineages = rows(8)
        X[0, 0] = np.nan
        X[:, 5] = np.nan
        ridge = LineageRidge().fit(X, y, groups=lineages)
        assert np.isfinite(ridge.predict(X)).all()
        assert ridge.predict(np.full((1, 12), np.nan))[0] == pytest.approx(ridge.intercept_)

    def test_far_rows_are_held_near_the_training_rows(self) -> None:
        X, y, lineages = rows(10)
        ridge = LineageRidge().fit(X, y, groups=lineages)
        wild = ridge.predict(1e9 * np.ones((1, 12)))
        assert abs(wild[0] - y.mean()) < 10 * np.ptp(y)

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [({"penalties": ()}, "penalties must be"), ({"margin": 2}, "margin must lie"), ({"reach": -1}, "reach")],
    )
    def test_parameters_are_checked_in_fit(self, parameters: dict[str, Any], words: str) -> None:
        ridge = LineageRidge(**parameters)
        with pytest.raises(ValueError, match=words):
            ridge.fit([[0.0], [1.0]], [0.0, 1.0])

    def test_groups_need_one_entry_per_row(self) -> None:
        with pytest.raises(ValueError, match="groups must have one entry per row; got 1 for 2 rows"):
            LineageRidge().fit([[0.0], [1.0]], [0.0, 1.0], groups=["a"])


def as_rows(X: np.ndarray, y: np.ndarray, lineages: np.ndarray) -> Rows:
    names = tuple(f"m{number:02d}" for number in range(len(y)))
    return Rows(names, X, y, lineages, np.full(len(y), np.nan))


def judged(X: np.ndarray, y: np.ndarray, lineages: np.ndarray) -> pd.DataFrame:
    """The nested evaluation of the ridge on the heads, as `BenchmarkPredictor.fit` asks for it."""
    rows = as_rows(X, y, lineages)
    return nested_evaluation(lambda fold: {"probe_heads": {"b": rows}}, {"b": rows}, 0.9)[0]


class TestProtocol:
    def test_copies_inside_a_lineage_do_not_help(self) -> None:
        """Scores drawn apart from the heads: only a leak between copies could predict them."""
        ours, leaky, baseline = [], [], []
        for seed in range(8):
            X, y, lineages = rows(10, per=1, seed=seed, signal=0.0)
            X, y, lineages = np.vstack([X, X]), np.append(y, y), np.append(lineages, lineages)
            errors = errors_of(judged(X, y, lineages)).iloc[0]
            alone = np.array([f"l{number:02d}" for number in range(len(y))])
            leaked = errors_of(judged(X, y, alone)).iloc[0]
            ours.append(errors["error"])
            baseline.append(errors["baseline_error"])
            leaky.append(leaked["error"])
        assert np.mean(ours) > 0.9 * np.mean(baseline)
        assert np.mean(leaky) < 0.5 * np.mean(baseline), "the test's own leak must show"

    def test_a_lineage_is_predicted_without_any_of_its_checkpoints(self) -> None:
        X, y, lineages = rows(5, per=3)
        before = judged(X, y, lineages)
        changed = y.copy()
        changed[lineages == "lineage002"] = 0.0
        after = judged(X, changed, lineages)
        own = (before["lineage"] == "lineage002").to_numpy()
        columns = ["predicted", "low", "high", "baseline"]
        np.testing.assert_array_equal(before.loc[own, columns], after.loc[own, columns])
        assert not np.allclose(before.loc[~own, "baseline"], after.loc[~own, "baseline"])

    def test_a_planted_relation_is_found(self) -> None:
        X, y, lineages = rows(12)
        errors = errors_of(judged(X, y, lineages)).iloc[0]
        assert errors["error"] < 0.5 * errors["baseline_error"]

    @pytest.mark.parametrize("broken", ["random labels", "permuted heads"])
    def test_no_skill_without_a_relation(self, broken: str) -> None:
        skill = []
        for seed in range(10):
            X, y, lineages = rows(10, seed=seed)
            order = np.repeat(np.random.default_rng(seed).permutation(10) * 2, 2) + np.tile([0, 1], 10)
            X, y = (X, y[order]) if broken == "random labels" else (X[order], y)
            errors = errors_of(judged(X, y, lineages)).iloc[0]
            skill.append(1 - errors["error"] / errors["baseline_error"])
        assert np.mean(skill) < 0.1
        assert np.mean(skill) > -0.4, "and it is never much worse than the mean"

    @pytest.mark.parametrize(("n_lineages", "worlds"), [(5, 40), (8, 25), (18, 40)])
    def test_coverage_is_near_the_level(self, n_lineages: int, worlds: int) -> None:
        inside, width = [], []
        for seed in range(worlds):
            X, y, lineages = rows(n_lineages + 4, seed=seed, signal=0.7)
            seen = np.isin(lineages, np.unique(lineages)[:n_lineages])
            data = {"probe_heads": {"b": as_rows(X[seen], y[seen], lineages[seen])}}
            model = fit_methods(data)["b"]["probe_heads"].model
            limits = model.intervals(X[~seen], 0.9)
            inside.append(np.mean((y[~seen] >= limits[:, 0]) & (y[~seen] <= limits[:, 1])))
            width.append(np.mean(limits[:, 1] - limits[:, 0]))
        assert 0.83 <= np.mean(inside) <= 0.985
        assert np.mean(width) < 75

    def test_few_rows_and_lineages(self) -> None:
        X, y, _ = rows(3, per=1)
        lineages = np.array(["a", "a", "b"])
        frame = judged(X, y, lineages)
        assert np.isfinite(frame[["predicted", "baseline"]].to_numpy()).all()
        assert (frame["low"] == 0).all()
        assert (frame["high"] == 100).all()


class TestIntervals:
    def errors(self, n_lineages: int) -> LeftOutErrors:
        return LeftOutErrors(np.linspace(-5, 5, n_lineages), np.array([f"l{i:02d}" for i in range(n_lineages)]))

    @pytest.mark.parametrize("n_lineages", [2, 5, 14, 15, 40])
    def test_the_prediction_lies_inside_and_the_limits_in_range(self, n_lineages: int) -> None:
        errors = self.errors(n_lineages)
        for center in (0.0, 3.0, 50.0, 99.0, 100.0):
            low, high = errors.interval(center, np.full(n_lineages, center), 0.9)
            assert 0 <= low <= center <= high <= 100

    def test_fewer_lineages_are_wider(self) -> None:
        widths = [
            np.diff(self.errors(n).interval(50.0, np.full(n, 50.0), 0.9))[0] for n in (3, 5, 9, CERTIFIED_LINEAGES)
        ]
        assert widths == sorted(widths, reverse=True)

    def test_one_lineage_says_nothing(self) -> None:
        assert LeftOutErrors(np.array([1.0]), np.array(["a"])).interval(50.0, np.array([50.0]), 0.9) == (0.0, 100.0)

    def test_copies_of_a_checkpoint_do_not_narrow(self) -> None:
        one = self.errors(20)
        many = LeftOutErrors(np.repeat(one.residuals, 5), np.repeat(one.lineages, 5))
        assert many.interval(50.0, np.full(100, 50.0), 0.9) == one.interval(50.0, np.full(20, 50.0), 0.9)

    def test_widening(self) -> None:
        errors = self.errors(20)
        low, high = errors.interval(50.0, np.full(20, 50.0), 0.9)
        wide = errors.interval(50.0, np.full(20, 50.0), 0.9, widen=2.0)
        assert wide == (pytest.approx(50 - 2 * (50 - low)), pytest.approx(50 + 2 * (high - 50)))

    def test_sampling_interval(self) -> None:
        low, high = sampling_interval(50.0, 100, 0.95)
        assert (low, high) == (pytest.approx(40.38, abs=0.01), pytest.approx(59.62, abs=0.01))
        assert sampling_interval(100.0, 50, 0.9)[1] == 100.0
        assert sampling_interval(100.0, 50, 0.9)[0] < 97
        assert sampling_interval(40.0, None, 0.9) == (40.0, 40.0)
