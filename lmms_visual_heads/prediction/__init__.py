"""Estimators, evaluation protocol, baselines, intervals, and the predictor that is saved. Never imports torch."""

from __future__ import annotations

from lmms_visual_heads.prediction.flags import FLAG_WORDS
from lmms_visual_heads.prediction.lineages import lineage_mean
from lmms_visual_heads.prediction.predictor import BenchmarkPredictor
from lmms_visual_heads.prediction.regressors.ridge import LineageRidge

__all__ = ["FLAG_WORDS", "BenchmarkPredictor", "LineageRidge", "lineage_mean"]
