"""Head profiles of many documents at once, with the statistics that compare unlike models.

The formulas are those of statistics/heads.py, over documents whose pictures have the same geometry. Shapes: N documents, L layers,
H heads, K keys. Attention as probability mass 0..1, entropies in nats. Missing is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.special import entr

from lmms_visual_heads.schema import PROFILE_STATISTICS

SINK_TIMES = 5.0
"""A visual token is a sink of a head where it gets on average more than this many even shares of the head's image attention,
whatever the picture shows (visual attention sinks, arXiv 2503.03321, told there by their activations)."""
HALVES = {-1: slice(None), 0: slice(0, None, 2), 1: slice(1, None, 2)}
"""All documents, even ones, odd ones."""


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """Where a picture stands in a prompt.

    Attributes
    ----------
    visual, patches, sinks : Tensor, int64
        Key positions of the visual tokens, of those with a patch behind them, and of the leading special tokens.
    grid : Tensor [n_patches, C], float64, or None
        Which share of each patch lies in which cell of the common grid.
    """

    visual: Tensor
    patches: Tensor
    sinks: Tensor
    grid: Tensor | None


@dataclass(frozen=True, slots=True)
class HeadMeasures:
    """Per document and head; every entry float64 [N, L, H] unless said otherwise.

    Attributes
    ----------
    statistics : dict of Tensor
        As `statistics.heads.head_statistics`, without the parts of a region.
    visual : Tensor [N, L, H, n_visual]
        Attention on each visual token.
    cells : Tensor [N, L, H, C] or None
        p on the common grid of image content.
    expected : Tensor
        Patch attention times the region's share of the patch area; NaN without a region.
    keys : Tensor [N]
        Keys of each row.
    """

    statistics: dict[str, Tensor]
    visual: Tensor
    cells: Tensor | None
    expected: Tensor
    keys: Tensor

    @classmethod
    def join(cls, parts: Sequence[HeadMeasures], order: Tensor) -> HeadMeasures:
        """Measures of several groups of documents, put into the documents' `order`."""
        back = order.argsort()
        statistics = {name: torch.cat([p.statistics[name] for p in parts])[back] for name in parts[0].statistics}
        cells = [p.cells for p in parts if p.cells is not None]
        return cls(
            statistics,
            torch.cat([p.visual for p in parts])[back],
            torch.cat(cells)[back] if cells else None,
            torch.cat([p.expected for p in parts])[back],
            torch.cat([p.keys for p in parts])[back],
        )


def measure_heads(
    rows: Tensor, tokens: PictureTokens, region: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_]
) -> HeadMeasures:
    """Measures of rows [L, N, H, K] float32; `region` bool [N, n_patches], `there` bool [N]: which documents have a region."""
    a = rows.double().transpose(0, 1)
    n_patches = len(tokens.patches)
    image, on_patches = a[..., tokens.visual], a[..., tokens.patches]
    weight, on_all = image.sum(-1), on_patches.sum(-1)
    p = on_patches / on_all[..., None]
    nan = torch.full_like(weight, float("nan"))
    statistics = {name: nan for name in PROFILE_STATISTICS}
    statistics |= {"image_attention": weight.clamp(max=1.0), "newline_attention": (weight - on_all).clamp(0.0, 1.0)}
    if len(tokens.sinks):
        statistics["sink_attention"] = a[..., tokens.sinks].sum(-1).clamp(max=1.0)
    if n_patches >= 2:
        entropy, largest = entr(p).sum(-1), float(np.log(n_patches))
        concentration = (1 - entropy / largest).clamp(0.0, 1.0)
        statistics["concentration"] = concentration
        statistics["focus"] = (largest - entropy).clamp(min=0.0)
        statistics["visual_head_score"] = statistics["image_attention"] * concentration
    expected = nan
    if there.any():
        inside = torch.from_numpy(region).double()
        known = torch.from_numpy(there)[:, None, None]
        in_region = torch.einsum("nlhp,np->nlh", on_patches, inside).clamp(max=1.0)
        statistics["region_attention"] = in_region.where(known, nan)
        expected = (on_all * inside.mean(-1)[:, None, None]).where(known, nan)
    broken = ~a.sum(-1).isfinite()
    statistics = {name: value.masked_fill(broken, float("nan")) for name, value in statistics.items()}
    cells = None
    if tokens.grid is not None:
        brought = p @ tokens.grid
        cells = brought / brought.sum(-1, keepdim=True)
    return HeadMeasures(statistics, image, cells, expected, torch.full((len(a),), a.shape[-1]))


def profile(measures: HeadMeasures) -> pd.DataFrame:
    """Head profiles over all documents and over either half.

    Returns
    -------
    DataFrame
        layer, head, the means of `schema.PROFILE_COLUMNS`, grid_focus, sinkless_attention, content_dependence,
        image_log_share, half; one row per head and half.

    Notes
    -----
    C, F and the focus on the common grid are weighted by W; the region lift is pooled over documents; the content dependence
    H(mean p) - mean H(p) weighs documents alike.
    """
    weights = measures.statistics["image_attention"]
    share = measures.visual / measures.visual.sum(-1, keepdim=True)
    sink = share.nanmean(0) > SINK_TIMES / measures.visual.shape[-1]
    without = (measures.visual * ~sink).sum(-1).where(weights.isfinite(), float("nan"))
    frames = []
    for half, chosen in HALVES.items():
        w = weights[chosen]
        columns = {
            name: _mean(value[chosen], w if name in ("concentration", "focus") else None)
            for name, value in measures.statistics.items()
        }
        columns["region_lift"] = _lift(measures.statistics["region_attention"][chosen], measures.expected[chosen])
        columns["n_documents"] = w.isfinite().sum(0)
        if measures.cells is not None:
            cells = measures.cells[chosen]
            own = entr(cells).sum(-1)
            columns["grid_focus"] = _mean((float(np.log(cells.shape[-1])) - own).clamp(min=0.0), w)
            together = entr(cells.nanmean(0)).sum(-1)
            columns["content_dependence"] = (together - own.nanmean(0)).clamp(min=0.0)
        columns["sinkless_attention"] = _mean(without[chosen], None)
        evenly = measures.visual.shape[-1] / measures.keys[chosen].double().mean()
        columns["image_log_share"] = (columns["image_attention"] / evenly).log()
        n_layers, n_heads = w.shape[1:]
        layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
        frame = pd.DataFrame({"layer": layer, "head": head})
        for name, value in columns.items():
            frame[name] = value.flatten().numpy()
        frames.append(frame.assign(half=half))
    joined = pd.concat(frames, ignore_index=True)
    return joined.replace([np.inf, -np.inf], np.nan)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean [L, H] over the documents that have a value, NaN where none has."""
    w = torch.ones_like(values) if weights is None else weights
    there = values.isfinite() & w.isfinite()
    total = w.where(there, 0.0).sum(0)
    return ((values * w).where(there, 0.0).sum(0) / total).where(total > 0, float("nan"))


def _lift(region: Tensor, expected: Tensor) -> Tensor:
    """ln(sum r / sum w b) over the documents that have a region, NaN where either sum is 0."""
    there = region.isfinite() & expected.isfinite()
    found, even = region.where(there, 0.0).sum(0), expected.where(there, 0.0).sum(0)
    return (found / even).log().where((found > 0) & (even > 0), float("nan"))
