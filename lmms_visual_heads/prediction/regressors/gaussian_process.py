"""A Gaussian process on few declared features whose settings are chosen by leaving lineages out; says how sure it is.

A scikit-learn regressor around `sklearn.gaussian_process.GaussianProcessRegressor`. A missing feature counts as its mean; new
rows are held near the range of the training rows. Shapes: n rows, F features, G lineages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from lmms_visual_heads.prediction.lineages import lineage_blocks, lineage_weights
from lmms_visual_heads.prediction.regressors.base import StandardisedFeatures, check_margin_and_reach

Array = npt.NDArray[np.float64]

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Length scales to choose from, in units of sqrt(F) standard deviations: the last is a plane within the data."""

NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Variance of a lineage's own deviation to choose from, in units of the signal's."""

_FREE_LEVEL = 100.0
"""Variance of the unknown overall level in units of the signal's: large, so that the data set it."""


class LineageProcess(StandardisedFeatures, RegressorMixin, BaseEstimator):
    """Gaussian process whose length scale, noise and scale come from lineages that were left out, not from the likelihood.

    Why: a confidence becomes a score along a bent line, and a plane misses the bend; and a process says where it knows little.
    Its likelihood would treat the checkpoints of one training as independent, so the settings are chosen by the exact error on
    left-out lineages (block form of Rasmussen and Williams 2006, equations 5.12), a row's noise is multiplied by the number of
    rows of its lineage (copies add nothing), and the overall variance is what makes left-out standardised errors have size one.
    Where the process does not lower the mean's left-out squared error by `margin`, it is the mean.

    Parameters
    ----------
    lengths, noises : sequence of float
        Candidates; see `LENGTHS` and `NOISES`.
    margin : float, 0..1
        Share of the mean's leave-one-lineage-out squared error that the features must explain to be used at all.
    reach : float
        How far, in standard deviations, a new row may leave the training rows' range before it is held there.

    Attributes
    ----------
    process_ : GaussianProcessRegressor or None
        Fitted on the standardised features and the centred target; None where the mean is predicted.
    intercept_ : float
        Mean over lineages.
    mean_std_ : float
        Standard deviation of a new lineage around the mean.
    noise_std_ : float
        Standard deviation of a new model around the curve, from the errors on left-out lineages; part of every predicted one.
    settings_ : (float, float)
        Length scale and noise that were chosen; infinite where the mean is predicted.
    center_, scale_, low_, high_ : array [F]
    n_features_in_ : int
    """

    def __init__(
        self,
        lengths: Sequence[float] = LENGTHS,
        noises: Sequence[float] = NOISES,
        margin: float = 0.2,
        reach: float = 0.5,
    ) -> None:
        self.lengths = lengths
        self.noises = noises
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
        if not len(self.lengths) or not len(self.noises) or min(*self.lengths, *self.noises) <= 0:
            raise ValueError(f"lengths and noises must be positive numbers; got {self.lengths!r} and {self.noises!r}")
        check_margin_and_reach(self.margin, self.reach)
        rows, target, lineages = self._training_rows(X, y, groups)
        weights = lineage_weights(lineages)
        z = self._standardise(rows, weights)
        n_lineages = len(np.unique(lineages))
        self.intercept_ = float(np.average(target, weights=weights))
        centred = target - self.intercept_
        spread = float(np.average(centred**2, weights=weights)) * n_lineages / max(n_lineages - 1, 1)
        self.mean_std_ = float(np.sqrt(spread * (1 + 1 / n_lineages)))
        self.noise_std_ = self.mean_std_
        self.process_, self.settings_ = None, (float("inf"), float("inf"))
        if n_lineages < 2 or spread <= 0 or not np.isfinite(self.scale_).any():
            return self
        of_mean = _mean_left_out(target, lineages)
        best = min(
            (choice for length in self.lengths for choice in self._tried(z, centred, lineages, float(length))),
            key=lambda choice: choice.error,
        )
        if best.error < (1 - self.margin) * of_mean:
            variance, length, noise = best.variance, best.length, best.noise
            self.settings_ = (length, noise)
            # What is left of the left-out errors beside the uncertainty of the curve; never below a tenth of them.
            own = max(best.error - variance * best.curve, 0.1 * best.error)
            self.noise_std_ = float(np.sqrt(own))
            self.process_ = GaussianProcessRegressor(
                _kernel(variance, length, z.shape[1]), alpha=variance * noise / weights, optimizer=None
            ).fit(z, centred)
        return self

    @property
    def predicts_mean(self) -> bool:
        """Whether nothing was found in the features, so that the mean is predicted."""
        return self.process_ is None

    @overload
    def predict(self, X: npt.ArrayLike, return_std: Literal[False] = False) -> Array: ...

    @overload
    def predict(self, X: npt.ArrayLike, return_std: Literal[True]) -> tuple[Array, Array]: ...

    def predict(self, X: npt.ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Predictions [n], with `return_std` also the standard deviation of a new lineage's value around each [n]."""
        z = self._new_rows(X, self.reach)
        if self.process_ is None:
            mean = np.full(len(z), self.intercept_)
            return (mean, np.full(len(z), self.mean_std_)) if return_std else mean
        if not return_std:
            return np.asarray(self.intercept_ + self.process_.predict(z), dtype=np.float64)
        away, std = self.process_.predict(z, return_std=True)
        return self.intercept_ + away, np.sqrt(std**2 + self.noise_std_**2)

    def _tried(self, z: Array, centred: Array, lineages: npt.NDArray[np.int64], length: float) -> list[_Choice]:
        """The left-out errors of one length scale with every noise.

        One eigendecomposition serves all noises: (K + v S)^-1 = S^-1/2 (S^-1/2 K S^-1/2 + v I)^-1 S^-1/2.
        """
        root = np.sqrt(lineage_weights(lineages))
        values, vectors = np.linalg.eigh(_kernel(1.0, length, z.shape[1])(z) * root * root[:, None])
        scaled = root[:, None] * vectors
        blocks = lineage_blocks(lineages)
        n_lineages = sum(len(own) for own in blocks)
        results = []
        for noise in map(float, self.noises):
            weighted = scaled / (np.maximum(values, 0.0) + noise)
            direction = weighted @ (scaled.T @ centred)
            squares = standard = curve = 0.0
            for own in blocks:
                covariance = np.linalg.inv(weighted[own] @ scaled[own].transpose(0, 2, 1))
                residual = (covariance @ direction[own][:, :, None])[:, :, 0]
                size = own.shape[1]
                squares += float((residual**2).sum()) / size
                standard += float((residual * direction[own]).sum()) / size
                curve += float(np.trace(covariance, axis1=1, axis2=2).sum()) / size - noise * size * len(own)
            results.append(_Choice(squares / n_lineages, standard / n_lineages, curve / n_lineages, length, noise))
        return results


class _Choice(NamedTuple):
    """Left-out squared error, variance of the signal, the curve's own left-out variance in units of it, and the settings."""

    error: float
    variance: float
    curve: float
    length: float
    noise: float


def _kernel(variance: float, length: float, n_features: int) -> Any:
    return ConstantKernel(_FREE_LEVEL * variance) + ConstantKernel(variance) * RBF(length * np.sqrt(n_features))


def _mean_left_out(target: Array, lineages: npt.NDArray[np.int64]) -> float:
    """Squared error of the mean over the other lineages, every lineage counting the same."""
    means = np.array([target[lineages == name].mean() for name in np.unique(lineages)])
    others = (means.sum() - means) / (len(means) - 1)
    return float(
        np.mean([np.mean((target[lineages == k] - o) ** 2) for k, o in zip(np.unique(lineages), others, strict=True)])
    )


__all__ = ["LENGTHS", "NOISES", "LineageProcess"]
