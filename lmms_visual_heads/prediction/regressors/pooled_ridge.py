"""One regression for all benchmarks together, on the logit scale of the score, with intercepts shrunk towards a common one.

A scikit-learn regressor; a row is a (model, benchmark). Units: points, 0..100. Shapes: n rows, F features, D benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, RegressorMixin

from lmms_visual_heads.prediction.lineages import lineage_weights
from lmms_visual_heads.prediction.regressors.base import StandardisedFeatures, check_margin_and_reach

Array = npt.NDArray[np.float64]

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
SHRINKAGES = (0.03, 0.5, float("inf"))
LINKS = ("logit", "identity")
_FEWEST_ITEMS, _DEFAULT_ITEMS = 2.0, 1000.0


class PooledBenchmarks(StandardisedFeatures, RegressorMixin, BaseEstimator):
    """Ridge over (model, benchmark) rows: common slopes, an intercept per benchmark that is drawn towards the common one.

    Why: what a confidence or an information of answers says about a score is much the same on every benchmark, so all of them
    can teach one slope; a benchmark's own difficulty is its intercept. Shrunk intercepts (a random effect) let a benchmark that
    was seen on few models borrow from the others, and one that was never seen gets the common intercept. The logit scale keeps
    predictions in range and makes a step near the ceiling as hard as it is; a score of 0 or 100 percent of n items counts as
    half an item from the edge. Rows are weighted so that every lineage counts the same. Penalty and shrinkage are chosen by
    exact leave-one-lineage-out error in points, features standardised beforehand; where the features do not lower the left-out
    squared error of the intercepts alone by `margin`, the intercepts alone are predicted.

    Parameters
    ----------
    penalties : sequence of float
        Candidates for the slopes, relative to the total variance of the standardised features.
    shrinkages : sequence of float
        Candidates for the intercepts, in lineages' worth of weight; infinity is one common intercept.
    margin : float, 0..1
    reach : float
        How far, in standard deviations, a new row may leave the training rows' range before it is held there.
    link : "logit" or "identity"
        Scale of the regression; "identity" takes targets of any size.

    Attributes
    ----------
    coef_ : array [F]
    intercept_ : float
        The common intercept, on the scale of the link.
    benchmarks_ : array [D]
        Names, sorted.
    offsets_ : array [D]
        Their intercepts less the common one.
    penalty_, shrinkage_ : float
    center_, scale_, low_, high_ : array [F]
    n_features_in_ : int
    """

    def __init__(
        self,
        penalties: Sequence[float] = PENALTIES,
        shrinkages: Sequence[float] = SHRINKAGES,
        margin: float = 0.1,
        reach: float = 0.5,
        link: str = "logit",
    ) -> None:
        self.penalties = penalties
        self.shrinkages = shrinkages
        self.margin = margin
        self.reach = reach
        self.link = link

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        groups: npt.ArrayLike | None = None,
        benchmarks: npt.ArrayLike | None = None,
        items: npt.ArrayLike | None = None,
    ) -> Self:
        """Fit on n rows.

        Parameters
        ----------
        X : array [n, F]
            NaN where missing.
        y : array [n]
            Points, 0..100 (any number with the identity link).
        groups : array [n] or None
            Lineage of every row; None makes every row its own.
        benchmarks : array [n] or None
            Name of every row's benchmark; None: one benchmark.
        items : array [n] or None
            Items behind every score; None or NaN: a thousand.

        Raises
        ------
        ValueError
            On infinite values, fewer than two rows, scores outside 0..100 with the logit link, or parameters out of range.
        """
        self._check_parameters()
        rows, target, lineages = self._training_rows(X, y, groups)
        if self.link == "logit" and not ((target >= 0) & (target <= 100)).all():
            raise ValueError("y must lie in 0..100 points with the logit link; use link='identity' for other numbers")
        names = self._names(benchmarks, len(target))
        count = np.full(len(target), _DEFAULT_ITEMS) if items is None else np.asarray(items, dtype=np.float64)
        if len(names) != len(target) or len(count) != len(target):
            raise ValueError(f"benchmarks and items must have one entry per row; got {len(names)} and {len(count)}")
        weights = lineage_weights(lineages)
        z = self._standardise(rows, weights)
        self.benchmarks_, at = np.unique(names, return_inverse=True)
        onehot = (at[:, None] == np.arange(len(self.benchmarks_))).astype(np.float64)
        parts = _Parts.of(
            np.column_stack([z, onehot, np.ones(len(z))]), self._linked(target, count), target, weights, lineages
        )
        self._choose(parts, z.shape[1], weights.sum() * z.shape[1])
        beta = np.linalg.solve(parts.square.sum(axis=0) + self._penalty_matrix(*self._chosen_), parts.cross.sum(axis=0))
        self.coef_, self.offsets_, self.intercept_ = beta[: z.shape[1]], beta[z.shape[1] : -1], float(beta[-1])
        return self

    @property
    def predicts_mean(self) -> bool:
        """Whether nothing was found in the features, so that the mean is predicted."""
        return bool(self.penalty_ == np.inf)

    def predict(self, X: npt.ArrayLike, benchmarks: npt.ArrayLike | None = None) -> Array:
        """Predictions [n] in points; without a benchmark's name, or with one never seen, by the common intercept."""
        z = self._new_rows(X, self.reach)
        offset = np.zeros(len(z))
        if benchmarks is not None:
            names = self._names(benchmarks, len(z))
            at = np.clip(np.searchsorted(self.benchmarks_, names), 0, len(self.benchmarks_) - 1)
            offset = np.where(self.benchmarks_[at] == names, self.offsets_[at], 0.0)
        elif len(self.benchmarks_) == 1:
            offset = np.full(len(z), self.offsets_[0])
        return self._unlinked(self.intercept_ + offset + z @ self.coef_)

    def _check_parameters(self) -> None:
        if not len(self.penalties) or min(self.penalties) <= 0 or not len(self.shrinkages) or min(self.shrinkages) <= 0:
            raise ValueError(
                f"penalties and shrinkages must be positive numbers; got {self.penalties!r} and {self.shrinkages!r}"
            )
        check_margin_and_reach(self.margin, self.reach)
        if self.link not in LINKS:
            raise ValueError(f"link must be one of {', '.join(LINKS)}; got {self.link!r}")

    @staticmethod
    def _names(benchmarks: npt.ArrayLike | None, n_rows: int) -> npt.NDArray[np.str_]:
        return np.full(n_rows, "", dtype=np.str_) if benchmarks is None else np.asarray(benchmarks, dtype=np.str_)

    def _linked(self, points: Array, items: Array) -> Array:
        if self.link == "identity":
            return points
        half = 0.5 / np.maximum(np.where(np.isfinite(items), items, _DEFAULT_ITEMS), _FEWEST_ITEMS)
        return np.asarray(logit(np.clip(points / 100, half, 1 - half)), dtype=np.float64)

    def _unlinked(self, values: Array) -> Array:
        return values if self.link == "identity" else np.asarray(100 * expit(values), dtype=np.float64)

    def _penalty_matrix(self, slope: float, intercept: float) -> Array:
        """Diagonal penalty: on slopes, on the benchmarks' offsets, none on the common intercept."""
        n_features, n_benchmarks = self.n_features_in_, len(self.benchmarks_)
        # One benchmark has no offset of its own: the common intercept is its intercept.
        offset = min(intercept, 1e9) if n_benchmarks > 1 else 1e9
        return np.diag([*[slope] * n_features, *[offset] * n_benchmarks, 0.0])

    def _choose(self, parts: _Parts, n_features: int, total: float) -> None:
        """Sets penalty and shrinkage; an infinite penalty is intercepts alone."""
        shrinkages = [float(s) for s in self.shrinkages] if len(self.benchmarks_) > 1 else [float("inf")]
        tried = {
            (float(penalty), shrinkage): parts.left_out_error(
                self._penalty_matrix(float(penalty) * total, shrinkage), self._unlinked
            )
            for penalty in self.penalties
            for shrinkage in shrinkages
        }
        alone = {
            s: parts.left_out_error(self._penalty_matrix(1e12 * max(total, 1.0), s), self._unlinked) for s in shrinkages
        }
        best = min(tried, key=lambda choice: tried[choice])
        bare = min(alone, key=lambda choice: alone[choice])
        if tried[best] < (1 - self.margin) * alone[bare]:
            self.penalty_, self.shrinkage_ = best
            self._chosen_ = (self.penalty_ * total, self.shrinkage_)
        else:
            self.penalty_, self.shrinkage_ = float("inf"), bare
            self._chosen_ = (1e12 * max(total, 1.0), bare)


