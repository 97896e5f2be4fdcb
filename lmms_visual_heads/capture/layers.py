"""Which decoder layers have an attention row, and which of them look at a part of the prompt only. Reads configs."""

from __future__ import annotations

from typing import Any

_WITHOUT_ROWS = ("linear", "conv", "mamba", "moe", "recurrent")
_LOCAL = ("sliding", "chunk", "window")


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
