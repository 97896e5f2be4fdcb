"""Randomised trees over all benchmarks together, which say at every row how far off they may be.

A scikit-learn regressor around `PooledForest`; a row is a (model, benchmark). Units: points, 0..100. Shapes: n rows, F features,
D benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from lmms_visual_heads.prediction.conformal import pooled_factor, usual_gap
from lmms_visual_heads.prediction.lineages import lineage_weights, training_rows
from lmms_visual_heads.prediction.regressors.pooled_forest import _FLOOR as FLOOR
from lmms_visual_heads.prediction.regressors.pooled_forest import _MISSING as MISSING
from lmms_visual_heads.prediction.regressors.pooled_forest import PooledForest, blended
from lmms_visual_heads.prediction.regressors.tree_arrays import TreeArrays

Array = npt.NDArray[np.float64]


class PooledTrees(RegressorMixin, BaseEstimator):
    """Randomised trees on the rows of all benchmarks; the benchmark is a feature like others.

    Why: see `pooled_forest`. Errors come from lineages that were left out, and a second forest learns their size from the same
    features. With `check`, a second view is fitted on those columns alone; see `pooled_forest.blended`.

    Parameters
    ----------
    check : sequence of int
        Columns of the second view; none: one view.
    n_trees, n_folds : int
        Trees, and groups of lineages that are left out in turn. On the development zoo 30 trees err as little as the study's 60,
        and a predictor fits them many times.
    random_state : int

    Attributes
    ----------
    residuals_ : array [n]
        Actual minus predicted, own lineage left out.
    sizes_ : array [n]
        Their sizes in units of the size expected there.
    groups_ : array [n]
        Lineages.
    benchmarks_ : array [D]
    forest_, second_ : PooledForest
        Their trees as `TreeArrays`; `second_` is None with one view.
    usual_ : float
        How far the two views are apart on nine of ten rows, in units of the expected error.
    n_features_in_ : int
    """

    def __init__(self, check: Sequence[int] = (), n_trees: int = 30, n_folds: int = 4, random_state: int = 0) -> None:
        self.check = check
        self.n_trees = n_trees
        self.n_folds = n_folds
        self.random_state = random_state

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        groups: npt.ArrayLike | None = None,
        benchmarks: npt.ArrayLike | None = None,
        items: npt.ArrayLike | None = None,
    ) -> Self:
        """Fit on n rows; arguments as those of `PooledBenchmarks.fit`, `items` are not used.

        Raises
        ------
        ValueError
            On infinite values, fewer than two rows, or arguments of other lengths.
        """
        rows, target = training_rows(self, X, y)
        lineages = np.arange(len(target)).astype(str) if groups is None else np.asarray(groups, dtype=np.str_)
        names = np.full(len(target), "") if benchmarks is None else np.asarray(benchmarks, dtype=np.str_)
        if len(lineages) != len(target) or len(names) != len(target):
            raise ValueError(f"groups and benchmarks must have one entry per row; got {len(lineages)} and {len(names)}")
        self.benchmarks_ = np.unique(names)
        self.groups_ = lineages
        self.forest_ = self._forest(rows, target, names, lineages)
        self.residuals_ = self.forest_.residuals_[:, 0]
        self.sizes_ = np.abs(self.residuals_) / self.forest_.spread_[:, 0]
        self.second_ = None
        self.usual_ = float("inf")
        if len(self.check):
            self.second_ = self._forest(rows[:, list(self.check)], target, names, lineages)
            gap = np.abs(self.residuals_ - self.second_.residuals_[:, 0]) / self.forest_.spread_[:, 0]
            self.usual_ = usual_gap(gap, lineages)
        return self

    def predict(self, X: npt.ArrayLike, benchmarks: npt.ArrayLike | None = None) -> Array:
        """Predictions [n] in points."""
        return self.predict_with_spread(X, benchmarks)[0]

    def predict_with_spread(self, X: npt.ArrayLike, benchmarks: npt.ArrayLike | None = None) -> tuple[Array, Array]:
        """Predictions, and the size of the error expected there, points, [n] each."""
        mean, spread, _ = self._blended(X, benchmarks)
        return mean, spread

    def excess(self, X: npt.ArrayLike, benchmarks: npt.ArrayLike | None = None) -> Array:
        """How far the two views are apart beside what nine of ten left-out rows show, [n]; 0 with one view."""
        return self._blended(X, benchmarks)[2]

    def _blended(self, X: npt.ArrayLike, benchmarks: npt.ArrayLike | None) -> tuple[Array, Array, Array]:
        """As `pooled_forest.blended`, [n] each; with one view that is compared with itself."""
        check_is_fitted(self, "forest_")
        rows = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        names = np.full(len(rows), "") if benchmarks is None else np.asarray(benchmarks, dtype=np.str_)
        mean, spread = _predicted(self.forest_, self._marked(rows, names))
        other = mean
        if self.second_ is not None:
            other, _ = _predicted(self.second_, self._marked(rows[:, list(self.check)], names))
        return blended(mean, other, spread, self.usual_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def factor(self, level: float) -> float:
        """As `intervals.pooled_factor`."""
        return pooled_factor(self.sizes_, self.groups_, level)

    def relative_std(self) -> float:
        """Standard deviation of errors on a new lineage, in units of the size expected there.

        Measured on left-out lineages: errors have heavier tails than a Gaussian's, whose factor would be 1.25.
        """
        square = float(np.average(self.sizes_**2, weights=lineage_weights(self.groups_)))
        return float(np.sqrt(square * (1 + 1 / len(np.unique(self.groups_)))))

    def check_trees(self) -> None:
        """ValueError where the trees of a file do not fit together; see `TreeArrays.check`."""
        for forest, n_columns in ((self.forest_, self.n_features_in_), (self.second_, len(self.check))):
            for trees in () if forest is None else (forest.scores_, forest.sizes_):
                trees.check(n_columns + len(self.benchmarks_))

    def _forest(
        self, rows: Array, target: Array, names: npt.NDArray[np.str_], lineages: npt.NDArray[np.str_]
    ) -> PooledForest:
        forest = PooledForest(False, self.n_trees, self.n_folds, self.random_state)
        forest.fit(self._marked(rows, names), target[:, None], lineages)
        forest.scores_, forest.sizes_ = TreeArrays.of(forest.scores_), TreeArrays.of(forest.sizes_)
        return forest

    def _marked(self, rows: Array, names: npt.NDArray[np.str_]) -> Array:
        """Features and the benchmark's marks as cells [n, 1, F + D]; a benchmark that was never seen has no mark."""
        marks = (names[:, None] == self.benchmarks_).astype(np.float64)
        return np.concatenate([rows, marks], axis=1)[:, None]


