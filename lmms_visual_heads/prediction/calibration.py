"""From a confidence to an expected correctness: a monotone map learnt on reference models scored on the same benchmark.

Kept as knots of a piecewise linear function, so that it is plain numbers in a file. Units: 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.lineages import lineage_weights

Array = npt.NDArray[np.float64]

KINDS = ("logistic", "isotonic")
_KNOTS = np.concatenate([[0.0], expit(np.linspace(-9, 9, 121)), [1.0]])
_EDGE = 1e-4
_WIDE_SLOPE, _WIDE_SLOPE_STD = 0.5, 0.5
_LEAST_SLOPE_STD = 0.15
_FEWEST_MODELS = 3


@dataclass(frozen=True, slots=True)
class ConfidenceMap:
    """A map g from confidence to expected correctness, and what a unit of g is worth within a model.

    Attributes
    ----------
    knots, values : tuple of float
        g is linear between the knots.
    slope, slope_std : float
        Prior of the slope of correctness on g within a new model: 1 where g is calibrated, 0 where it says nothing, below 0 where
        the model is surest of its mistakes.
    n_models : int
        Reference models behind the map; 0 where nothing was learnt.
    """

    knots: tuple[float, ...]
    values: tuple[float, ...]
    slope: float
    slope_std: float
    n_models: int

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        if len(self.knots) != len(self.values) or len(self.knots) < 2 or not rising or not self.slope_std > 0:
            raise VisualHeadsError(
                "A confidence map needs rising knots, a value at each and a spread of the slope above 0."
            )

    @classmethod
    def identity(cls) -> Self:
        """The confidence as it is; its worth is held for half of what a calibrated one would have, and may be nothing."""
        return cls((0.0, 1.0), (0.0, 1.0), _WIDE_SLOPE, _WIDE_SLOPE_STD, 0)

    @classmethod
    def fit(
        cls,
        confidence: Sequence[npt.ArrayLike],
        correct: Sequence[npt.ArrayLike],
        lineages: Sequence[Any],
        kind: str = "logistic",
    ) -> Self:
        """Learn from reference models.

        Every lineage counts the same. Models that are each surest of their mistakes give a falling logistic map, whose slope is 1
        again. With fewer than three models nothing is learnt.

        Parameters
        ----------
        confidence, correct : sequence of arrays
            Per model its items' confidences (NaN: missing) and correctness.
        lineages : sequence
            Per model its lineage.
        kind : "logistic" or "isotonic"
        """
        if kind not in KINDS:
            raise VisualHeadsError(f"A confidence map is one of {', '.join(KINDS)}; {kind!r} came.")
        if not len(confidence) == len(correct) == len(lineages):
            raise VisualHeadsError(
                f"A confidence map needs confidences, labels and a lineage per model; {len(confidence)}, {len(correct)} and "
                f"{len(lineages)} came."
            )
        pairs = [_pair(c, y) for c, y in zip(confidence, correct, strict=True)]
        kept = [(pair, lineage) for pair, lineage in zip(pairs, lineages, strict=True) if len(pair[0]) > 1]
        if len(kept) < _FEWEST_MODELS:
            return cls.identity()
        of_model = lineage_weights([lineage for _, lineage in kept])
        c = np.concatenate([pair[0] for pair, _ in kept])
        y = np.concatenate([pair[1] for pair, _ in kept])
        weights = np.concatenate([np.full(len(p[0]), w / len(p[0])) for (p, _), w in zip(kept, of_model, strict=True)])
        weights = weights / weights.mean()
        values = _logistic(c, y, weights) if kind == "logistic" else _isotonic(c, y, weights)
        mapped = cls(tuple(map(float, _KNOTS)), tuple(map(float, values)), 1.0, 1.0, len(kept))
        slope, slope_std = _slopes([(mapped(pair[0]), pair[1]) for pair, _ in kept], of_model)
        return cls(mapped.knots, mapped.values, slope, slope_std, len(kept))

    def __call__(self, confidence: npt.ArrayLike) -> Array:
        """g of confidences; missing stays missing."""
        c = np.asarray(confidence, dtype=np.float64)
        there = np.isfinite(c)
        return np.where(there, np.interp(np.where(there, c, 0.5), self.knots, self.values), np.nan)


def _pair(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Array, Array]:
    c, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if c.shape != y.shape:
        raise VisualHeadsError(
            f"Every label needs its confidence; {len(y)} labels came with {len(c)} confidences. Join them by doc_id."
        )
    there = np.isfinite(c) & np.isfinite(y)
    return c[there], y[there]


def _logistic(c: Array, y: Array, weights: Array) -> Array:
    x = logit(np.clip(c, _EDGE, 1 - _EDGE))[:, None]
    if not (y * weights).sum() or not ((1 - y) * weights).sum():
        return np.full(len(_KNOTS), float(np.average(y, weights=weights)))
    both = np.concatenate([weights * y, weights * (1 - y)])
    used = both > 0
    fitted = LogisticRegression(C=100.0).fit(
        np.vstack([x, x])[used], np.repeat([1, 0], len(y))[used], sample_weight=both[used]
    )
    return np.asarray(fitted.predict_proba(logit(np.clip(_KNOTS, _EDGE, 1 - _EDGE))[:, None])[:, 1], dtype=np.float64)


def _isotonic(c: Array, y: Array, weights: Array) -> Array:
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, increasing="auto", out_of_bounds="clip")
    return np.asarray(fitted.fit(c, y, sample_weight=weights).predict(_KNOTS), dtype=np.float64)


def _slopes(pairs: list[tuple[Array, Array]], weights: Array) -> tuple[float, float]:
    """Mean of the models' own slopes of correctness on g, and their spread as a new model's may deviate."""
    slopes, kept = [], []
    for (g, y), weight in zip(pairs, weights, strict=True):
        spread = float(np.var(g))
        if spread > 1e-6:
            slopes.append(float(np.mean((g - g.mean()) * (y - y.mean()))) / spread)
            kept.append(weight)
    if len(slopes) < _FEWEST_MODELS:
        return _WIDE_SLOPE, _WIDE_SLOPE_STD
    mean = float(np.average(slopes, weights=kept))
    deviation = float(np.sqrt(np.average((np.array(slopes) - mean) ** 2, weights=kept) * (1 + 2 / len(slopes))))
    return mean, max(deviation, _LEAST_SLOPE_STD)


__all__ = ["KINDS", "ConfidenceMap"]
