"""lmms-visual-heads: what attention heads do with the image, and what that says about benchmark scores.

The names below are loaded on first use, so that `import lmms_visual_heads` stays light (no torch, no pandas).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load_model": "lmms_visual_heads.checkpoints.loading",
    "load_any_model": "lmms_visual_heads.checkpoints.loading",
    "read_measurements": "lmms_visual_heads.features.measurements",
    "read_scores": "lmms_visual_heads.tables",
    "read_items": "lmms_visual_heads.tables",
    "read_lineages": "lmms_visual_heads.tables",
    "read_head_table": "lmms_visual_heads.tables",
    "BenchmarkPredictor": "lmms_visual_heads.prediction.predictor",
    "write_report": "lmms_visual_heads.report.page",
    "VisualHeadsError": "lmms_visual_heads.errors",
}
"""Public name -> the module that holds it."""

__all__ = [
    "BenchmarkPredictor",
    "VisualHeadsError",
    "load_any_model",
    "load_model",
    "read_head_table",
    "read_items",
    "read_lineages",
    "read_measurements",
    "read_scores",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
