"""The pooled forest: bent dependence is learnt, lineages are left out whole, missing features and scores are missing."""

from __future__ import annotations

import numpy as np
import pytest

from lmms_visual_heads.prediction.conformal import pooled_factor, usual_gap
from lmms_visual_heads.prediction.regressors.pooled_forest import PooledForest, blended


def bent_world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [60, 4, 2], points [60, 4] that step up where the first feature passes 0, lineages of three checkpoints."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 4, 2))
    y = np.where(x[:, :, 0] > 0, 90.0, 10.0) + np.array([0.0, 2.0, 4.0, 6.0]) + rng.normal(0, 1, (60, 4))
    return x, np.clip(y, 0, 100), np.repeat([f"l{i:02d}" for i in range(20)], 3)


def test_a_step_is_learnt_and_its_errors_are_those_of_left_out_lineages() -> None:
    x, y, groups = bent_world()
    new_x, new_y, _ = bent_world(1)
    forest = PooledForest().fit(x, y, groups)
    mean, spread = forest.predict(new_x)
    assert np.abs(mean - new_y).mean() < 10
    assert np.abs(forest.residuals_).mean() == pytest.approx(np.abs(mean - new_y).mean(), abs=5)
    near, far = np.abs(new_x[:, :, 0]) < 0.15, np.abs(new_x[:, :, 0]) > 0.8
    assert spread[near].mean() > 2 * spread[far].mean()


def test_a_lineage_does_not_see_itself() -> None:
    """Labels that only a lineage's own checkpoints share are of no use to it."""
    rng = np.random.default_rng(2)
    groups = np.repeat([f"l{i:02d}" for i in range(20)], 3)
    own = rng.uniform(0, 100, 20)[np.repeat(np.arange(20), 3)]
    x = np.broadcast_to(own[:, None, None], (60, 3, 1)).copy()
    scores = rng.uniform(0, 100, 20)[np.repeat(np.arange(20), 3)]
    y = np.broadcast_to(scores[:, None], (60, 3)).copy()
    forest = PooledForest().fit(x, y, groups)
    assert np.abs(forest.predict(x)[0] - y).mean() < 15
    assert np.abs(forest.residuals_).mean() > 20


def test_for_a_new_benchmark_errors_are_those_of_benchmarks_left_out() -> None:
    """What is true of a benchmark alone is of no use for another: its left-out errors say so, and the intervals grow."""
    rng = np.random.default_rng(3)
    groups = np.repeat([f"l{i:02d}" for i in range(20)], 3)
    mark = rng.uniform(0, 100, 8)
    x = np.broadcast_to(rng.permutation(8)[None, :, None] / 8.0, (60, 8, 1)).copy()
    y = np.broadcast_to(mark[None, :], (60, 8)) + rng.normal(0, 1, (60, 8))
    forest = PooledForest(per_benchmark=False).fit(x, np.clip(y, 0, 100), groups)
    assert np.abs(forest.predict(x)[0] - y).mean() < 3
    assert np.abs(forest.residuals_).mean() > 10
    seen = PooledForest(per_benchmark=True).fit(x, np.clip(y, 0, 100), groups)
    assert np.abs(seen.residuals_).mean() < 3


def test_left_out_cells_are_asked_with_what_is_known_of_a_new_benchmark() -> None:
    x, y, groups = bent_world()
    blind = np.zeros_like(x)
    forest = PooledForest(per_benchmark=False).fit(x, y, groups, blind)
    assert np.abs(forest.predict(x)[0] - y).mean() < 10
    assert np.abs(forest.residuals_).mean() > 25


def test_missing_scores_stay_missing_and_missing_features_are_allowed() -> None:
    x, y, groups = bent_world()
    y[3, 1] = np.nan
    x[5, 2] = np.nan
    forest = PooledForest().fit(x, y, groups)
    assert np.isnan(forest.residuals_[3, 1])
    assert np.isfinite(np.delete(forest.residuals_.ravel(), 3 * 4 + 1)).all()
    assert np.isfinite(forest.predict(x)[0]).all()
    x[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite or missing"):
        PooledForest().fit(x, y, groups)


def test_factor_and_usual_gap_of_a_table_are_those_of_its_known_cells() -> None:
    """Against a list of cells in which every lineage's known cells share the weight that its rows would have."""
    rng = np.random.default_rng(3)
    groups = np.repeat([f"l{i:02d}" for i in range(18)], rng.integers(1, 4, 18))
    sizes = rng.exponential(size=(len(groups), 3))
    sizes[rng.random(sizes.shape) < 0.2] = np.nan
    cells = [
        (value, 1 / (groups == group).sum())
        for group, row in zip(groups, sizes, strict=True)
        for value in row
        if np.isfinite(value)
    ]
    total = sum(weight for _, weight in cells)

    def smallest(level: float) -> float:
        return min(v for v, _ in cells if sum(w for size, w in cells if size <= v) >= level * total - 1e-9)

    assert pooled_factor(sizes, groups, 0.8) == smallest(0.8)
    assert usual_gap(sizes, groups) == smallest(0.9)
    assert usual_gap(np.zeros((2, 1)), np.array(["a", "b"])) == 1e-3


def test_views_that_agree_change_nothing_and_others_are_trusted_less() -> None:
    mean, spread, apart = blended(np.array([50.0, 50.0]), np.array([53.0, 62.0]), np.array([3.0, 3.0]), 2.0)
    np.testing.assert_allclose(apart, [0.5, 2.0])
    np.testing.assert_allclose(mean, [50.0, 50 / 4 + 62 * 3 / 4])
    np.testing.assert_allclose(spread, [3.0, 6.0])
