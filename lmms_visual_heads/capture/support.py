"""What a model must be for its rows to be right, read from its config and modules before anything is measured.

Refused: encoder-decoders and models that look at the image through cross-attention (no visual tokens among the keys), and
soft-capped attention (stock SDPA leaves the cap out, so neither the rows nor the answers would be the model's), and models that
choose their keys (sparse top-k attention) or test for the attention function's name: under another name transformers builds no
such mask, attention is dense, and rows and answers are another model's while every row still sums to 1.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from lmms_visual_heads.errors import VisualHeadsError

_CROSS_FIELDS = ("cross_attention_layers", "cross_layer_interval", "add_cross_attention", "cross_attn_layers")
_CROSS_MODULE = re.compile(r"cross_?att(ention|n)", re.IGNORECASE)
_CAP = re.compile(r"soft_?cap|logit_cap", re.IGNORECASE)
_INDEXER = re.compile(r"index_topk")
_NAME_TEST = re.compile(
    r"_attn_implementation(?:_internal)?\s*(?:(?:==|!=)\s*|(?:not\s+)?in\s*[\[({][^\])}]*)[\"']sdpa[\"']"
)
"""A comparison with "sdpa": what a stock model runs under. One with "eager" alone treats our name as it treats that."""
_OTHER_CAPS = re.compile(r"final|router|lm_head|output", re.IGNORECASE)


def check_config(config: Any) -> None:
    """Refuse a model by its config.

    Raises
    ------
    VisualHeadsError
        For an encoder-decoder, cross-attention to the image, or soft-capped attention scores.
    """
    name = config.model_type
    text_config = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(text_config, "is_encoder_decoder", False):
        raise _refused(name, "is an encoder-decoder: its decoder has no visual tokens among its keys")
    if any(getattr(one, field, None) for one in (config, text_config) for field in _CROSS_FIELDS):
        raise _refused(name, "looks at the image through cross-attention, with no visual tokens among its keys")
    fields = [f for f in vars(text_config) if _CAP.search(f) and not _OTHER_CAPS.search(f)]
    capped = [f for f in fields if getattr(text_config, f)]
    if capped:
        raise _refused(name, f"caps its attention scores ({capped[0]} = {getattr(text_config, capped[0])})")
    chosen = [f for one in (text_config, config) for f in vars(one) if _INDEXER.match(f) and getattr(one, f)]
    if chosen:
        raise _refused(name, f"attends to chosen keys only ({chosen[0]} = {getattr(text_config, chosen[0], None)})")


def check_decoder(model: Any) -> None:
    """Refuse a loaded model by its decoder's modules.

    Raises
    ------
    VisualHeadsError
        When the decoder has cross-attention, no SDPA implementation, or code that tests for the attention function's name.
    """
    decoder: nn.Module = model.get_decoder()
    for module in decoder.modules():
        if _CROSS_MODULE.search(type(module).__name__):
            raise _refused(
                model.config.model_type,
                f"has cross-attention ({type(module).__name__}) in its decoder, not visual tokens",
            )
    if not getattr(decoder, "_supports_sdpa", True):
        raise _refused(
            model.config.model_type, f"has a decoder ({type(decoder).__name__}) without scaled dot-product attention"
        )

    for kind in {type(module) for module in decoder.modules()}:
        if _tests_for_the_name(kind):
            raise _refused(
                model.config.model_type,
                f"has a decoder ({kind.__name__}) that tests for the name of its attention function, so that another one, which "
                "reads rows, would change its attention",
            )


def _tests_for_the_name(kind: type) -> bool:
    """Whether a module's code compares the name of the attention function with "sdpa"."""
    try:
        return _NAME_TEST.search(inspect.getsource(kind)) is not None
    except (OSError, TypeError):  # built in, or its source is not at hand: the rows are still proven at loading
        return False


def _refused(name: str, why: str) -> VisualHeadsError:
    return VisualHeadsError(
        f"Reading attention rows needs a decoder with plain softmax attention over its visual tokens; {name} {why}. "
        "Run it with lmms-eval's own wrapper, without heads."
    )
