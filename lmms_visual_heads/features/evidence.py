"""What can be known of a checkpoint without its scores, in declared blocks of few numbers each.

Fixed before any score was looked at. A block is about one (model, task): own prompts of a benchmark, or the probe (averaged
over the probe tasks). Every number has a name, a unit, its formula, the reason why it may say
something, and the forward passes per prompt that it needs.
Shapes: L layers, H heads. A missing number is NaN. Nothing here grows with the model's size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.features.declared import FEATURES, Grid, evenness, mean, quantile, top_mean, weighted_mean

Array = npt.NDArray[np.float64]

FLOOR = 0.01
"""Added to every KL before its logarithm, nats: below it a KL is noise."""

PROBE_NAMES = ("vhead_general", "vhead_obj", "vhead_super")


@dataclass(frozen=True, slots=True)
class HeadGrid:
    """Head profile of one model on one task, each array [L, H]; NaN where missing. Names as in `schema.ZOO_PROFILE_COLUMNS`."""

    image_attention: Array
    focus: Array
    region_lift: Array
    sink_attention: Array
    grid_focus: Array
    sinkless_attention: Array
    content_dependence: Array
    image_log_share: Array

    @property
    def grid(self) -> Grid:
        """The part that the probe's declared features need."""
        return Grid(self.image_attention, self.focus, self.region_lift, self.sink_attention)


@dataclass(frozen=True, slots=True)
class CausalGrid:
    """Causal visual-head scores of one model on one task, nats: `every` all heads cut, `layers` [L], `heads` [L, H]."""

    every: float
    layers: Array
    heads: Array

    @property
    def depth(self) -> Array:
        """Depth of every head, [L, H], 0..1."""
        n_layers, n_heads = self.heads.shape
        depth = np.linspace(0.0, 1.0, n_layers) if n_layers > 1 else np.full(n_layers, 0.5)
        return np.repeat(depth[:, None], n_heads, axis=1)


