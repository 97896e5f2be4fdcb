"""Statistics of attention rows, one number per head. Pure functions: inputs are never written to.

Units: attention as probability mass 0..1, entropy and focus in nats. Shapes: L layers, H heads, K key positions.
Missing is NaN here and becomes null in tables; it is never 0. The words and formulas are those of the design:
with a the row, v the visual tokens, t the patch tokens, m = sum of a over t, p = a / m over t, n = number of t,
    W = sum of a over v,  H(p) = -sum p ln p,  C = 1 - H(p) / ln n,  F = ln n - H(p),  S = W * C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEAD_STATISTICS = (
    "image_attention",
    "concentration",
    "focus",
    "visual_head_score",
    "region_attention",
    "region_attention_base",
    "region_attention_tiles",
    "newline_attention",
    "sink_attention",
    "region_share",
)
"""Keys of `head_statistics`, as in schema.HEAD_COLUMNS."""


def head_statistics(
    rows: Tensor,
    visual_positions: Tensor,
    patch_positions: Tensor,
    sink_positions: Tensor,
    region: Tensor | None = None,
    base_positions: Tensor | None = None,
) -> dict[str, Tensor]:
    """Statistics of every head's row.

    Parameters
    ----------
    rows : Tensor [L, H, K], float32
        One row per head; sums to 1 over K.
    visual_positions : Tensor [n_visual], int64
        Key positions of the visual tokens.
    patch_positions : Tensor [n], int64
        Those that stand for a patch; the others are newline tokens.
    sink_positions : Tensor, int64
        Leading special tokens; none where the prompt starts with the image: then their attention is missing.
    region : Tensor [n], bool, or None
        Which patch tokens the pointed box overlaps with positive area; None: no box, or unsupported geometry.
    base_positions : Tensor, int64, or None
        Patch tokens of the base view where the image also has tiles (anyres); None: no tiles.

    Returns
    -------
    dict of Tensor [L, H], float32
        The keys of `HEAD_STATISTICS`. NaN where missing: C, F and S where no attention falls on patches or n < 2;
        everything about the region without `region`; its base and tiles parts without `base_positions`; every
        statistic of a head whose row is not finite.

    Raises
    ------
    ValueError
        When `region` does not have one entry per patch token.

    Notes
    -----
    `region_share` is the share of the patch area held by exactly the patches that `region_attention` sums over, so
    that a head which attends evenly has a region lift ln(r / w b) of 0.
    """
    rows = rows.float()
    missing = torch.full(rows.shape[:2], float("nan"), device=rows.device)
    whole = rows.sum(-1).isfinite()
    n_patches = len(patch_positions)

    image_attention = _mass(rows, visual_positions)
    patches = rows[..., patch_positions.to(rows.device)]
    on_patches = patches.sum(-1)
    statistics = dict.fromkeys(HEAD_STATISTICS, missing)
    statistics["image_attention"] = image_attention
    newline_positions = visual_positions[~torch.isin(visual_positions, patch_positions)]
    statistics["newline_attention"] = _mass(rows, newline_positions)
    if len(sink_positions):
        statistics["sink_attention"] = _mass(rows, sink_positions)
    if n_patches >= 2:
        entropy = torch.special.entr(patches / on_patches[..., None]).sum(-1)
        seen = on_patches > 0
        largest = math.log(n_patches)
        concentration = torch.where(seen, (1 - entropy / largest).clamp(0.0, 1.0), missing)
        statistics["concentration"] = concentration
        statistics["focus"] = torch.where(seen, (largest - entropy).clamp(min=0.0), missing)
        statistics["visual_head_score"] = image_attention * concentration
    if region is not None:
        if region.shape != (n_patches,):
            raise ValueError(f"region needs one entry per patch token, {n_patches}; got shape {tuple(region.shape)}")
        region = region.to(rows.device)
        statistics["region_attention"] = patches[..., region].sum(-1).clamp(max=1.0)
        if n_patches:
            statistics["region_share"] = torch.full_like(missing, float(region.float().mean()))
        if base_positions is not None:
            base = torch.isin(patch_positions.to(rows.device), base_positions.to(rows.device))
            statistics["region_attention_base"] = patches[..., region & base].sum(-1).clamp(max=1.0)
            statistics["region_attention_tiles"] = patches[..., region & ~base].sum(-1).clamp(max=1.0)
    return {name: torch.where(whole, values, missing) for name, values in statistics.items()}


def _mass(rows: Tensor, positions: Tensor) -> Tensor:
    """Attention summed over `positions`; a sum may exceed 1 by a rounding error, hence the clip."""
    return rows[..., positions.to(rows.device)].sum(-1).clamp(max=1.0)
