"""Partial least squares that chooses its components by leaving lineages out.

A scikit-learn regressor around `sklearn.cross_decomposition.PLSRegression`. Every lineage counts the same; a missing feature
counts as its mean; new rows are held near the range of the training rows. Shapes: n rows, F features, G lineages.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cross_decomposition import PLSRegression

from lmms_visual_heads.prediction.lineages import StandardisedFeatures, lineage_weights

Array = npt.NDArray[np.float64]

_FOLDS = 16
"""With more lineages than this they are left out in so many groups: a component costs far more than a ridge."""

_FLAT = 1e-10
"""Share of the target's own size below which what is left of it counts as nothing: no component is looked for there."""


class LineagePLS(StandardisedFeatures, RegressorMixin, BaseEstimator):
    """Partial least squares on standardised features; the number of components is chosen by leaving lineages out.

    Why: many head statistics move together, and a component is one direction of that common movement, the one that goes with
    the scores. With few rows that is steadier than choosing among single features. Rows are weighted by 1 / (rows of their
    lineage): `PLSRegression` takes no weights, so it is given every weighted row once as it is and once mirrored, which leaves
    all cross-products as they should be and makes its own centring do nothing. Where no number of components lowers the mean's
    squared error by `margin`, the mean is predicted.

    Parameters
    ----------
    max_components : int
        Most components to try.
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
    n_components_ : int
        Chosen number of components; 0 where the mean is predicted.
    errors_ : array
        Left-out root mean squared error with 0, 1, 2, ... components.
    center_, scale_, low_, high_ : array [F]
    n_features_in_ : int
    """

    def __init__(self, max_components: int = 4, margin: float = 0.2, reach: float = 0.5) -> None:
        self.max_components = max_components
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
        if self.max_components < 1 or not 0 <= self.margin < 1 or self.reach < 0:
            raise ValueError(
                "max_components must be at least 1, margin lie in [0, 1) and reach be at least 0; got "
                f"{self.max_components!r}, {self.margin!r} and {self.reach!r}"
            )
        rows, target, lineages = self._training_rows(X, y, groups)
        weights = lineage_weights(lineages)
        z = self._standardise(rows, weights)
        self.intercept_ = float(np.average(target, weights=weights))
        self.errors_ = self._left_out_errors(rows, target, lineages)
        best = int(np.argmin(self.errors_))
        if not self.errors_[best] ** 2 < (1 - self.margin) * self.errors_[0] ** 2:
            best = 0
        paths = coefficient_paths(z, target - self.intercept_, weights, best)
        self.n_components_ = len(paths) - 1
        self.coef_ = paths[-1]
        return self

    def predict(self, X: npt.ArrayLike) -> Array:
        """Predictions for the rows of `X`, shape [n]; missing features count as the training mean."""
        z = self._new_rows(X, self.reach)
        return np.asarray(self.intercept_ + z @ self.coef_, dtype=np.float64)

    def _left_out_errors(self, rows: Array, target: Array, lineages: npt.NDArray[np.int64]) -> Array:
        """Root mean squared error over left-out lineages with 0 ... `max_components` components."""
        names = np.unique(lineages)
        folds = [names[start::_FOLDS] for start in range(min(_FOLDS, len(names)))]
        errors = np.zeros((self.max_components + 1, len(target)))
        if len(names) < 2:
            return np.zeros(1)
        for fold in folds:
            out = np.isin(lineages, fold)
            inside = StandardisedFeatures()
            weights = lineage_weights(lineages[~out])
            z = inside._standardise(rows[~out], weights)
            mean = float(np.average(target[~out], weights=weights))
            paths = coefficient_paths(z, target[~out] - mean, weights, self.max_components)
            held = inside._held(rows[out], self.reach)
            for count in range(self.max_components + 1):
                # A residual that is used up has no further component: more of them predict the same.
                away = target[out] - mean - held @ paths[min(count, len(paths) - 1)]
                errors[count, out] = away**2
        return np.asarray(np.sqrt(np.average(errors, axis=1, weights=lineage_weights(lineages))), dtype=np.float64)


def coefficient_paths(z: Array, centred: Array, weights: Array, most: int) -> list[Array]:
    """Slopes with 0, 1, ..., at most `most` components, each [F], of a weighted partial least squares through the origin.

    Parameters
    ----------
    z : array [n, F]
        Standardised rows.
    centred : array [n]
        Target less its weighted mean.
    weights : array [n]
    """
    root = np.sqrt(weights)[:, None]
    wide, tall = root * z, root[:, 0] * centred
    flat = np.zeros(z.shape[1])
    rank = int(np.linalg.matrix_rank(wide)) if np.any(wide) else 0
    paths = [flat]
    size = np.sqrt((tall**2).sum())
    for count in range(1, min(most, rank) + 1):
        left = tall - wide @ paths[-1]
        # Nothing of the target is left, or nothing of it lies in the features.
        if np.sqrt((left**2).sum()) <= _FLAT * max(size, 1e-300) or not np.abs(wide.T @ left).max() > _FLAT * size:
            break
        if count == 1:
            fitted = PLSRegression(n_components=min(most, rank), scale=False, tol=1e-10, max_iter=1000)
            fitted.fit(np.vstack([wide, -wide]), np.concatenate([tall, -tall]))
        turned, loadings = fitted.x_rotations_[:, :count], fitted.y_loadings_[:, :count]
        paths.append((turned @ loadings.T)[:, 0])
    return paths


__all__ = ["LineagePLS", "coefficient_paths"]
