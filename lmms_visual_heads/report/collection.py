"""All frames of one page together, made before anything is drawn. Never draws, never reads a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lmms_visual_heads.report import frames, score_frames
from lmms_visual_heads.report.inputs import ReportModel


@dataclass(frozen=True)
class ReportFrames:
    """All frames of one page; None where the input for it was not given."""

    profiles: pd.DataFrame
    heads: pd.DataFrame
    models: pd.DataFrame
    top_heads: pd.DataFrame
    question_types: pd.DataFrame
    runs: pd.DataFrame
    tasks: pd.DataFrame
    versions: pd.DataFrame
    scores: pd.DataFrame | None = None
    predictions: pd.DataFrame | None = None
    evaluation: pd.DataFrame | None = None
    errors: pd.DataFrame | None = None
    methods: pd.DataFrame | None = None

    def items(self) -> list[tuple[str, pd.DataFrame]]:
        """(name, frame) of every frame that is there and has rows."""
        named = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        return [(name, frame) for name, frame in named if frame is not None and not frame.empty]


def build_frames(
    models: Sequence[ReportModel],
    scores: pd.DataFrame | None,
    predictor: Any | None,
    predictions: pd.DataFrame | None,
    threshold: float = frames.DEFAULT_THRESHOLD,
) -> ReportFrames:
    """Every frame of the page, before anything is drawn."""
    profiles = frames.profile_frame(models)
    heads = frames.head_frame(models)
    evaluation = None
    if predictor is not None and getattr(predictor, "evaluation_", None) is not None:
        evaluation = score_frames.evaluation_frame(predictor.evaluation_)
    return ReportFrames(
        profiles=profiles,
        heads=heads,
        models=frames.model_frame(heads, threshold),
        top_heads=frames.top_head_frame(heads, threshold=threshold),
        question_types=frames.question_type_frame(profiles, threshold),
        runs=frames.run_frame(models),
        tasks=frames.task_frame(models),
        versions=frames.version_frame(models),
        scores=None if scores is None else scores.assign(points=score_frames.points(scores)),
        predictions=None if predictions is None else score_frames.prediction_frame(predictions, scores),
        evaluation=evaluation,
        errors=None if evaluation is None or evaluation.empty else score_frames.error_frame(evaluation),
        methods=score_frames.method_frame(getattr(predictor, "methods_", None)),
    )
