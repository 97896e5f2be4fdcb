"""The arithmetic of the joint model: Gaussian mixtures over score columns, shrunk, conditioned, completed. Pure functions.

Units: points. M models, D score columns, C components, K known columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

COMMON_WEIGHT = 5.0
"""Models' worth of prior weight of the common component: how likely a new model belongs to no known family."""

_LEAST_VARIANCE = 0.25
"""Points squared; a benchmark with one value keeps this variance, so that every matrix can be solved."""

_EM_STEPS = 30
_EM_TOLERANCE = 0.05
"""Points: the completion has settled when its scores move by less than this on average."""


@dataclass(frozen=True)
class Components:
    """A mixture of Gaussians.

    Attributes
    ----------
    names : tuple of str or None
        Families; None, first, is the common component.
    weights : array [C]
        Prior probabilities.
    means : array [C, D]
    covariances : array [C, D, D]
    """

    names: tuple[Any, ...]
    weights: Array
    means: Array
    covariances: Array

    def only(self, name: Any) -> Components:
        """The component of one family; the mixture as it is where the family is not among them or not told."""
        if name is None or str(name) not in self.names:
            return self
        at = self.names.index(str(name))
        return Components((str(name),), np.ones(1), self.means[[at]], self.covariances[[at]])


def mean_correlations(correlations: Array, blocks: npt.NDArray[Any]) -> Array:
    """Target of the shrinkage [D, D]: the mean correlation within blocks, that between blocks, 1 on the diagonal."""
    same = blocks[:, None] == blocks[None, :]
    other = ~same
    np.fill_diagonal(same, False)
    within = correlations[same].mean() if same.any() else 0.0
    between = correlations[other].mean() if other.any() else 0.0
    target = np.where(blocks[:, None] == blocks[None, :], max(within, between, 0.0), max(between, 0.0))
    np.fill_diagonal(target, 1.0)
    return target


def shrunk(covariance: Array, blocks: npt.NDArray[Any], shrinkage: float, block_share: float) -> Array:
    """Covariance whose correlations R became (1 - s) R + s (b T + (1 - b) I), T of `mean_correlations`; positive definite."""
    std = np.sqrt(np.maximum(np.diag(covariance), _LEAST_VARIANCE))
    correlations = covariance / std / std[:, None]
    np.fill_diagonal(correlations, 1.0)
    target = block_share * mean_correlations(correlations, blocks) + (1 - block_share) * np.eye(len(std))
    return ((1 - shrinkage) * correlations + shrinkage * target) * std * std[:, None]


def components(
    filled: Array,
    spread: Array | None,
    families: npt.NDArray[Any],
    blocks: npt.NDArray[Any],
    shrinkage: float,
    pull: float,
    block_share: float,
    family_shrinkage: float,
) -> Components:
    """The mixture: all models, and every family of two and more.

    A family's mean is m + n / (n + f) (mean of its n models - m), f `family_shrinkage`, m the common mean; its
    covariance is (scatter of its models + pull * common covariance) / (n + pull).

    Parameters
    ----------
    filled : array [M, D]
        Scores, missing ones replaced by their conditional means.
    spread : array [M, D, D] or None
        Conditional covariances of what was missing; None: nothing was.
    """
    mean = filled.mean(axis=0)
    scatter = (filled - mean).T @ (filled - mean)
    if spread is not None:
        scatter = scatter + spread.sum(axis=0)
    common = scatter / max(len(filled) - 1, 1)
    names: list[Any] = [None]
    weights, means, covariances = [COMMON_WEIGHT], [mean], [shrunk(common, blocks, shrinkage, block_share)]
    if np.isfinite(pull):
        for family, size in zip(*np.unique(families, return_counts=True), strict=True):
            if size < 2:
                continue
            own = families == family
            center = mean + size / (size + family_shrinkage) * (filled[own].mean(axis=0) - mean)
            within = (filled[own] - center).T @ (filled[own] - center) + pull * common
            if spread is not None:
                within = within + spread[own].sum(axis=0)
            names.append(str(family))
            weights.append(float(size))
            means.append(center)
            covariances.append(shrunk(within / (size + pull), blocks, shrinkage, block_share))
    total = np.array(weights)
    return Components(tuple(names), total / total.sum(), np.array(means), np.array(covariances))


