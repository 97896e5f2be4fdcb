"""Pooled forest: randomised trees over all cells of a score matrix; which benchmark a cell belongs to is a feature like others.

Why trees: scores are held between chance and 100, calibration differs from benchmark to benchmark, and a model that was never
taught a kind of question differs from one that was by a step, not by a slope. The two settings of the trees were chosen on the
development zoo. scikit-learn's `ExtraTreesRegressor` (Geurts, Ernst and Wehenkel 2006) does the work; errors come from lineages
that were left out.
Units: points. Shapes: M checkpoints, T new ones, B benchmarks, F features, n known cells.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesRegressor

from lmms_visual_heads.prediction.lineages import lineage_weights

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAF, SPREAD_LEAF = 2, 10
"""Smallest leaves of the trees for scores, and for the size of errors."""
_MISSING = -99.0
"""Stands for a missing feature: far from every value, so that trees can split it off."""
_FLOOR = 1.0
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
        expected = np.maximum(self._left_out(asked, asked, size, weights, cuts, SPREAD_LEAF), _FLOOR)
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
        spread = np.maximum(self.sizes_.predict(flat), _FLOOR).reshape(rows.shape[:2])
        return np.clip(mean, 0.0, 100.0), spread

    def _rows(self, X: Array) -> Array:
        filled = np.where(np.isfinite(X), X, _MISSING)
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