@dataclass(frozen=True, slots=True)
class AnswerMeans:
    """Means over the prompts of one task; NaN where missing. Probability 0..1, KL and entropy in nats."""

    confidence: float = float("nan")
    entropy: float = float("nan")
    information: float = float("nan")
    swap_kl: float = float("nan")
    blank_kl: float = float("nan")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One declared number.

    Attributes
    ----------
    name, unit, formula, reason : str
    compute : callable
        `HeadGrid`, `CausalGrid`, `AnswerMeans` or a row of the checkpoint table -> number; NaN where it is missing.
    passes : str
        Forward passes per prompt besides the one that every statistic shares: "" none, "swap", "blank", "every" (all heads cut)
        one each, "layers" one per layer, "heads" one per head.
    """

    name: str
    unit: str
    formula: str
    reason: str
    compute: Callable[[Any], float]
    passes: str = ""


def log_kl(kl: float) -> float:
    """ln(KL + 0.01 nats)."""
    return float(np.log(kl + FLOOR))


def logit(share: float) -> float:
    """ln(p / (1 - p)), p held in 0.005..0.995 so that it stays finite."""
    p = float(np.clip(share, 0.005, 0.995))
    return float(np.log(p / (1 - p)))


def _log(value: Any) -> float:
    return float(np.log(value)) if value is not None and np.isfinite(value) and value > 0 else float("nan")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _largest(values: Array) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else float("nan")


_HEADS: tuple[Evidence, ...] = (
    Evidence(
        "attention_top", "0..1", "mean of W over the eighth of heads with the largest W",
        "how strongly the heads that look at the image do so",
        lambda g: top_mean(g.image_attention, g.image_attention),
    ),
    Evidence(
        "log_share_mean", "nats", "mean over heads of ln(W K / number of visual tokens)",
        "evidence per token: attention to the image beside what chance would give it, so that prompts and grids compare",
        lambda g: mean(g.image_log_share),
    ),
    Evidence(
        "sinkless_top", "0..1", "mean of W without visual sink tokens over the eighth of heads where it is largest",
        "visual sinks take attention and say nothing about the picture (arXiv 2503.03321)",
        lambda g: top_mean(g.sinkless_attention, g.sinkless_attention),
    ),
    Evidence(
        "grid_focus_top", "nats", "mean over the top heads of F of p on a common 4 x 4 grid of image content",
        "whether the heads that look choose where; anyres tokens do not count twice",
        lambda g: top_mean(g.grid_focus, g.image_attention),
    ),
    Evidence(
        "content_dependence_top", "nats", "mean over the eighth of heads where it is largest of H(mean p) - mean H(p)",
        "whether where a head looks depends on the picture at all",
        lambda g: top_mean(g.content_dependence, g.content_dependence),
    ),
    Evidence(
        "region_lift_mean", "nats", "mean of the region lift over heads weighted by W",
        "whether attention goes to the object that is asked about; area and tokens cancel",
        lambda g: weighted_mean(g.region_lift, g.image_attention),
    ),
    Evidence(
        "region_lift_top", "nats", "0.9 quantile of the region lift over heads",
        "the heads that follow the question best",
        lambda g: quantile(g.region_lift, 0.9),
    ),
    Evidence(
        "attention_depth", "0..1", "mean depth of the heads weighted by W",
        "early layers gather the image, later ones use it",
        lambda g: weighted_mean(g.grid.depth, g.image_attention),
    ),
)  # fmt: skip

_CAUSAL: tuple[Evidence, ...] = (
    Evidence(
        "every_kl", "ln nats", "ln(KL + 0.01), all heads cut",
        "how much the answer rests on the image at all", lambda g: log_kl(g.every), "every",
    ),
    Evidence(
        "layer_kl_largest", "ln nats", "ln(largest KL of a layer + 0.01)",
        "whether one layer carries the image", lambda g: log_kl(_largest(g.layers)), "layers",
    ),
    Evidence(
        "head_kl_mean", "ln nats", "ln(mean KL over heads + 0.01)",
        "how much single heads carry; a mean does not grow with their number", lambda g: log_kl(mean(g.heads)), "heads",
    ),
    Evidence(
        "head_kl_evenness", "0..1", "exp(entropy of KL / sum KL over heads) / number of heads",
        "whether few heads carry the image or all do", lambda g: evenness(g.heads), "heads",
    ),
    Evidence(
        "head_kl_depth", "0..1", "mean depth of the heads weighted by KL",
        "where in the model the heads lie that matter", lambda g: weighted_mean(g.depth, g.heads), "heads",
    ),
)  # fmt: skip

_ANSWERS: tuple[Evidence, ...] = (
    Evidence(
        "confidence", "logit", "logit of the mean confidence",
        "a calibrated model knows how often it is right", lambda a: logit(a.confidence),
    ),
    Evidence(
        "entropy", "nats", "mean entropy of the first answer token",
        "sees what the largest probability hides: doubt among many answers", lambda a: _number(a.entropy),
    ),
    Evidence(
        "information", "nats", "H(mean p) - mean H(p) over prompts",
        "0 when the model says the same whatever the image; high only when answers differ and are sure",
        lambda a: _number(a.information),
    ),
    Evidence(
        "swap_kl", "ln nats", "ln(mean KL with another prompt's image + 0.01)",
        "whether the answer depends on the picture; does not need the model to be calibrated", lambda a: log_kl(a.swap_kl), "swap",
    ),
    Evidence(
        "blank_kl", "ln nats", "ln(mean KL with a blank image + 0.01)",
        "the same against no picture at all", lambda a: log_kl(a.blank_kl), "blank",
    ),
)  # fmt: skip

_METADATA: tuple[Evidence, ...] = (
    Evidence("log_parameters", "ln", "ln of all parameters", "size", lambda row: _log(row.get("parameters"))),
    Evidence("layers", "layers", "decoder layers", "depth", lambda row: _number(row.get("layers"))),
    Evidence(
        "log_visual_tokens", "ln", "ln of the visual tokens per image", "resolution",
        lambda row: _log(row.get("visual_tokens")),
    ),
    Evidence(
        "log_tokens_seen", "ln", "ln of the tokens trained on so far", "amount of training",
        lambda row: _log(row.get("tokens_seen")),
    ),
    Evidence("log_flops", "ln", "ln of the training's operations so far", "compute", lambda row: _log(row.get("flops"))),
)  # fmt: skip

_LOSS = (
    Evidence(
        "training_loss", "nats", "mean training loss of the answers over the last steps", "what everybody watches",
        lambda row: _number(row.get("training_loss")),
    ),
)  # fmt: skip

_PROBE_HEADS = tuple(
    Evidence(f.name, f.unit, f.formula, f.reason, lambda g, f=f: f.compute(g.grid))  # type: ignore[misc]
    for f in FEATURES
)

_PROBE_ACCURACY = tuple(
    Evidence(
        f"accuracy_{task.removeprefix('vhead_')}", "0..1", f"accuracy on {task}", "the probe has labels; anybody can score it",
        lambda row, task=task: _number(row.get(task)),  # type: ignore[misc]
    )
    for task in PROBE_NAMES
)  # fmt: skip

BLOCKS: Mapping[str, tuple[Evidence, ...]] = {
    "probe_heads": _PROBE_HEADS,
    "own_heads": _HEADS,
    "own_causal": _CAUSAL,
    "probe_causal": _CAUSAL,
    "own_answers": _ANSWERS,
    "probe_answers": _ANSWERS,
    "metadata": _METADATA,
    "loss": _LOSS,
    "probe_accuracy": _PROBE_ACCURACY,
}
"""The declared numbers per block, in the order of the columns."""


def evidence_row(block: str, given: Any) -> Array:
    """The declared numbers of one block, shape [F]; NaN where missing.

    Parameters
    ----------
    block : str
        A name in `BLOCKS`.
    given : HeadGrid, CausalGrid, AnswerMeans, or mapping
        Heads, causal scores, answers; a row of the checkpoint table for metadata and loss; task -> accuracy for probe_accuracy.
    """
    values = np.array([item.compute(given) for item in BLOCKS[block]], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def average(rows: list[Array]) -> Array:
    """Mean of rows [F] over those that have each number; NaN where none has."""
    stacked = np.array(rows)
    there = np.isfinite(stacked)
    total = np.where(there, stacked, 0.0).sum(axis=0)
    return np.divide(total, there.sum(axis=0), out=np.full(stacked.shape[1], np.nan), where=there.any(axis=0))


def evidence_hash() -> str:
    """SHA-256 over the declared lists and over what they give for a fixed sample: shows which list, and which code, was fixed."""
    listed = {name: [(e.name, e.unit, e.formula, e.passes) for e in block] for name, block in BLOCKS.items()}
    sample = [np.sin(np.arange(12.0) * (k + 1)).reshape(3, 4) ** 2 * 0.9 + 0.05 for k in range(8)]
    given: dict[str, Any] = {
        "heads": HeadGrid(*sample),
        "causal": CausalGrid(1.5, sample[1].sum(axis=1), sample[2]),
        "answers": AnswerMeans(0.7, 0.9, 0.4, 2.0, 1.0),
        "metadata": {"parameters": 1e5, "layers": 3, "visual_tokens": 16, "tokens_seen": 1e7, "flops": 1e13},
        "loss": {"training_loss": 1.25},
        "accuracy": dict(zip(PROBE_NAMES, (0.25, 0.5, 0.75), strict=True)),
    }
    values = {name: [f"{value:.6g}" for value in evidence_row(name, given[name.rpartition("_")[2]])] for name in BLOCKS}
    return hashlib.sha256(json.dumps([listed, values], sort_keys=True).encode()).hexdigest()