def condition(
    mixture: Components, rows: Array, known: npt.NDArray[np.int64], noise: Array, full: bool = False
) -> tuple[Array, Array]:
    """Means [n, D] and standard deviations [n, D] (with `full` covariances [n, D, D]) of rows that share what is known.

    Parameters
    ----------
    rows : array [n, D]
        Read at the columns `known` only.
    noise : array [D]
        Variance of the known scores.
    """
    C = len(mixture.means)
    n, K = len(rows), len(known)
    variances = np.diagonal(mixture.covariances, axis1=1, axis2=2)
    if K == 0:
        means = np.repeat(mixture.means[:, None], n, axis=1)
        logs = np.zeros((C, n))
        weight = None
    else:
        rest = np.swapaxes(rows[None, :, known] - mixture.means[:, None, known], 1, 2)
        cross = mixture.covariances[:, known]
        root = np.linalg.cholesky(cross[:, :, known] + np.diag(noise[known]))
        weight = np.linalg.solve(root, cross)
        white = np.linalg.solve(root, rest)
        means = mixture.means[:, None] + np.swapaxes(white, 1, 2) @ weight
        variances = np.maximum(variances - (weight**2).sum(axis=1), 0.0)
        logs = -0.5 * (white**2).sum(axis=1) - np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)[:, None]
    logs = logs + np.log(mixture.weights)[:, None]
    share = np.exp(logs - logs.max(axis=0))
    share /= share.sum(axis=0)
    mean = np.einsum("cn,cnd->nd", share, means)
    away = means - mean
    if full:
        inner = mixture.covariances if weight is None else mixture.covariances - np.swapaxes(weight, 1, 2) @ weight
        return mean, np.einsum("cn,cde->nde", share, inner) + np.einsum("cn,cnd,cne->nde", share, away, away)
    return mean, np.sqrt(share.T @ variances + np.einsum("cn,cnd->nd", share, away**2))


def complete(
    scores: Array, blocks: npt.NDArray[Any], shrinkage: float, block_share: float
) -> tuple[Array, Array | None]:
    """Missing scores replaced by their conditional means, and their conditional covariances [M, D, D].

    Expectation maximisation of one Gaussian (Dempster, Laird, Rubin 1977), its covariance shrunk in every step.
    """
    missing = ~np.isfinite(scores)
    if not missing.any():
        return scores, None
    n_models, n_columns = scores.shape
    mean = np.nanmean(scores, axis=0)
    filled = np.where(missing, mean, scores)
    covariance = np.diag(np.maximum(np.nanvar(scores, axis=0, ddof=1), _LEAST_VARIANCE))
    spread = np.zeros((n_models, n_columns, n_columns))
    for step in range(_EM_STEPS):
        before = filled.copy()
        for position in range(n_models):
            h = np.flatnonzero(missing[position])
            if not len(h):
                continue
            one = Components((None,), np.ones(1), mean[None], covariance[None])
            a = np.flatnonzero(~missing[position])
            expected, matrix = condition(one, scores[[position]], a, np.zeros(n_columns), full=True)
            filled[position, h] = expected[0, h]
            spread[position][np.ix_(h, h)] = matrix[0][np.ix_(h, h)]
        mean = filled.mean(axis=0)
        away = filled - mean
        covariance = shrunk((away.T @ away + spread.sum(axis=0)) / (n_models - 1), blocks, shrinkage, block_share)
        if step and np.abs(filled - before).mean() < _EM_TOLERANCE:
            break
    return filled, spread


__all__ = ["COMMON_WEIGHT", "Components", "complete", "components", "condition", "mean_correlations", "shrunk"]
