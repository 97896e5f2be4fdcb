"""Ridge regression that chooses its penalty by leaving lineages out, down to predicting nothing but the mean.

A scikit-learn regressor. Every lineage counts the same however many checkpoints it has. Missing features are replaced by
their mean inside `fit`; new rows are held near the range of the training rows, so that no prediction is wild.
Shapes: n rows, F features, G lineages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin

from lmms_visual_heads.prediction.lineages import lineage_blocks, lineage_weights
from lmms_visual_heads.prediction.regressors.base import StandardisedFeatures, check_margin_and_reach

Array = npt.NDArray[np.float64]

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class LineageRidge(StandardisedFeatures, RegressorMixin, BaseEstimator):
    """Ridge on standardised features; penalty and use of the features chosen by leave-one-lineage-out.

    Minimises sum_i w_i (y_i - b - z_i beta)^2 + penalty * G * F * |beta|^2 with w_i = 1 / (rows of the lineage of i) and z
    the standardised features. Each penalty's error is exact leave-one-lineage-out of that objective (the block form of
    Allen's PRESS, 1974). Where no penalty lowers the mean's squared error by `margin`, the mean is predicted.

    Parameters
    ----------
    penalties : sequence of float
        Candidates, relative to the total variance of the standardised features.
    margin : float, 0..1
        Share of the mean's leave-one-lineage-out squared error that the features must explain to be used at all.
    reach : float
        How far, in standard deviations, a new row may leave the training rows' range before it is held there.

    Attributes
    ----------
    coef_ : array [F]
        Slopes on the standardised features; zero where the mean is predicted.
    intercept_ : float
        Mean over lineages.
    penalty_ : float
        Chosen penalty; infinity where the mean is predicted.
    center_, scale_, low_, high_ : array [F]
        Mean and standard deviation of the features, smallest and largest standardised value.
    n_features_in_ : int
    """

    def __init__(self, penalties: Sequence[float] = PENALTIES, margin: float = 0.2, reach: float = 0.5) -> None:
        self.penalties = penalties
        self.margin = margin
        self.reach = reach

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> Self:
        """Fit on n rows.

        Parameters
        ----------
        X : array [n, F]
            NaN where missing.
        y : array [n]
        groups : array [n] or None
            Lineage of every row; None makes every row its own.

        Raises
        ------
        ValueError
            On infinite values, fewer than two rows, or parameters out of range.
        """
        if not len(self.penalties) or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be positive numbers; got {self.penalties!r}")
        check_margin_and_reach(self.margin, self.reach)
        rows, target, lineages = self._training_rows(X, y, groups)
        weights = lineage_weights(lineages)
        z = self._standardise(rows, weights)
        self.intercept_ = float(np.average(target, weights=weights))
        root = np.sqrt(weights)
        u, s, vt = np.linalg.svd(root[:, None] * z, full_matrices=False)
        total = weights.sum() * z.shape[1]
        blocks = lineage_blocks(lineages)
        errors = [
            _left_out_error(u * np.sqrt(s**2 / (s**2 + penalty * total)), root, target, blocks)
            for penalty in self.penalties
        ]
        of_mean = _left_out_error(np.zeros((len(target), 1)), root, target, blocks)
        best = int(np.argmin(errors))
        if errors[best] < (1 - self.margin) * of_mean:
            self.penalty_ = float(self.penalties[best])
            shrunk = s / (s**2 + self.penalty_ * total)
            self.coef_ = vt.T @ (shrunk * (u.T @ (root * (target - self.intercept_))))
        else:
            self.penalty_ = float("inf")
            self.coef_ = np.zeros(z.shape[1])
        return self

    @property
    def predicts_mean(self) -> bool:
        """Whether nothing was found in the features, so that the mean is predicted."""
        return bool(self.penalty_ == np.inf)

    def predict(self, X: npt.ArrayLike) -> Array:
        """Predictions for the rows of `X`, shape [n]; missing features count as the training mean."""
        z = self._new_rows(X, self.reach)
        return np.asarray(self.intercept_ + (z * self.coef_).sum(axis=1), dtype=np.float64)


def _left_out_error(half: Array, root: Array, target: Array, blocks: list[npt.NDArray[np.intp]]) -> float:
    """Mean over lineages of the mean squared error when the lineage is left out of a weighted ridge.

    Parameters
    ----------
    half : array [n, r]
        Square root of the hat matrix without the intercept, in weighted rows.
    root : array [n]
        Square roots of the weights.
    blocks : list of array [lineages, size]
        As `lineage_blocks` gives them.
    """
    intercept = root / np.sqrt((root**2).sum())
    weighted = root * target
    residual = weighted - half @ (half.T @ weighted) - intercept * (intercept @ weighted)
    total = 0.0
    for rows in blocks:
        part, constant = half[rows], intercept[rows]
        gap = np.eye(rows.shape[1]) - part @ part.transpose(0, 2, 1) - constant[:, :, None] * constant[:, None, :]
        if np.linalg.eigvalsh(gap).min() < 1e-12:
            return float("inf")
        total += float((np.linalg.solve(gap, residual[rows][:, :, None]) ** 2).sum())
    return total / sum(len(rows) for rows in blocks)


__all__ = ["PENALTIES", "LineageRidge"]
