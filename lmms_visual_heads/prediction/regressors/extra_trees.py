"""Randomised trees over all benchmarks together, which say at every row how far off they may be.

Why trees: scores are held between chance and 100, calibration differs from benchmark to benchmark, and a model that was never
taught a kind of question differs from one that was by a step, not by a slope. The two settings of the trees were chosen on the
development zoo. scikit-learn's `ExtraTreesRegressor` (Geurts, Ernst and Wehenkel 2006) does the work; errors come from lineages
that were left out. `PooledForest` takes the cells of a score matrix, `PooledTrees` is a scikit-learn regressor around it whose
rows are (model, benchmark).
Units: points, 0..100. Shapes: M checkpoints, T new ones, B benchmarks, F features, n rows or known cells, D benchmarks of a fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.validation import check_is_fitted, validate_data

from lmms_visual_heads.prediction.conformal import pooled_factor, usual_gap
from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.regressors.base import training_rows
from lmms_visual_heads.prediction.regressors.tree_arrays import TreeArrays

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAF, SPREAD_LEAF = 2, 10
"""Smallest leaves of the trees for scores, and for the size of errors."""
MISSING = -99.0
"""Stands for a missing feature: far from every value, so that trees can split it off."""
FLOOR = 1.0
"""Smallest error that is expected, points."""


def blended(first: Array, second: Array, spread: Array, usual: float) -> tuple[Array, Array, Array]:
    """Two views of the same scores as one: prediction, size of the error expected there, and how far the views are apart.

    Where they differ by more than the `usual` gap, in units of the first one's expected error, the first is trusted less by the
    square of the excess, and the spread grows by it. That is how a change that moves confidences and no answers, such as a
    temperature, is noticed.
    """
    apart = np.abs(first - second) / spread / usual
    excess = np.maximum(apart, 1.0)
    trust = excess**-2
    return trust * first + (1.0 - trust) * second, spread * excess, apart


class PooledForest:
    """Randomised trees on the cells of a score matrix, and how far off they may be.

    Parameters
    ----------
    per_benchmark : bool
        Whether the benchmark is a feature; False where a benchmark is predicted whose scores are not known.
    n_trees, n_folds : int
        Trees, and groups of lineages that are left out in turn; where the benchmark is no feature, each together with each of as
        many groups of benchmarks.
    random_state : int

    Attributes
    ----------
    residuals_ : array [M, B]
        Actual minus predicted, own lineage left out (and own benchmark, where it is no feature); NaN where the score is not known.
    spread_ : array [M, B]
        Size of the error expected there, left out alike.
    """

    def __init__(self, per_benchmark: bool = True, n_trees: int = 60, n_folds: int = 4, random_state: int = 0) -> None:
        self.per_benchmark = per_benchmark
        self.n_trees = n_trees
        self.n_folds = n_folds
        self.random_state = random_state

    def fit(self, X: Array, y: Array, groups: npt.NDArray[np.str_], unseen: Array | None = None) -> Self:
        """Fit on features [M, B, F] (NaN where missing), points [M, B] (NaN where not known) and lineages [M].

        `unseen` [M, B, F]: the features of every cell as they are while its benchmark has no scores; None: the same. Left-out
        cells are predicted from these.
        """
        if np.isinf(X).any():
            raise ValueError("features must be finite or missing")
        known = np.isfinite(y)
        rows, target = self._rows(X)[known], y[known]
        weights = np.broadcast_to(lineage_weights(groups)[:, None], y.shape)[known]
        cuts = self._cuts(known, groups)
        asked = rows if unseen is None else self._rows(unseen)[known]
        left_out = self._left_out(rows, asked, target, weights, cuts, LEAF)
        size = np.abs(target - left_out)
        expected = np.maximum(self._left_out(asked, asked, size, weights, cuts, SPREAD_LEAF), FLOOR)
        self.residuals_, self.spread_ = np.full(y.shape, np.nan), np.full(y.shape, np.nan)
        self.residuals_[known], self.spread_[known] = target - left_out, expected
        self.scores_ = self._trees(LEAF).fit(rows, target, sample_weight=weights)
        self.sizes_ = self._trees(SPREAD_LEAF).fit(asked, size, sample_weight=weights)
        return self

    def predict(self, X: Array) -> tuple[Array, Array]:
        """Points, and the size of the error expected there, each [T, B]."""
        rows = self._rows(X)
        flat = rows.reshape(-1, rows.shape[2])
        mean = self.scores_.predict(flat).reshape(rows.shape[:2])
        spread = np.maximum(self.sizes_.predict(flat), FLOOR).reshape(rows.shape[:2])
        return np.clip(mean, 0.0, 100.0), spread

    def _rows(self, X: Array) -> Array:
        filled = np.where(np.isfinite(X), X, MISSING)
        marks = np.broadcast_to(np.eye(X.shape[1]), (X.shape[0], X.shape[1], X.shape[1]))
        return np.concatenate([filled, marks], axis=2) if self.per_benchmark else filled

    def _cuts(self, known: Mask, groups: npt.NDArray[np.str_]) -> list[tuple[Mask, Mask]]:
        """What is left out in turn, and what the trees see meanwhile: pairs of masks over the known cells [n].

        A group of lineages; where the benchmark is no feature, each with each group of benchmarks, and neither is seen.
        """
        random = np.random.default_rng(self.random_state)
        names, of_model = np.unique(groups, return_inverse=True)
        folds = random.permutation(len(names)) % min(self.n_folds, len(names))
        fold = np.broadcast_to(folds[of_model][:, None], known.shape)[known]
        scored = np.flatnonzero(known.any(axis=0))
        if self.per_benchmark or len(scored) < 2:
            return [(fold == number, fold != number) for number in np.unique(fold)]
        parts = np.zeros(known.shape[1], dtype=np.intp)
        parts[scored] = random.permutation(len(scored)) % min(self.n_folds, len(scored))
        part = np.broadcast_to(parts, known.shape)[known]
        pairs = np.unique(np.stack([fold, part], axis=1), axis=0)
        return [((fold == f) & (part == p), (fold != f) & (part != p)) for f, p in pairs]

    def _left_out(
        self, rows: Array, asked: Array, target: Array, weights: Array, cuts: list[tuple[Mask, Mask]], leaf: int
    ) -> Array:
        """Predictions [n] at `asked` by trees on the `rows` that a cut lets them see."""
        out = np.empty(len(target))
        for here, seen in cuts:
            # One lineage alone: nothing can be left out, so its own mean stands in and its error counts in full.
            if not seen.any():
                out[here] = np.average(target, weights=weights)
                continue
            fitted = self._trees(leaf).fit(rows[seen], target[seen], sample_weight=weights[seen])
            out[here] = fitted.predict(asked[here])
        return out

    def _trees(self, leaf: int) -> ExtraTreesRegressor:
        return ExtraTreesRegressor(
            self.n_trees, min_samples_leaf=leaf, max_features=1.0, random_state=self.random_state
        )


class PooledTrees(RegressorMixin, BaseEstimator):
    """Randomised trees on the rows of all benchmarks; the benchmark is a feature like others.

    Errors come from lineages that were left out, and a second forest learns their size from the same
    features. With `check`, a second view is fitted on those columns alone; see `blended`.

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
        """As `blended`, [n] each; with one view that is compared with itself."""
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
        """As `conformal.pooled_factor`."""
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


__all__ = ["PooledForest", "PooledTrees", "TreesOfBenchmark", "blended"]
