"""What was fitted, as a frozen record: the predictor makes it, the posterior and the file read it. Computes nothing.

Shapes: M models, B benchmarks, F features. Units: points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lmms_visual_heads.prediction.calibration import ConfidenceMap
from lmms_visual_heads.prediction.compatibility import World
from lmms_visual_heads.prediction.model_selection import FittedMethod
from lmms_visual_heads.prediction.references import Votes


@dataclass(frozen=True)
class FittedPredictor:
    """Everything that a fit learnt; the attributes of `BenchmarkPredictor` without their underscore.

    Attributes
    ----------
    world : World
        What new heads must share.
    features : DataFrame [M, F]
        The fitted models' features of the heads on the probe.
    lineages : mapping
        model -> lineage.
    models : mapping
        benchmark -> method -> `FittedMethod`.
    methods, evaluation, errors, benchmarks : DataFrame
        As `BenchmarkPredictor.methods_` and so on.
    maps, votes, prompt_fingerprints, prompt_counts : mapping
        Per benchmark; empty where nothing came along.
    notes : list of str
    level : float
        Wanted coverage of the intervals, 0..1.
    """

    world: World
    features: pd.DataFrame
    lineages: Mapping[str, str]
    models: Mapping[str, Mapping[str, FittedMethod]]
    methods: pd.DataFrame
    evaluation: pd.DataFrame
    errors: pd.DataFrame
    benchmarks: pd.DataFrame
    maps: Mapping[str, ConfidenceMap]
    votes: Mapping[str, Votes]
    prompt_fingerprints: Mapping[str, Mapping[int, str]]
    prompt_counts: Mapping[str, float]
    notes: list[str]
    level: float

    @property
    def populations(self) -> dict[str, int]:
        """benchmark -> items of the whole benchmark, where the fitted scores say it."""
        sizes = zip(self.benchmarks["benchmark"], self.benchmarks["n_items"], strict=True)
        return {str(name): int(size) for name, size in sizes if np.isfinite(size)}
