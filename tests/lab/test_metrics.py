"""Metrics and the item response model against short, obviously right twins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lab.study import metrics
from lab.study.item_response import GRID, ItemResponse, log_likelihood

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


def test_ranks_equal_their_twins() -> None:
    actual, predicted = matrices()
    rho, tau = [], []
    for b in range(actual.shape[1]):
        there = [g for g in range(len(actual)) if np.isfinite(actual[g, b])]
        ranks = [stats.rankdata([m[g, b] for g in there]) for m in (actual, predicted)]
        rho.append(np.corrcoef(*ranks)[0, 1])
        pairs = [(i, j) for i in range(len(there)) for j in range(i)]
        tau.append(np.mean([np.sign((ranks[0][i] - ranks[0][j]) * (ranks[1][i] - ranks[1][j])) for i, j in pairs]))
    assert metrics.rank_correlations(actual, predicted) == pytest.approx((np.mean(rho), np.mean(tau)))


def test_a_constant_prediction_ranks_nothing() -> None:
    actual, _ = matrices()
    flat = np.full_like(actual, 50.0)
    assert metrics.rank_correlations(actual, flat) == (0.0, 0.0)


def test_coverage_is_clopper_and_pearson_where_counts_are_whole() -> None:
    inside = np.array([1.0] * 27 + [0.0] * 3)
    found = metrics.coverage(inside, np.arange(30))
    exact = stats.binomtest(27, 30).proportion_ci(0.95, method="exact")
    assert found == pytest.approx((0.9, exact.low, exact.high))
    doubled = metrics.coverage(np.repeat(inside, 5), np.repeat(np.arange(30), 5))
    assert doubled == pytest.approx(found)
    assert metrics.coverage(np.ones(4), np.arange(4)).high == 1.0


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
