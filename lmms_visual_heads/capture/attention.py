"""The attention function: stock SDPA output, and on request the softmax row of the last query.

transformers calls it under the name "visual_heads". Only while `output_attentions=True` reaches it does it compute
the row (or what a decode step's row on a GPU is computed from later: late.py); it never builds a full attention map, never
repeats keys for grouped-query heads, never changes the output.
Units: probability mass 0..1 in float32. Shapes: B batch, H query heads, K key positions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lmms_visual_heads.capture.late import LateRow, can_wait
from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.errors import VisualHeadsError, first_line

if TYPE_CHECKING:
    from lmms_visual_heads.capture.knockout import VisualKnockout

# transformers looks for the substrings "sdpa", "flash" and "flex_attention" in names: ours must hold none of them.
ATTENTION_NAME = "visual_heads"

_UNSUPPORTED = {
    "softcap": "soft-capped attention scores",
    "s_aux": "learned attention sinks",
    "position_bias": "an additive position bias",
}

_HALF = (torch.bfloat16, torch.float16)
_products_in_float32 = torch.version.cuda is not None and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


def last_query_row(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float | None) -> Tensor:
    """Softmax row of the last query position, in float32.

    Parameters
    ----------
    query : Tensor [B, H, Q, D]
    key : Tensor [B, H_kv, K, D]
        H is a multiple of H_kv (grouped-query heads share keys, without a copy).
    attention_mask : Tensor [B or 1, H or 1, Q, K] or None
        Boolean (True = may be seen) or additive; None means causal.
    scaling : float or None
        Factor on the scores; None means D ** -0.5.

    Returns
    -------
    Tensor [B, H, 1, K], float32
    """
    batch, n_heads, n_queries, width = query.shape
    n_key_heads, n_keys = key.shape[1], key.shape[2]
    if attention_mask is None and n_queries > 1 and n_keys > n_queries:
        # Prefill into a preallocated cache: SDPA drops the unwritten tail in the same way.
        key = key[:, :, :n_queries]
    last = query[:, :, -1].reshape(batch * n_key_heads, n_heads // n_key_heads, width)
    scores = _float32_product(last, key.flatten(0, 1)).mul_(width**-0.5 if scaling is None else scaling)
    scores = scores.view(batch, n_heads, 1, key.shape[2])
    if attention_mask is not None:
        mask = attention_mask[:, :, -1:]
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
    return scores.softmax(-1)


def _float32_product(query: Tensor, key: Tensor) -> Tensor:
    """[N, G, D] and [N, K, D] -> [N, G, K] in float32, products and sums too, whatever the inputs' dtype.

    On CUDA, half precision goes into the product as it is: no float32 copy of the keys is made. Where this torch, driver or
    GPU has no such product, a warning says so once and the copy is made; the numbers are the same but for rounding.
    """
    if _is_half_on_gpu(key) and _products_in_float32 and not torch.is_grad_enabled():
        try:
            return torch.bmm(query, key.mT, out_dtype=torch.float32)
        except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
            if out_of_memory(error):
                raise
            _without_products_in_float32(error)
    return torch.bmm(query.float(), key.float().mT)


def _is_half_on_gpu(key: Tensor) -> bool:
    return key.is_cuda and key.dtype in _HALF


def _without_products_in_float32(error: Exception) -> None:
    global _products_in_float32
    _products_in_float32 = False
    warnings.warn(
        f"visual-heads: this GPU has no half-precision product with float32 sums ({first_line(error)}); the keys are "
        "copied to float32 instead, which takes more time and memory and changes no number beyond rounding.",
        stacklevel=2,
    )


def visual_heads_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    output_attentions: bool = False,
    visual_knockout: VisualKnockout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | LateRow | None]:
    """Attention as transformers calls it: (SDPA output [B, Q, H, D], row [B, H, 1, K] or None; `rows.settle` turns late rows
    into rows).

    Heads of `visual_knockout` do not see the visual tokens; a layer without such heads runs as if there were no knock-out.
    """
    row: Tensor | LateRow | None = None
    if visual_knockout is not None and visual_knockout.changes_layer(int(module.layer_idx)):  # type: ignore[arg-type]
        attention_mask = visual_knockout.mask(int(module.layer_idx), query, key, attention_mask)  # type: ignore[arg-type]
    for name, what in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:  # SDPA would leave it out, and answer as another model
            raise VisualHeadsError(
                f"Reading attention rows needs plain softmax attention; {type(module).__name__} uses {what}. "
                "Run it with lmms-eval's own wrapper, without heads."
            )
    if output_attentions:
        scaling = kwargs.get("scaling")
        if can_wait(query, key, attention_mask):
            row = LateRow(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
        else:
            row = last_query_row(query, key, attention_mask, scaling)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, row


AttentionInterface.register(ATTENTION_NAME, visual_heads_attention)
# Without its mask twin transformers would pass no mask at all, and padding and sliding windows would be ignored.
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def attach(model: PreTrainedModel) -> None:
    """Switch the text model of `model` to our attention function; the vision tower keeps its own.

    Raises
    ------
    VisualHeadsError
        When the text model does not take its attention from transformers' AttentionInterface.
    """
    text_config = model.config.get_text_config(decoder=True)
    part = next((name for name in model.config.sub_configs if getattr(model.config, name) is text_config), None)
    model.set_attn_implementation({part: ATTENTION_NAME} if part else ATTENTION_NAME)
    if text_config._attn_implementation != ATTENTION_NAME:
        raise VisualHeadsError(
            "Reading attention rows needs a text model on transformers' attention interface; "
            f"{type(model).__name__} is not. Run it with lmms-eval's own wrapper, without heads."
        )
