"""Which decoder layers have an attention row, which look at a part of the prompt only, what a decode step needs. Reads configs."""

from __future__ import annotations

from typing import Any

STEPS_FROM_CACHE = ("llava", "llava_next", "vipllava")
"""Model types for which a decode step needs the token ids and the cache only; for others `generate` itself must run it."""

_WITHOUT_ROWS = ("linear", "conv", "mamba", "moe", "recurrent")
_LOCAL = ("sliding", "chunk", "window")


def steps_from_cache(model: Any) -> bool:
    """Whether a decode step of `model` needs the token ids and the cache only."""
    return model.config.model_type in STEPS_FROM_CACHE


def attention_layers(text_config: Any) -> list[int]:
    """Decoder layers with softmax attention, from 0; the others are convolutions, recurrences or linear attention."""
    types = _layer_types(text_config)
    return [i for i, kind in enumerate(types) if not any(word in kind for word in _WITHOUT_ROWS)]


def local_layers(text_config: Any) -> list[int]:
    """Attention layers that see a window or a chunk of the prompt only."""
    types = _layer_types(text_config)
    return [i for i in attention_layers(text_config) if any(word in types[i] for word in _LOCAL)]


def _layer_types(text_config: Any) -> list[str]:
    """One word per layer; where the config has none, all layers are of one kind."""
    n_layers = int(text_config.num_hidden_layers)
    types = getattr(text_config, "layer_types", None)
    if types and len(types) == n_layers:
        return [str(kind) for kind in types]
    local = getattr(text_config, "sliding_window", None) or getattr(text_config, "attention_chunk_size", None)
    return ["sliding_attention" if local else "full_attention"] * n_layers
