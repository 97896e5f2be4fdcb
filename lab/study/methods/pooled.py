"""Pooled ridge: one regression for all benchmarks, on the logit scale, with an intercept per benchmark.

Slopes are common; deviations of a benchmark's slopes from them are shrunk more. Both penalties are chosen by leaving lineages
out, exactly (the block form of Allen's PRESS, 1974). Where nothing helps, each benchmark's mean is predicted.
Shapes: M checkpoints, B benchmarks, F features, n rows = known (checkpoint, benchmark) cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.prediction.lineages import lineage_blocks, lineage_weights

Array = npt.NDArray[np.float64]

PENALTIES = (0.0001, 0.0006, 0.004, 0.025, 0.15, 1.0)
DEVIATIONS = (0.0, 0.25)
"""Variance of a benchmark's deviation from the common slopes, as a share of the common slopes' variance."""
MARGIN = 0.02
"""Share of the means' left-out squared error that features must explain to be used at all."""
REACH = 0.5
"""Standard deviations by which a new row may leave the range of the fitted rows before it is held there."""


class PooledRidge:
    """Ridge over all cells of a score matrix.

    Parameters
    ----------
    per_benchmark : bool
        An intercept and a centre per benchmark; False: one for all, so that a benchmark that was never seen can be predicted.
        Checkpoints at the end of their training have intercepts and centres of their own: everybody knows which are.
    penalties, deviations : sequence of float
        Candidates.
    margin : float

    Attributes
    ----------
    residuals_ : array [M, B]
        Target minus prediction, own lineage left out, at the chosen penalties; NaN where the target is not known.
    penalty_, deviation_ : float
        Chosen; an infinite penalty means that the features are not used.
    slopes_ : array [B, F]
        On standardised features.
    """

    def __init__(
        self,
        per_benchmark: bool = True,
        penalties: Sequence[float] = PENALTIES,
        deviations: Sequence[float] = DEVIATIONS,
        margin: float = MARGIN,
    ) -> None:
        self.per_benchmark = per_benchmark
        self.penalties = penalties
        self.deviations = deviations
        self.margin = margin

    def fit(self, X: Array, y: Array, groups: npt.NDArray[np.str_], final: npt.NDArray[np.bool_] | None = None) -> Self:
        """Fit on M checkpoints.

        Parameters
        ----------
        X : array [M, B, F]
            NaN where missing; F may be 0.
        y : array [M, B]
            Logits of scores; NaN where not known.
        groups : array [M]
            Lineages.
        final : bool array [M] or None
            Whether a checkpoint is the end of its training; None: all are.

        Raises
        ------
        ValueError
            On infinite features or no known cell.
        """
        if np.isinf(X).any():
            raise ValueError("features must be finite or missing")
        model, benchmark = np.nonzero(np.isfinite(y))
        if not len(model):
            raise ValueError("at least one known score is required")
        n_benchmarks = y.shape[1]
        target = y[model, benchmark]
        lineage = groups[model]
        self.n_blocks_ = 2 * (n_benchmarks if self.per_benchmark else 1)
        block = self._blocks(benchmark, np.ones(len(y), dtype=bool)[model] if final is None else final[model])
        weights = lineage_weights(lineage) * len(np.unique(benchmark))
        self._standardise(X[model, benchmark], weights, block)
        z = self._z(X[model, benchmark], block)
        self.low_: Array = z.min(axis=0)
        self.high_: Array = z.max(axis=0)
        mass = np.bincount(block, weights, minlength=self.n_blocks_)
        sums = np.bincount(block, weights * target, minlength=self.n_blocks_)
        overall = float(sums.sum() / mass.sum())
        self.intercepts_ = np.divide(sums, mass, out=np.full(self.n_blocks_, overall), where=mass > 0)
        # Where one kind of checkpoint was not fitted, the other kind of the same benchmark stands in.
        self.intercepts_ = np.where(
            mass > 0, self.intercepts_, np.where(mass[self._others] > 0, self.intercepts_[self._others], overall)
        )
        root = np.sqrt(weights)
        constants = np.zeros((len(target), self.n_blocks_))
        constants[np.arange(len(target)), block] = root / np.sqrt(np.maximum(mass, 1e-300)[block])
        centred = root * (target - self.intercepts_[block])
        rows = lineage_blocks(lineage)
        nothing = np.zeros((len(target), 1))
        best_residuals = left_out(nothing, constants, root * target, rows) / root
        of_mean = _mean_square(best_residuals, weights)
        best = (of_mean * (1 - self.margin), float("inf"), 0.0)
        self.slopes_ = np.zeros((n_benchmarks, z.shape[1]))
        deviations = self.deviations if self.per_benchmark else (0.0,)
        for deviation in deviations if z.shape[1] else ():
            design = root[:, None] * _spread(z, benchmark, n_benchmarks, deviation)
            u, s2, v = _decomposed(design)
            total = weights.sum() * z.shape[1]
            for penalty in self.penalties:
                half = u * np.sqrt(s2 / (s2 + penalty * total))
                residuals = left_out(half, constants, root * target, rows) / root
                error = _mean_square(residuals, weights)
                if error < best[0]:
                    best = (error, float(penalty), float(deviation))
                    best_residuals = residuals
                    coefficients = v @ (np.sqrt(s2) / (s2 + penalty * total) * (u.T @ centred))
                    self.slopes_ = _slopes(coefficients, z.shape[1], n_benchmarks, deviation)
        _, self.penalty_, self.deviation_ = best
        self.residuals_ = np.full(y.shape, np.nan)
        self.residuals_[model, benchmark] = best_residuals
        return self

    def predict(self, X: Array, final: npt.NDArray[np.bool_] | None = None) -> Array:
        """Logits [T, B] for features [T, B, F]; missing features count as the mean of the fitted ones."""
        n_models, n_benchmarks = X.shape[:2]
        block = self._all_blocks(n_models, n_benchmarks, final)
        z = np.clip(self._z(X.reshape(n_models * n_benchmarks, -1), block), self.low_ - REACH, self.high_ + REACH)
        slopes = self.slopes_[np.tile(np.arange(n_benchmarks), n_models)]
        return np.asarray((self.intercepts_[block] + (z * slopes).sum(axis=1)).reshape(n_models, n_benchmarks))

    def overshoot(self, X: Array, final: npt.NDArray[np.bool_] | None = None) -> Array:
        """Standard deviations by which a row [T, B] lies outside the range of the fitted rows: the largest over features."""
        n_models, n_benchmarks = X.shape[:2]
        if not X.shape[2]:
            return np.zeros((n_models, n_benchmarks))
        z = self._z(X.reshape(n_models * n_benchmarks, -1), self._all_blocks(n_models, n_benchmarks, final))
        beyond = np.maximum(z - self.high_, self.low_ - z).max(axis=1)
        return np.asarray(np.maximum(beyond, 0.0).reshape(n_models, n_benchmarks))

    def _blocks(self, benchmark: npt.NDArray[np.int64], final: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.asarray(2 * (benchmark if self.per_benchmark else 0) + final, dtype=np.int64)

    def _all_blocks(
        self, n_models: int, n_benchmarks: int, final: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.int64]:
        ends = np.ones(n_models, dtype=bool) if final is None else final
        return self._blocks(np.tile(np.arange(n_benchmarks), n_models), np.repeat(ends, n_benchmarks))

    @property
    def _others(self) -> npt.NDArray[np.int64]:
        """For every block the one of the other kind of checkpoint."""
        return np.arange(self.n_blocks_) ^ 1

    def _standardise(self, rows: Array, weights: Array, block: npt.NDArray[np.int64]) -> None:
        there = np.isfinite(rows)
        w = there * weights[:, None]
        filled = np.where(there, rows, 0.0)
        mass, sums = (
            np.array([np.bincount(block, column, minlength=self.n_blocks_) for column in table.T])
            .reshape(rows.shape[1], self.n_blocks_)
            .T
            for table in (w, w * filled)
        )
        overall = np.divide(sums.sum(axis=0), mass.sum(axis=0), out=np.zeros(rows.shape[1]), where=mass.sum(axis=0) > 0)
        self.center_ = np.where(mass > 0, sums / np.where(mass > 0, mass, 1.0), overall)
        lacking = (mass == 0) & (mass[self._others] > 0)
        self.center_ = np.where(lacking, self.center_[self._others], self.center_)
        spread = np.where(there, rows - self.center_[block], 0.0)
        variance = np.divide(
            (w * spread**2).sum(axis=0), w.sum(axis=0), out=np.zeros(rows.shape[1]), where=w.sum(axis=0) > 0
        )
        scale = np.sqrt(variance)
        constant = scale <= 1e-9 * np.maximum(np.abs(overall), 1e-300)
        self.scale_ = np.where(constant, np.inf, scale)

    def _z(self, rows: Array, block: npt.NDArray[np.int64]) -> Array:
        return np.where(np.isfinite(rows), (rows - self.center_[block]) / self.scale_, 0.0)


def left_out(half: Array, constants: Array, target: Array, rows: list[npt.NDArray[np.intp]]) -> Array:
    """Residuals of weighted rows when their own lineage is left out of a ridge with unpenalised intercepts.

    Parameters
    ----------
    half : array [n, r]
        Square root of the hat matrix without the intercepts, in weighted rows.
    constants : array [n, k]
        Orthonormal columns of the intercepts, in weighted rows.
    target : array [n]
        Weighted target.
    rows : list of array [lineages, size]
        As `lineage_blocks` gives them.

    Notes
    -----
    r_l = (I - H_ll)^-1 (y - H y)_l for the rows l of a lineage. The centre of the features is the one of all rows, which moves
    the result by less than the lineage's share of the rows. A lineage that alone knows a benchmark cannot be left out of it;
    the smallest eigenvalues are held at 1e-6 then.
    """
    residual = target - half @ (half.T @ target) - constants @ (constants.T @ target)
    out = np.empty_like(target)
    for chosen in rows:
        part, own = half[chosen], constants[chosen]
        gap = np.eye(chosen.shape[1]) - part @ part.transpose(0, 2, 1) - own @ own.transpose(0, 2, 1)
        gap = gap + 1e-9 * np.eye(chosen.shape[1])
        out[chosen] = np.linalg.solve(gap, residual[chosen][:, :, None])[:, :, 0]
    return out


def _decomposed(design: Array) -> tuple[Array, Array, Array]:
    """Thin singular value decomposition (u, squared singular values, v) by the smaller of the two Gram matrices."""
    wide = design.shape[1] > design.shape[0]
    values, vectors = np.linalg.eigh(design @ design.T if wide else design.T @ design)
    keep = values > 1e-10 * max(float(values.max()), 1e-300)
    s2, kept = values[keep], vectors[:, keep]
    other = (design.T if wide else design) @ kept / np.sqrt(s2)
    return (kept, s2, other) if wide else (other, s2, kept)


def _spread(z: Array, benchmark: npt.NDArray[np.int64], n_benchmarks: int, deviation: float) -> Array:
    """Common columns, and a scaled copy per benchmark where slopes may deviate, [n, F (1 + B)]."""
    if not deviation:
        return z
    own = np.zeros((len(z), n_benchmarks, z.shape[1]))
    own[np.arange(len(z)), benchmark] = np.sqrt(deviation) * z
    return np.concatenate([z, own.reshape(len(z), -1)], axis=1)


def _slopes(coefficients: Array, n_features: int, n_benchmarks: int, deviation: float) -> Array:
    common = coefficients[:n_features]
    if not deviation:
        return np.tile(common, (n_benchmarks, 1))
    return np.asarray(common + np.sqrt(deviation) * coefficients[n_features:].reshape(n_benchmarks, n_features))


def _mean_square(residuals: Array, weights: Array) -> float:
    return float(np.average(residuals**2, weights=weights))
