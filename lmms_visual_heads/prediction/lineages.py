"""Features made comparable inside `fit`: centred and scaled over lineages, missing ones at the mean, new rows held near the range.

Shared by the regressors. Shapes: n rows, F features. Never changes what it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted, validate_data

Array = npt.NDArray[np.float64]


def lineage_weights(groups: npt.ArrayLike) -> Array:
    """Weight 1 / (size of its lineage) for every row, shape [n]: lineages count the same, duplicates add nothing."""
    _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[index], dtype=np.float64)


def lineage_mean(y: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Mean over lineages of the mean over their rows: the baseline."""
    return float(np.average(np.asarray(y, dtype=np.float64), weights=lineage_weights(groups)))


def row_groups(groups: npt.ArrayLike | None, n_rows: int) -> npt.NDArray[np.int64]:
    """Lineage of every row as a number, shape [n]; None makes every row its own.

    Raises
    ------
    ValueError
        When there is not one entry per row.
    """
    if groups is None:
        return np.arange(n_rows)
    given = np.asarray(groups)
    if len(given) != n_rows:
        raise ValueError(f"groups must have one entry per row; got {len(given)} for {n_rows} rows")
    return np.asarray(np.unique(given, return_inverse=True)[1], dtype=np.int64).reshape(-1)


def lineage_blocks(groups: npt.ArrayLike) -> list[npt.NDArray[np.intp]]:
    """Row numbers of the lineages, one array [lineages, size] per size of lineage."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    return [np.array([m for m in members if len(m) == size]) for size in sorted({len(m) for m in members})]


def check_margin_and_reach(margin: float, reach: float) -> None:
    """Raise ValueError where a regressor's `margin` is not in [0, 1) or its `reach` is below 0."""
    if not 0 <= margin < 1 or reach < 0:
        raise ValueError(f"margin must lie in [0, 1) and reach be at least 0; got {margin!r} and {reach!r}")


def training_rows(estimator: Any, X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
    """What `fit` of `estimator` was given, checked as scikit-learn asks: rows [n, F] (NaN where missing), targets [n].

    Raises
    ------
    ValueError
        On infinite values, or fewer than two rows.
    """
    X, y = validate_data(
        estimator, X, y, y_numeric=True, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2
    )
    return np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)


class StandardisedFeatures:
    """Checks what a regressor is given, learns centre, scale and range of the features over lineages, and brings rows to them.

    Attributes
    ----------
    center_, scale_ : array [F]
        Weighted mean and standard deviation of what is there; the scale of a constant feature is infinite, so that it counts
        for nothing.
    low_, high_ : array [F]
        Smallest and largest standardised value.
    """

    center_: Array
    scale_: Array
    low_: Array
    high_: Array

    def _training_rows(
        self, X: npt.ArrayLike, y: npt.ArrayLike, groups: npt.ArrayLike | None
    ) -> tuple[Array, Array, npt.NDArray[np.int64]]:
        """As `training_rows`, with lineages as numbers."""
        rows, target = training_rows(self, X, y)
        return rows, target, row_groups(groups, len(target))

    def _new_rows(self, X: npt.ArrayLike, reach: float) -> Array:
        """What `predict` was given, checked, standardised and held within `reach` of the training rows' range."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")
        return self._held(np.asarray(X), reach)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.allow_nan = True
        return tags

    def _standardise(self, rows: Array, weights: Array) -> Array:
        """Learn from `rows` [n, F] with `weights` [n]; gives the standardised rows."""
        there = np.isfinite(rows)
        mass = (there * weights[:, None]).sum(axis=0)
        safe = np.where(mass > 0, mass, 1.0)
        self.center_ = (np.where(there, rows, 0.0) * weights[:, None]).sum(axis=0) / safe
        spread = np.where(there, rows - self.center_, 0.0)
        scale = np.sqrt((spread**2 * weights[:, None]).sum(axis=0) / safe)
        constant = scale <= 1e-12 * np.maximum(np.abs(self.center_), 1e-300)
        self.scale_ = np.where(constant, np.inf, scale)
        z = self._z(rows)
        self.low_, self.high_ = z.min(axis=0), z.max(axis=0)
        return z

    def _z(self, rows: Array) -> Array:
        """Standardised rows; a missing feature counts as the mean."""
        return np.where(np.isfinite(rows), (rows - self.center_) / self.scale_, 0.0)

    def _held(self, rows: Array, reach: float) -> Array:
        """Standardised rows, held within `reach` standard deviations of the range of the training rows."""
        return np.clip(self._z(rows), self.low_ - reach, self.high_ + reach)


__all__ = [
    "StandardisedFeatures",
    "check_margin_and_reach",
    "lineage_blocks",
    "lineage_mean",
    "lineage_weights",
    "row_groups",
    "training_rows",
]
