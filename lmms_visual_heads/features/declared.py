"""The features of a checkpoint: a short list, fixed before any score was looked at, none of which grows with the model's size.

Shapes: a `Grid` holds arrays [L, H] of one model on one task, L layers, H heads. Depth runs from 0 (first layer) to 1 (last).
Concentration and the visual-head score are left out on purpose: they depend on the number of visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TOP_SHARE = 0.125
"""Share of the heads that "top heads" are: an eighth, at least one head."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Profile of one model on one task, each array [L, H]; NaN where missing."""

    image_attention: Array
    focus: Array
    region_lift: Array
    sink_attention: Array

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.image_attention, self.focus, self.region_lift, self.sink_attention)}
        if len(shapes) != 1 or self.image_attention.ndim != 2:
            raise ValueError(f"every array must have one shape [L, H]; they have {shapes}")

    @property
    def depth(self) -> Array:
        """Depth of every head, [L, H], 0..1 (0.5 in a model of one layer)."""
        n_layers, n_heads = self.image_attention.shape
        depth = np.linspace(0.0, 1.0, n_layers) if n_layers > 1 else np.array([0.5])
        return np.repeat(depth[:, None], n_heads, axis=1)


@dataclass(frozen=True, slots=True)
class Feature:
    """One number about a checkpoint.

    Attributes
    ----------
    name, unit : str
    formula : str
        W image attention, F focus, over the heads of the model; "top heads": the eighth with the largest W.
    reason : str
        Why it may say something about the scores, and why it compares across sizes.
    compute : callable
        Grid -> number, NaN where it is missing.
    """

    name: str
    unit: str
    formula: str
    reason: str
    compute: Callable[[Grid], float]


def top_mean(values: Array, by: Array) -> float:
    """Mean of `values` over the top eighth of the heads by `by`; heads where either is missing do not count."""
    there = np.isfinite(values) & np.isfinite(by)
    if not there.any():
        return float("nan")
    size = max(1, round(TOP_SHARE * by.size))
    order = np.argsort(-by[there], kind="stable")[:size]
    return float(values[there][order].mean())


def weighted_mean(values: Array, weights: Array) -> float:
    """Mean of `values` weighted by `weights`, over the heads that have both; NaN where the weights sum to 0."""
    there = np.isfinite(values) & np.isfinite(weights)
    total = float(weights[there].sum())
    return float((values[there] * weights[there]).sum() / total) if total > 0 else float("nan")


def mean(values: Array) -> float:
    """Mean over the heads that have a value."""
    there = np.isfinite(values)
    return float(values[there].mean()) if there.any() else float("nan")


def quantile(values: Array, level: float) -> float:
    """Quantile over the heads that have a value."""
    there = np.isfinite(values)
    return float(np.quantile(values[there], level)) if there.any() else float("nan")


def evenness(values: Array) -> float:
    """Effective share of the heads, exp(entropy of the values' shares) / number of heads: 1 where all are equal."""
    there = np.isfinite(values)
    positive = values[there & (values > 0)]
    if not positive.size:
        return float("nan")
    share = positive / positive.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / there.sum())


FEATURES: tuple[Feature, ...] = (
    Feature(
        "attention_mean", "0..1", "mean of W over heads",
        "how much the model looks at the image at all; a mean does not grow with the number of heads",
        lambda g: mean(g.image_attention),
    ),
    Feature(
        "attention_top", "0..1", "mean of W over the top heads",
        "how strongly the heads that look at the image do so; a fixed share of heads, not a fixed number",
        lambda g: top_mean(g.image_attention, g.image_attention),
    ),
    Feature(
        "attention_median", "0..1", "median of W over heads",
        "what an ordinary head does, apart from the few that look most",
        lambda g: quantile(g.image_attention, 0.5),
    ),
    Feature(
        "attention_evenness", "0..1", "exp(entropy of W / sum W over heads) / number of heads",
        "whether few heads carry the image or all do; copying every head does not change it",
        lambda g: evenness(g.image_attention),
    ),
    Feature(
        "attention_depth", "0..1", "mean depth of the heads weighted by W",
        "early layers gather the image, later ones use it; depth is a fraction",
        lambda g: weighted_mean(g.depth, g.image_attention),
    ),
    Feature(
        "focus_mean", "nats", "mean of F over heads weighted by W",
        "how sharply attention is placed; F does not change when patches are split",
        lambda g: weighted_mean(g.focus, g.image_attention),
    ),
    Feature(
        "focus_top", "nats", "mean of F over the top heads",
        "whether the heads that look most also choose where to look",
        lambda g: top_mean(g.focus, g.image_attention),
    ),
    Feature(
        "focused_attention_top", "nats", "mean of W x F over the eighth of heads where it is largest",
        "the study's visual-head score with F in the place of C, which depends on the number of tokens",
        lambda g: top_mean(g.image_attention * g.focus, g.image_attention * g.focus),
    ),
    Feature(
        "focused_attention_depth", "0..1", "mean depth of the heads weighted by W x F",
        "where in the model the heads lie that pick something out",
        lambda g: weighted_mean(g.depth, g.image_attention * g.focus),
    ),
    Feature(
        "region_lift_mean", "nats", "mean of the region lift over heads weighted by W",
        "whether attention goes to the object that is asked about; a ratio to chance, so area and tokens cancel",
        lambda g: weighted_mean(g.region_lift, g.image_attention),
    ),
    Feature(
        "region_lift_top", "nats", "0.9 quantile of the region lift over heads",
        "the heads that follow the question best",
        lambda g: quantile(g.region_lift, 0.9),
    ),
    Feature(
        "sink_attention_mean", "0..1", "mean of the sink attention over heads",
        "heads that rest on the first token do nothing; a mean over heads",
        lambda g: mean(g.sink_attention),
    ),
)  # fmt: skip
"""The declared features, in the order of the columns."""

FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
