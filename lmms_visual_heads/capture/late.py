"""Rows of a decode step on a GPU: put off until the pass is over, then one kernel computes the scores of all its layers.

A decode step is bound by how fast the host starts kernels; a handful per layer would cost more than the arithmetic. So a
layer only keeps its query and a reference to the keys that the cache holds anyway, and `scores_together` starts one Triton
kernel that finds every layer's tensors through a table of addresses. Where that cannot be, `rows.settle` goes layer by layer.
Rows wait only while a `ForwardReader` that will settle them says so (`let_wait`).
Shapes: L layers, B batch, H query heads, H_kv key heads, K key positions, D width of a head.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.errors import first_line

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BLOCK = 64
"""Keys that one program of the kernel takes."""
_ALIGNMENT = 16
"""Bytes; addresses are multiples of it, so that loads are wide."""

_OF_EARLIER_KERNELS: Any = getattr(torch, "AcceleratorError", ())
"""What a kernel that ran before ours ends in, wherever the host next waits for the device."""

_works = True
_may_wait = False


@dataclass(frozen=True, slots=True)
class LateRow:
    """What the row of one layer's decode step is computed from; stands in its place until `rows.settle`.

    Attributes
    ----------
    query : Tensor [B, H, 1, D]
    key : Tensor [B, H_kv, K, D]
    scaling : float
        Factor on the scores.
    """

    query: Tensor
    key: Tensor
    scaling: float


def let_wait(yes: bool) -> None:
    """Say whether rows may wait from now on: whoever says yes settles them, and says no again."""
    global _may_wait
    _may_wait = yes


def holds_its_keys(cache: Any) -> bool:
    """Whether the keys of a pass stay on the device anyway: a plain dynamic cache, neither offloaded nor quantized nor static."""
    return type(cache) is DynamicCache and not cache.offloading


def can_wait(query: Tensor, key: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether this layer's row may be put off: a decode step on a GPU that sees every key, nothing to differentiate."""
    return (
        _may_wait
        and _works
        and query.shape[2] == 1
        and attention_mask is None
        and key.is_cuda
        and key.dtype in _DTYPES
        and not torch.is_grad_enabled()
        and _kernel() is not None
    )


def scores_together(rows: Sequence[LateRow]) -> Tensor | None:
    """Scaled scores [L, B, H, 1, K] float32 of all layers, products and sums in float32; one kernel.

    Returns
    -------
    Tensor or None
        None where the layers' tensors differ in shape, layout, dtype or device, or the kernel cannot be built here (a warning
        says so once).
    """
    global _works
    if not _works or not _alike(rows):
        return None
    try:
        return _launch(rows)
    except _OF_EARLIER_KERNELS:
        raise
    except Exception as error:  # Triton raises errors of its own, of the compiler, and of the driver
        if out_of_memory(error):
            raise
        _works = False
        warnings.warn(
            f"visual-heads: the kernel for the rows of all layers could not be built or started ({first_line(error)}); "
            "rows are read layer by layer instead, which takes a little more time and changes no number beyond rounding.",
            stacklevel=2,
        )
        return None


def _alike(rows: Sequence[LateRow]) -> bool:
    def kind(row: LateRow) -> tuple[Any, ...]:
        query, key = row.query, row.key
        return query.shape, query.stride(), key.shape, key.stride(), key.dtype, query.dtype, key.device, row.scaling

    first = kind(rows[0])
    dense = rows[0].query.stride(-1) == rows[0].key.stride(-1) == 1 and rows[0].query.dtype == rows[0].key.dtype
    return dense and all(kind(row) == first for row in rows)


def _launch(rows: Sequence[LateRow]) -> Tensor:
    import triton
    import triton.language as tl

    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("Triton is not installed")
    query, key = rows[0].query, rows[0].key
    (batch, n_heads, _, width), (_, n_key_heads, n_keys, _) = query.shape, key.shape
    addresses = [row.query.data_ptr() for row in rows] + [row.key.data_ptr() for row in rows]
    aligned = all(address % _ALIGNMENT == 0 for address in addresses)
    table = torch.tensor(addresses, dtype=torch.int64).to(key.device)
    scores = torch.empty((len(rows), batch, n_heads, 1, n_keys), dtype=torch.float32, device=key.device)
    with torch.cuda.device_of(key):  # Triton starts kernels on the current device
        kernel[(len(rows) * batch * n_key_heads, triton.cdiv(n_keys, _BLOCK))](
            table, scores, rows[0].scaling, len(rows), batch, n_key_heads, n_keys,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2),
            GROUP=n_heads // n_key_heads, WIDTH=width, PADDED=triton.next_power_of_2(width), BLOCK=_BLOCK,
            DTYPE={torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[key.dtype],
            ALIGNED=aligned,
        )  # fmt: skip
    return scores


@functools.cache
def _kernel() -> Any:
    """The compiled-on-demand kernel, or None where Triton is not installed or cannot read the kernel's source."""
    try:
        from lmms_visual_heads.capture.late_kernel import scores_kernel
    except (ImportError, ValueError, OSError):
        return None
    return scores_kernel
