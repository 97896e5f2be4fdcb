"""Metrics against short, obviously right twins; the pooled ridge against refits without the lineage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lab.study import metrics
from lab.study.item_response import GRID, ItemResponse, log_likelihood
from lab.study.methods.pooled import PooledRidge, left_out
from lab.study.summary import passes_for
from lmms_visual_heads.prediction.lineages import lineage_blocks

RANDOM = np.random.default_rng(0)


def matrices(lineages: int = 9, benchmarks: int = 4) -> tuple[np.ndarray, np.ndarray]:
    actual = RANDOM.uniform(10, 90, (lineages, benchmarks))
    predicted = actual + RANDOM.normal(0, 10, actual.shape)
    actual[2, 1] = np.nan
    return actual, predicted


def test_by_lineage_is_a_mean_of_means_without_the_missing() -> None:
    values = np.array([1.0, 3.0, np.nan, 10.0])
    np.testing.assert_allclose(metrics.by_lineage(values, ["a", "a", "a", "b"]), [2.0, 10.0])


def test_bootstrap_draws_lineages() -> None:
    value, low, high = metrics.bootstrap(np.arange(20.0))
    assert value == pytest.approx(9.5)
    half = 1.96 * np.std(np.arange(20.0)) / np.sqrt(20)
    assert low == pytest.approx(9.5 - half, abs=0.3)
    assert high == pytest.approx(9.5 + half, abs=0.3)
    assert np.isnan(metrics.bootstrap(np.array([1.0, 2.0])).low)


def test_r_squared_and_ranks_equal_their_twins() -> None:
    actual, predicted = matrices()
    total = error = 0.0
    rho, tau = [], []
    for b in range(actual.shape[1]):
        there = [g for g in range(len(actual)) if np.isfinite(actual[g, b])]
        centre = sum(actual[g, b] for g in there) / len(there)
        total += sum((actual[g, b] - centre) ** 2 for g in there)
        error += sum((actual[g, b] - predicted[g, b]) ** 2 for g in there)
        ranks = [stats.rankdata([m[g, b] for g in there]) for m in (actual, predicted)]
        rho.append(np.corrcoef(*ranks)[0, 1])
        pairs = [(i, j) for i in range(len(there)) for j in range(i)]
        tau.append(np.mean([np.sign((ranks[0][i] - ranks[0][j]) * (ranks[1][i] - ranks[1][j])) for i, j in pairs]))
    assert metrics.r_squared(actual, predicted) == pytest.approx(1 - error / total)
    assert metrics.rank_correlations(actual, predicted) == pytest.approx((np.mean(rho), np.mean(tau)))


def test_a_constant_prediction_ranks_nothing_and_regrets_the_average() -> None:
    actual, _ = matrices()
    flat = np.full_like(actual, 50.0)
    assert metrics.rank_correlations(actual, flat) == (0.0, 0.0)
    expected = np.mean([np.nanmax(column) - np.nanmean(column) for column in actual.T])
    assert metrics.regret(actual, flat) == pytest.approx(expected)
    assert metrics.regret(actual, actual) == 0.0


def test_interval_score_equals_its_twin() -> None:
    def twin(y: float, low: float, high: float) -> float:
        score = high - low
        if y < low:
            score += 2 / 0.1 * (low - y)
        if y > high:
            score += 2 / 0.1 * (y - high)
        return score

    y, low, high = RANDOM.uniform(0, 100, (3, 50))
    low, high = np.minimum(low, high), np.maximum(low, high)
    found = metrics.interval_score(y, low, high, 0.9)
    np.testing.assert_allclose(found, [twin(*row) for row in zip(y, low, high, strict=True)])


def test_coverage_is_clopper_and_pearson_where_counts_are_whole() -> None:
    inside = np.array([1.0] * 27 + [0.0] * 3)
    found = metrics.coverage(inside, np.arange(30))
    exact = stats.binomtest(27, 30).proportion_ci(0.95, method="exact")
    assert found == pytest.approx((0.9, exact.low, exact.high))
    doubled = metrics.coverage(np.repeat(inside, 5), np.repeat(np.arange(30), 5))
    assert doubled == pytest.approx(found)
    assert metrics.coverage(np.ones(4), np.arange(4)).high == 1.0


def test_permutation_notices_knowledge_and_its_absence() -> None:
    actual, predicted = matrices(12)
    assert metrics.permutation_p(actual, predicted, draws=400) < 0.01
    strangers = predicted[RANDOM.permutation(12)]
    assert metrics.permutation_p(actual, strangers, draws=400) > 0.02
    assert metrics.permutation_p(actual, np.full_like(actual, 50.0), draws=100) == 1.0


def test_noise_floor_is_what_drawing_items_does() -> None:
    p, n = 0.7, 400
    drawn = RANDOM.binomial(n, p, 20000) / n
    assert metrics.noise_floor(np.array([[70.0]]), np.array([n])) == pytest.approx(
        100 * np.abs(drawn - p).mean(), rel=0.03
    )


@pytest.mark.parametrize("deviation", [0.0, 0.25])
def test_left_out_residuals_equal_refits_without_the_lineage(deviation: float) -> None:
    n, f = 24, 3
    groups = np.repeat([f"l{i}" for i in range(8)], 3)
    z, y, penalty = RANDOM.normal(size=(n, f)), RANDOM.normal(size=n), 2.0
    weights = np.full(n, 0.5)
    root = np.sqrt(weights)
    z = z - np.average(z, axis=0, weights=weights)
    constant = (root / np.sqrt(weights.sum()))[:, None]
    scaled = z * (1 + deviation)
    values, vectors = np.linalg.eigh((root[:, None] * scaled).T @ (root[:, None] * scaled))
    u = root[:, None] * scaled @ vectors / np.sqrt(values)
    found = left_out(u * np.sqrt(values / (values + penalty)), constant, root * y, lineage_blocks(groups)) / root
    for name in np.unique(groups):
        out = groups == name
        design = np.column_stack([scaled[~out], np.ones((~out).sum())])
        ridge = np.diag([*[penalty] * f, 0.0])
        beta = np.linalg.solve(
            design.T @ (weights[~out][:, None] * design) + ridge, design.T @ (weights[~out] * y[~out])
        )
        np.testing.assert_allclose(
            found[out], y[out] - np.column_stack([scaled[out], np.ones(out.sum())]) @ beta, atol=1e-6
        )


def test_pooled_ridge_finds_what_is_there_and_nothing_in_noise() -> None:
    groups = np.repeat([f"l{i}" for i in range(20)], 3)
    x = RANDOM.normal(size=(60, 4, 2))
    y = x[:, :, 0] * 1.5 + np.array([-1.0, 0.0, 1.0, 2.0]) + RANDOM.normal(0, 0.1, (60, 4))
    y[5, 2] = np.nan
    model = PooledRidge().fit(x, y, groups)
    assert np.nanmean(np.abs(model.residuals_)) < 0.15
    assert np.isnan(model.residuals_[5, 2])
    np.testing.assert_allclose(model.predict(x)[:, 0], y[:, 0], atol=0.5)
    noise = PooledRidge(margin=0.05).fit(RANDOM.normal(size=x.shape), y, groups)
    assert noise.penalty_ == np.inf
    assert np.ptp(noise.predict(x), axis=0).max() == 0.0


def test_pooled_ridge_takes_missing_and_refuses_infinite_features() -> None:
    x, y = RANDOM.normal(size=(12, 2, 3)), RANDOM.normal(size=(12, 2))
    x[3, 1, 0] = np.nan
    x[:, :, 2] = 7.0
    groups = np.arange(12).astype(str)
    assert np.isfinite(PooledRidge().fit(x, y, groups).predict(x)).all()
    x[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite or missing"):
        PooledRidge().fit(x, y, groups)


def test_ten_thousand_features_of_noise_are_not_believed() -> None:
    groups = np.arange(30).astype(str)
    x, y = RANDOM.normal(size=(30, 1, 10_000)), RANDOM.normal(size=(30, 1))
    model = PooledRidge(deviations=(0.0,)).fit(x, y, groups)
    assert np.nanmean(model.residuals_**2) > 0.7 * np.var(y)


def test_a_far_row_is_seen_as_outside_and_held() -> None:
    x = RANDOM.normal(size=(30, 2, 1))
    model = PooledRidge().fit(x, 2 * x[:, :, 0], np.arange(30).astype(str))
    far = np.full((1, 2, 1), 50.0)
    assert (model.overshoot(far) > 10).all()
    assert (np.abs(model.predict(far)) < 12).all()
    assert (model.overshoot(x) == 0).all()


def test_item_response_orders_items_and_checkpoints() -> None:
    ability, hard = np.linspace(-2, 2, 40), np.linspace(-2, 2, 60)
    p = 1 / (1 + np.exp(-(ability[:, None] - hard)))
    answers = (RANDOM.random(p.shape) < p).astype(np.float32)
    model = ItemResponse.fit(answers, np.ones(40))
    assert np.corrcoef(model.abilities, ability)[0, 1] > 0.95
    assert np.corrcoef(model.difficulty, hard)[0, 1] > 0.9
    found = log_likelihood(model.probabilities(), answers[:2].astype(float))
    k, row = 30, 1
    one = model.probabilities()[k]
    twin = sum(np.log(q if y else 1 - q) for q, y in zip(one, answers[row], strict=True))
    assert found.shape == (2, len(GRID))
    assert found[row, k] == pytest.approx(twin, rel=1e-3)


def test_passes_for_reads_a_curve_backwards() -> None:
    import pandas as pd

    curve = pd.DataFrame({"passes": [8.0, 32.0, 128.0], "error": [8.0, 4.0, 2.0]})
    assert passes_for(curve, 4.0) == pytest.approx(32.0)
    assert passes_for(curve, 2 * np.sqrt(2)) == pytest.approx(64.0)
    assert passes_for(curve, 9.0) == 0.0
    assert passes_for(curve, 1.0) == np.inf
