"""What the report reads, brought into one form: one `ReportModel` per model, head profile and metadata side by side.

Never changes a number. Shapes: one profile row per (task, layer, head).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lmms_visual_heads import schema
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.profiles import head_profile
from lmms_visual_heads.tables import HeadTable

PROFILE_NAMES = tuple(column.name for column in schema.PROFILE_COLUMNS)
PLAIN_TASKS = schema.PROBE_TASKS[:3]
VISUAL_TASKS = schema.PROBE_TASKS[3:]


@dataclass(frozen=True, slots=True)
class ReportModel:
    """One model of the page.

    Attributes
    ----------
    name : str
        The model's name, as in the score table.
    profile : DataFrame
        `schema.PROFILE_COLUMNS`, one row per (task, layer, head).
    metadata : Mapping
        The head table's metadata document (DESIGN.md); may lack entries.
    """

    name: str
    profile: pd.DataFrame
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lacking = [name for name in PROFILE_NAMES if name not in self.profile.columns]
        if lacking:
            raise VisualHeadsError(
                f"The report needs head profiles with the columns of the schema; those of {self.name!r} lack "
                f"{', '.join(lacking)}. Measure the model again with this version."
            )
        if self.profile.empty:
            raise VisualHeadsError(
                f"The report needs at least one measured head per model; the head table of {self.name!r} is empty. "
                "Run the probe again: lmms-eval --model visual_heads_llava --tasks vhead."
            )

    @property
    def description(self) -> Mapping[str, Any]:
        """The metadata's entry about the model; empty when there is none."""
        return self.metadata.get("model") or {}

    @property
    def pooled_tasks(self) -> tuple[str, ...]:
        """Tasks whose documents the maps pool: the plain probe, else the probe with the box drawn, else whatever is there."""
        present = tuple(dict.fromkeys(self.profile["task"]))
        for wanted in (PLAIN_TASKS, VISUAL_TASKS):
            chosen = tuple(task for task in wanted if task in present)
            if chosen:
                return chosen
        return present


def report_models(heads: Iterable[Any]) -> list[ReportModel]:
    """Bring head tables and head profiles into one form, in the order in which they came.

    Parameters
    ----------
    heads : iterable
        Head tables (`.frame` per document, `.metadata`), head profiles of several models (`.frame`,
        `.metadata_by_model`), or objects that carry one model's profile as `.frame` beside `.metadata`.

    Returns
    -------
    list of ReportModel

    Raises
    ------
    VisualHeadsError
        When there is no model, when a model comes twice, or when a profile lacks columns.
    """
    models = [model for entry in heads for model in _models_of(entry)]
    if not models:
        raise VisualHeadsError(
            "The report needs the heads of at least one model; none came. Give --heads PATH of a finished probe run."
        )
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise VisualHeadsError(
                f"The report needs one head table per model; {model.name!r} came twice. "
                "Leave one out, or give one of the runs another name with model_name=."
            )
        seen.add(model.name)
    return models


def _models_of(entry: Any) -> list[ReportModel]:
    if isinstance(entry, ReportModel):
        return [entry]
    by_model = getattr(entry, "metadata_by_model", None)
    if by_model is None:
        metadata = entry.metadata
        frame = head_profile(entry) if isinstance(entry, HeadTable) else entry.frame
        named = (metadata.get("model") or {}).get("name")
        if named is not None and "model" not in frame.columns:
            frame = frame.assign(model=named)
        by_model = dict.fromkeys(frame["model"].unique(), metadata)
    else:
        frame = entry.frame
    return [
        ReportModel(str(name), part.reset_index(drop=True), by_model.get(name, {}))
        for name, part in frame.groupby("model", sort=False)
    ]