class OneBenchmark:
    """A fitted `PooledBenchmarks` as the regressor of one of its benchmarks."""

    def __init__(self, pooled: PooledBenchmarks, benchmark: str) -> None:
        self.pooled = pooled
        self.benchmark = benchmark

    @property
    def n_features_in_(self) -> int:
        """Columns that it takes."""
        return int(self.pooled.n_features_in_)

    @property
    def predicts_mean(self) -> bool:
        """Whether nothing was found in the features, so that the mean is predicted."""
        return self.pooled.predicts_mean

    def predict(self, X: npt.ArrayLike) -> Array:
        """Points, shape [n]."""
        rows = np.asarray(X, dtype=np.float64)
        return self.pooled.predict(rows, np.full(len(rows), self.benchmark))


class _Parts(NamedTuple):
    """Cross-products per lineage, so that leaving one out is a subtraction."""

    square: Array
    cross: Array
    design: Array
    points: Array
    lineages: npt.NDArray[np.int64]

    @classmethod
    def of(cls, design: Array, linked: Array, points: Array, weights: Array, lineages: npt.NDArray[np.int64]) -> _Parts:
        root = np.sqrt(weights)[:, None]
        rows, values = root * design, root[:, 0] * linked
        blocks = [np.flatnonzero(lineages == name) for name in range(lineages.max() + 1)]
        square = np.array([rows[own].T @ rows[own] for own in blocks])
        cross = np.array([rows[own].T @ values[own] for own in blocks])
        return cls(square, cross, design, points, lineages)

    def left_out_error(self, penalty: Array, unlinked: Any) -> float:
        """Mean over lineages of the mean squared error in points when the lineage is left out."""
        if len(self.square) < 2:
            return float("inf")
        left = self.square.sum(axis=0) - self.square + penalty
        # A benchmark that only the left-out lineage has leaves a row of zeros where its offset is not shrunk.
        left += 1e-9 * np.eye(left.shape[1])
        beta = np.linalg.solve(left, (self.cross.sum(axis=0) - self.cross)[:, :, None])[:, :, 0]
        predicted = unlinked((self.design * beta[self.lineages]).sum(axis=1))
        squares = (predicted - self.points) ** 2
        sums = np.bincount(self.lineages, squares)
        return float((sums / np.bincount(self.lineages)).mean())


__all__ = ["PENALTIES", "SHRINKAGES", "OneBenchmark", "PooledBenchmarks"]