def _predicted(forest: PooledForest, cells: Array) -> tuple[Array, Array]:
    """Prediction and expected error of cells [n, 1, F], [n] each; not held in 0..100, so that targets may have any unit."""
    rows = np.where(np.isfinite(cells), cells, MISSING)[:, 0]
    return forest.scores_.predict(rows), np.maximum(forest.sizes_.predict(rows), FLOOR)


class TreesOfBenchmark:
    """A fitted `PooledTrees` as the regressor of one of its benchmarks."""

    def __init__(self, pooled: PooledTrees, benchmark: str) -> None:
        self.pooled = pooled
        self.benchmark = benchmark

    @property
    def n_features_in_(self) -> int:
        """Columns that it takes."""
        return int(self.pooled.n_features_in_)

    def predict(self, X: npt.ArrayLike) -> Array:
        """Points, shape [n]."""
        return self.pooled.predict(X, self._names(X))

    def half_width(self, X: npt.ArrayLike, level: float) -> Array:
        """Half-width of intervals that cover `level` of new lineages, points, [n]."""
        spread = self.pooled.predict_with_spread(X, self._names(X))[1]
        return self.pooled.factor(level) * spread

    def excess(self, X: npt.ArrayLike) -> Array:
        """As `PooledTrees.excess`."""
        return self.pooled.excess(X, self._names(X))

    def std(self, X: npt.ArrayLike) -> Array:
        """Standard deviation of the error on a new lineage, points, [n]."""
        spread = self.pooled.predict_with_spread(X, self._names(X))[1]
        return self.pooled.relative_std() * spread

    def _names(self, X: npt.ArrayLike) -> npt.NDArray[np.str_]:
        return np.full(len(np.asarray(X)), self.benchmark)


__all__ = ["PooledTrees", "TreesOfBenchmark"]
