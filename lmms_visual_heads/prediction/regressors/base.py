"""What the regressors share: features made comparable inside `fit`, centred and scaled over lineages, missing ones at the mean.

New rows are held near the range of the training rows. Never changes what it is given. Shapes: n rows, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted, validate_data

from lmms_visual_heads.prediction.lineages import row_groups

Array = npt.NDArray[np.float64]


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
        present = np.isfinite(rows)
        mass = (present * weights[:, None]).sum(axis=0)
        safe = np.where(mass > 0, mass, 1.0)
        self.center_ = (np.where(present, rows, 0.0) * weights[:, None]).sum(axis=0) / safe
        spread = np.where(present, rows - self.center_, 0.0)
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


__all__ = ["StandardisedFeatures", "check_margin_and_reach", "training_rows"]
