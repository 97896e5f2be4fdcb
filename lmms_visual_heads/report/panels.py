"""Panels of the page: what the template is given for each model, benchmark and table, pictures drawn. Frames in, no file read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from lmms_visual_heads.report import figures, frames
from lmms_visual_heads.report.collection import ReportFrames
from lmms_visual_heads.report.formatting import in_words, shared_flags, split_flags
from lmms_visual_heads.report.inputs import ReportModel
from lmms_visual_heads.report.svg import inline_svg

MAP_STATISTICS = ("image_attention", "focus", "visual_head_score")
MAP_TITLES = {"image_attention": "Image attention W", "focus": "Focus F", "visual_head_score": "Visual-head score S"}


def prediction_panels(predictions: pd.DataFrame | None) -> list[dict[str, Any]]:
    """One panel per model: its name and its interval picture, all on one scale."""
    if predictions is None or predictions.empty:
        return []
    limits = _score_limits(predictions, ["predicted", "low", "high", "baseline", "actual"])
    return [
        {
            "name": name,
            "picture": inline_svg(
                figures.prediction_figure(part, limits), f"p{i}", f"Predicted scores of {name} with intervals"
            ),
        }
        for i, (name, part) in enumerate(predictions.groupby("model", sort=False))
    ]


def remarks(predictions: pd.DataFrame | None) -> dict[str, Any]:
    """Flags in words: what holds for the whole table once, the rest per row; `any` says whether a row has one.

    `sources`: what the scores are predicted from, and the benchmarks that are.
    """
    if predictions is None:
        return {"shared": "", "rows": [], "any": False, "sources": ""}
    shared = shared_flags(predictions["flags"])
    per_row = [in_words(flag for flag in split_flags(cell) if flag not in shared) for cell in predictions["flags"]]
    return {"shared": in_words(shared), "rows": per_row, "any": any(per_row), "sources": sources(predictions)}


def sources(predictions: pd.DataFrame) -> str:
    """What the scores are predicted from, with the benchmarks of each method where there are several; empty where none is named."""
    from lmms_visual_heads.prediction.methods import METHOD_WORDS
    from lmms_visual_heads.prediction.model_selection import methods_of

    if "method" not in predictions.columns:
        return ""
    named = predictions.assign(method=predictions["method"].str.partition("+")[0])
    groups = {
        METHOD_WORDS[str(name)]: ", ".join(dict.fromkeys(part["benchmark"]))
        for name, part in named.groupby("method", sort=False)
        if name in METHOD_WORDS
    }
    if not groups:
        return ""
    parts = list(groups) if len(groups) == 1 else [f"{words} ({benchmarks})" for words, benchmarks in groups.items()]
    needs_heads = any(method.heads for method in methods_of(named["method"]))
    return "; ".join(parts if needs_heads else [*parts, "heads do not enter"])


def evaluation_panels(made: ReportFrames) -> list[dict[str, Any]]:
    """One panel per benchmark: predicted against actual, with its row of the error frame."""
    if made.evaluation is None or made.errors is None:
        return []
    limits = _score_limits(made.evaluation, ["predicted", "low", "high", "baseline", "actual"])
    return [
        {
            "error": error,
            "picture": inline_svg(
                figures.evaluation_figure(made.evaluation[made.evaluation["benchmark"] == error["benchmark"]], limits),
                f"e{i}",
                f"Predicted against actual scores on {error['benchmark']}",
            ),
        }
        for i, error in enumerate(rows(made.errors))
    ]


def error_picture(errors: pd.DataFrame | None) -> Markup | None:
    """The bars of error per benchmark."""
    if errors is None or errors.empty:
        return None
    return inline_svg(figures.error_figure(errors), "err", "MAE per benchmark, predictor and baseline")


def model_sections(models: Sequence[ReportModel], made: ReportFrames, threshold: float) -> list[dict[str, Any]]:
    """Per model: thumbnail, maps, scatter, maps per question type, and the rows of its tables."""
    limits = {name: figures.shared_limits(made.heads[name], name) for name in (*MAP_STATISTICS, "region_lift")}
    cloud = tuple(_reach(made.heads[name]) for name in ("image_attention", "concentration"))
    new = set() if made.predictions is None else set(made.predictions["model"])
    first = next((model.name for model in models if model.name in new), None)
    sections = []
    for i, model in enumerate(models):
        key = f"m{i}"
        heads = made.heads[made.heads["model"] == model.name]
        top = made.top_heads[made.top_heads["model"] == model.name]
        types = made.question_types[made.question_types["model"] == model.name]
        values = {name: frames.matrix(heads, name) for name in limits}
        maps = [name for name in limits if name != "region_lift" or np.isfinite(values[name]).any()]
        sections.append(
            {
                "key": key,
                "name": model.name,
                "first": model.name == first,
                "pooled": model.pooled_tasks,
                "about": rows(made.runs[made.runs["model"] == model.name])[0],
                "summary": rows(made.models[made.models["model"] == model.name])[0],
                "documents": int(heads["n_documents"].max()),
                "missing": bool(~np.isfinite(values["visual_head_score"]).all()),
                "thumbnail": inline_svg(
                    figures.thumbnail_figure(
                        values["visual_head_score"], "visual_head_score", limits["visual_head_score"]
                    ),
                    f"{key}t",
                    f"Map of S for {model.name}",
                ),
                "maps": [
                    {
                        "title": MAP_TITLES.get(name, "Region lift"),
                        "picture": inline_svg(
                            figures.map_figure(values[name], name, limits[name]),
                            f"{key}-{name.replace('_', '-')}",
                            f"Layer by head map of {name.replace('_', ' ')} for {model.name}",
                        ),
                    }
                    for name in maps
                ],
                "scatter": inline_svg(
                    figures.weight_concentration_figure(heads, top, threshold, (cloud[0], cloud[1])),
                    f"{key}s",
                    f"Image attention against concentration, one point per head, for {model.name}",
                ),
                "top": rows(top),
                "has_lift": bool(top["region_lift"].notna().any()),
                "types": rows(types),
                "type_maps": _type_maps(model, types, limits["visual_head_score"], key) if len(types) > 1 else [],
            }
        )
    return sections


def _type_maps(model: ReportModel, types: pd.DataFrame, limits: figures.Limits, key: str) -> list[dict[str, Any]]:
    name = "visual_head_score"
    return [
        {
            "title": f"{one.question_type}{', box drawn' if one.box_drawn else ''}",
            "picture": inline_svg(
                figures.thumbnail_figure(
                    frames.matrix(model.profile[model.profile["task"] == one.task], name), name, limits
                ),
                f"{key}q{i}",
                f"Map of S for {model.name} on {one.task}",
            ),
        }
        for i, one in enumerate(types.itertuples(index=False))
    ]


def score_table(scores: pd.DataFrame | None) -> dict[str, Any] | None:
    """Scores in points as a grid: benchmarks and one row per model."""
    if scores is None or scores.empty:
        return None
    grid = scores.pivot_table(index="model", columns="benchmark", values="points", aggfunc="first", sort=False)
    return {
        "benchmarks": list(grid.columns),
        "rows": [(name, list(line)) for name, line in zip(grid.index, grid.to_numpy(), strict=True)],
    }


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as dictionaries, for the template."""
    return frame.to_dict("records")  # type: ignore[return-value]


def _reach(values: pd.Series) -> float:
    """End of an axis from 0: a little above the largest value, at most 1."""
    largest = values.max()
    return 1.0 if not largest > 0 else float(min(1.0, np.ceil(largest * 1.04 * 20) / 20))


def _score_limits(frame: pd.DataFrame, names: list[str]) -> tuple[float, float]:
    """One axis for all panels: whole tens around every number, within 0..100 unless a score lies outside."""
    values = frame[names].to_numpy(float)
    values = values[np.isfinite(values)]
    centres = frame[[name for name in names if name not in ("low", "high")]].to_numpy(float)
    centres = centres[np.isfinite(centres)]
    if not len(centres):
        return 0.0, 100.0
    low, high = values.min(), values.max()
    if centres.min() >= 0:
        low = max(low, 0.0)
    if centres.max() <= 100:
        high = min(high, 100.0)
    low, high = np.floor(low / 10) * 10, np.ceil(high / 10) * 10
    return float(low), float(high if high > low else low + 10)
