"""Causal statistics: how far the answer's distribution moves when heads are knocked out or the image is changed.

Pure functions of logits. Units: nats, float64. Shapes: V vocabulary; leading dimensions are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def answer_kl(without: Tensor, changed: Tensor) -> Tensor:
    """KL(p without || p with the intervention) of the answer's first token.

    Parameters
    ----------
    without : Tensor [..., V]
        Logits without intervention.
    changed : Tensor [..., V]
        Logits with it.

    Returns
    -------
    Tensor [...], float64, nats, at least 0

    Raises
    ------
    ValueError
        When a logit is NaN: a failure is no zero.
    """
    p, q = without.double().log_softmax(-1), changed.double().log_softmax(-1)
    kl = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)
    if bool(kl.isnan().any()):
        raise ValueError("logits hold NaN: no KL divergence")
    return kl.clamp_min(0.0)


def answer_kl_or_nan(without: Tensor, changed: Tensor) -> Tensor:
    """`answer_kl` row by row, NaN (missing) where either row of logits holds NaN or plus infinity.

    Parameters
    ----------
    without, changed : Tensor [B, V]
        As for `answer_kl`.

    Returns
    -------
    Tensor [B], float64
    """
    kl = torch.full(changed.shape[:1], float("nan"), dtype=torch.float64, device=changed.device)
    bad = [logits.isnan() | (logits == torch.inf) for logits in (without, changed)]
    rows = ~(bad[0] | bad[1]).any(-1)
    kl[rows] = answer_kl(without[rows], changed[rows])
    return kl


def image_dependence(kl: Tensor) -> float:
    """Mean over documents of `kl` [N], nats (swapped or blank image)."""
    if not len(kl):
        raise ValueError("image dependence needs at least one document")
    return float(kl.double().mean())
