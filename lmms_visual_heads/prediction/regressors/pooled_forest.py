"""Where `PooledForest` lay before it joined `extra_trees`: for imports until all have moved."""

from __future__ import annotations

from lmms_visual_heads.prediction.regressors.extra_trees import PooledForest, blended

__all__ = ["PooledForest", "blended"]
