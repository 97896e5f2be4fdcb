"""Old names of `features.measurements`; each warns."""

from __future__ import annotations

import warnings
from typing import Any

from lmms_visual_heads.features import measurements

_NOW = {"Measured": "Measurements", "read_measured": "read_measured", "read_checkpoints": "read_checkpoints"}


def __getattr__(name: str) -> Any:
    if name not in _NOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is now features.measurements.{_NOW[name]}", DeprecationWarning, stacklevel=2)
    return getattr(measurements, _NOW[name])
