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
"""Keys of `head_statistics`, as in tables.HEAD_COLUMNS."""


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
    n_patches, n_keys = len(patch_positions), rows.shape[-1]
    if region is not None and region.shape != (n_patches,):
        raise ValueError(f"region needs one entry per patch token, {n_patches}; got shape {tuple(region.shape)}")
    visual, patch, sink = (
        _marked(positions, n_keys) for positions in (visual_positions, patch_positions, sink_positions)
    )
    inside = _marked(patch_positions.cpu()[region.cpu()], n_keys) if region is not None else torch.zeros_like(patch)
    base = _marked(base_positions, n_keys) if base_positions is not None else torch.zeros_like(patch)
    parts = (torch.ones_like(patch), patch, visual, visual & ~patch, sink, inside, inside & base, inside & ~base)
    masses = _masses(rows, torch.stack(parts))
    whole, on_patches = masses[..., 0], masses[..., 1]
    image, newline, sinks, in_region, in_base, in_tiles = masses[..., 2:].clamp(max=1.0).unbind(-1)

    missing = torch.full_like(image, float("nan"))
    statistics = dict.fromkeys(HEAD_STATISTICS, missing)
    statistics |= {"image_attention": image, "newline_attention": newline}
    if len(sink_positions):
        statistics["sink_attention"] = sinks
    if n_patches >= 2:
        entropy = torch.special.entr(_at(rows, patch_positions) / on_patches[..., None]).sum(-1)
        # Where no attention falls on patches the entropy is NaN, and stays so through the clamps.
        largest = math.log(n_patches)
        concentration = (1 - entropy / largest).clamp(0.0, 1.0)
        statistics["concentration"] = concentration
        statistics["focus"] = (largest - entropy).clamp(min=0.0)
        statistics["visual_head_score"] = image * concentration
    if region is not None:
        statistics["region_attention"] = in_region
        if n_patches:
            statistics["region_share"] = torch.full_like(missing, float(region.float().mean()))
        if base_positions is not None:
            statistics["region_attention_base"] = in_base
            statistics["region_attention_tiles"] = in_tiles
    together = torch.stack(list(statistics.values())).masked_fill(~whole.isfinite(), float("nan"))
    return dict(zip(statistics, together.unbind(), strict=True))


def _masses(rows: Tensor, parts: Tensor) -> Tensor:
    """Attention [L, H, P] on each of P sets of keys, `parts` [P, K] bool: one product for all of them.

    In float64, so that no setting for faster float32 products (TF32) touches it; a row that is not finite gives NaN.
    """
    precise = torch.float32 if rows.device.type == "mps" else torch.float64
    return (rows.to(precise) @ parts.to(rows.device).to(precise).T).float()


def _marked(positions: Tensor, n_keys: int) -> Tensor:
    """Bool [K] on the host, True at `positions`."""
    marked = torch.zeros(n_keys, dtype=torch.bool)
    marked[positions.cpu()] = True
    return marked


def _at(rows: Tensor, positions: Tensor) -> Tensor:
    """`rows` at key `positions`; a view where they follow each other."""
    first, n = int(positions[0]), len(positions)
    if torch.equal(positions, torch.arange(first, first + n, device=positions.device)):
        return rows[..., first : first + n]
    return rows[..., positions.to(rows.device)]
