"""Two-parameter item response model of one benchmark: how hard every item is, learnt on reference checkpoints.

The baseline of tinyBenchmarks (Polo et al. 2024, arXiv 2402.14992): P(correct) = 1 / (1 + exp(-(a_i theta_m - b_i))). Fitted by
Newton steps on the posterior with theta ~ N(0, 1), a ~ N(1, 0.5^2), b ~ N(mean, 2^2).
Shapes: M checkpoints, n items, K grid points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Array = npt.NDArray[np.float64]

GRID = np.linspace(-4.0, 4.0, 81)
"""Abilities at which a posterior is evaluated."""

_STEPS = 12
_LEAST_DISCRIMINATION = 0.1


@dataclass(frozen=True)
class ItemResponse:
    """A fitted model.

    Attributes
    ----------
    discrimination, difficulty : array [n]
        a and b.
    abilities : array [M]
        Of the reference checkpoints.
    """

    discrimination: Array
    difficulty: Array
    abilities: Array

    @classmethod
    def fit(cls, correct: npt.NDArray[np.floating], weights: Array) -> Self:
        """Fit on answers [M, n] (1 right, 0 wrong) with one weight per checkpoint [M]."""
        y = np.asarray(correct, dtype=np.float32)
        w = np.asarray(weights, dtype=np.float32)
        share = (y.sum(axis=1) + 1.0) / (y.shape[1] + 2.0)
        theta = np.log(share / (1.0 - share))
        theta = (theta - np.average(theta, weights=w)).astype(np.float32)
        theta /= max(float(np.sqrt(np.average(theta**2, weights=w))), 1e-3)
        a = np.ones(y.shape[1], dtype=np.float32)
        easy = (w @ y + 0.5) / (w.sum() + 1.0)
        b = -np.log(easy / (1.0 - easy)).astype(np.float32)
        centre = float(b.mean())
        for _ in range(_STEPS):
            p = expit(np.outer(theta, a) - b)
            gap, spread = w[:, None] * (y - p), w[:, None] * p * (1.0 - p)
            grad_a = theta @ gap - (a - 1.0) / 0.25
            grad_b = -gap.sum(axis=0) - (b - centre) / 4.0
            h_aa = (theta**2) @ spread + 4.0
            h_bb = spread.sum(axis=0) + 0.25
            h_ab = -(theta @ spread)
            det = h_aa * h_bb - h_ab**2
            a = a + np.clip((h_bb * grad_a - h_ab * grad_b) / det, -0.5, 0.5)
            b = b + np.clip((h_aa * grad_b - h_ab * grad_a) / det, -1.0, 1.0)
            a = np.maximum(a, _LEAST_DISCRIMINATION)
            p = expit(np.outer(theta, a) - b)
            step = ((y - p) @ a - theta) / ((p * (1.0 - p)) @ (a**2) + 1.0)
            theta = theta + np.clip(step, -0.5, 0.5)
        return cls(a.astype(np.float64), b.astype(np.float64), theta.astype(np.float64))

    def probabilities(self) -> Array:
        """P(correct) of every item at every ability of `GRID`, [K, n]."""
        return np.asarray(expit(np.outer(GRID, self.discrimination) - self.difficulty), dtype=np.float64)


def log_likelihood(probabilities: Array, correct: Array) -> Array:
    """Log-likelihood [T, K] of answers [T, n] to the items of `probabilities` [K, n]."""
    p = np.clip(probabilities, 1e-4, 1.0 - 1e-4)
    return np.asarray(correct @ np.log(p).T + (1.0 - correct) @ np.log(1.0 - p).T, dtype=np.float64)


def ability_posterior(probabilities: Array, correct: Array, log_prior: Array | None = None) -> Array:
    """Posterior [T, K] over `GRID` after answers [T, n] to the items of `probabilities` [K, n]; rows sum to 1.

    `log_prior` [K] may lack its constant; None: standard normal.
    """
    logs = log_likelihood(probabilities, correct) + (-(GRID**2) / 2 if log_prior is None else log_prior)
    mass = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(mass / mass.sum(axis=1, keepdims=True), dtype=np.float64)
