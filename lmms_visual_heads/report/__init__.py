"""The report: frames first, figures from frames, one self-contained page from both. Never imports torch, never fetches anything."""

from __future__ import annotations

from typing import Any

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """Load `write_report` on first use, so that importing the room stays light."""
    if name == "write_report":
        from lmms_visual_heads.report.page import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
