"""The page: frames to CSV files and figures to one self-contained `index.html`. Fetches nothing, and neither does the page.

Every picture stands on a frame, and every frame is written beside the page as `data/*.csv`. Writes are atomic.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.report import figures, frames, palette, score_frames, words
from lmms_visual_heads.report.inputs import ReportModel, report_models
from lmms_visual_heads.report.svg import inline_svg
from lmms_visual_heads.report.trust import Trust, is_small, trust
from lmms_visual_heads.tables.files import write_bytes

PAGE_NAME = "index.html"
DATA_FOLDER = "data"
MAP_STATISTICS = ("image_attention", "focus", "visual_head_score")
MAP_TITLES = {"image_attention": "Image attention W", "focus": "Focus F", "visual_head_score": "Visual-head score S"}
OPEN_PANELS = 12
"""Benchmarks beyond this many are folded away, so that the page stays readable."""


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

    def items(self) -> list[tuple[str, pd.DataFrame]]:
        """(name, frame) of every frame that is there and has rows."""
        named = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        return [(name, frame) for name, frame in named if frame is not None and not frame.empty]


def write_report(
    out: str | os.PathLike[str],
    heads: Iterable[Any],
    scores: pd.DataFrame | None = None,
    predictor: Any | None = None,
    predictions: pd.DataFrame | None = None,
    *,
    threshold: float = frames.DEFAULT_THRESHOLD,
    command: Sequence[str] | None = None,
) -> Path:
    """Write `index.html` and `data/*.csv` into the folder `out`.

    Parameters
    ----------
    out : path
        Folder; made if it is not there.
    heads : iterable
        Head tables or head profiles, one model each (or profiles of several models), in the order of the page.
    scores : DataFrame or None
        Score table.
    predictor : BenchmarkPredictor or None
        Gives `evaluation_` and `describe()`, and predicts the models that it was not fitted on unless `predictions` is given.
    predictions : DataFrame or None
        `schema.PREDICTION_COLUMNS`, in points.
    threshold : float
        A head whose mean S exceeds this is called a visual head.
    command : sequence of str or None
        The command that wrote the page, word by word, to be shown on it.

    Returns
    -------
    Path
        `out/index.html`.

    Raises
    ------
    VisualHeadsError
        When the folder cannot be written (before any work), no heads came, a model came twice, or columns are missing.
    """
    folder = writable_folder(out)
    models = report_models(heads)
    if predictions is None and predictor is not None:
        predictions = new_predictions(predictor, models)
    made = build_frames(models, scores, predictor, predictions, threshold)
    html = render(models, made, predictor, threshold, command)
    for name, frame in made.items():
        write_bytes(folder / DATA_FOLDER / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n").encode())
    return write_bytes(folder / PAGE_NAME, html.encode())


def writable_folder(out: str | os.PathLike[str]) -> Path:
    """`out` as a folder in which files can be made, checked by making one.

    Raises
    ------
    VisualHeadsError
        When it is a file, or cannot be made or written.
    """
    folder = Path(out)
    probe = folder / f".{PAGE_NAME}.{os.getpid()}.try"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise VisualHeadsError(
            f"The report needs a folder that can be written; {folder} cannot ({error.strerror}). Choose another --out."
        ) from error
    return folder


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
    )


def render(
    models: Sequence[ReportModel],
    made: ReportFrames,
    predictor: Any | None,
    threshold: float,
    command: Sequence[str] | None = None,
) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lmms_visual_heads.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, integer=integer, text=text, sort=sort_key)
    verdict = page_trust(made)
    title, addition = words.headline(models, made.heads, made.predictions, verdict)
    return environment.get_template("index.html.jinja").render(
        headline=title,
        addition=addition,
        trust=verdict,
        level=_level(made),
        frames=made,
        rows=rows,
        threshold=threshold,
        missing_parts=words.missing_parts(made.scores is not None, predictor is not None, made.predictions is not None),
        mixed=frames.mixed_measurements(models),
        prediction_panels=prediction_panels(made.predictions),
        evaluation_panels=evaluation_panels(made),
        open_panels=OPEN_PANELS,
        error_picture=error_picture(made.errors),
        model_sections=model_sections(models, made, threshold),
        fitted_on=flat(predictor.describe()) if predictor is not None else [],
        commands=words.remake_commands(models, command, predictor is not None),
        score_table=score_table(made.scores),
        glossary=words.GLOSSARY,
        citation=words.CITATION,
        data_folder=DATA_FOLDER,
        light=palette.css_variables(palette.LIGHT),
        dark=palette.css_variables(palette.DARK),
    )


def page_trust(made: ReportFrames) -> Trust:
    """The verdict of `trust` for the frames of a page."""
    evaluation = made.evaluation
    if evaluation is None or evaluation.empty:
        return trust(None)
    documents = made.tasks[made.tasks["task"].isin(made.profiles["task"].unique())].groupby("model")["n_documents"].sum()
    return trust(
        evaluation,
        level=_level(made),
        small=is_small(made.runs["language_model_parameters"].tolist(), evaluation["benchmark"].unique().tolist()),
        probe_documents=int(documents.median()) if len(documents) else None,
    )


def new_predictions(predictor: Any, models: Sequence[ReportModel]) -> pd.DataFrame | None:
    """Predictions for the models that the predictor was not fitted on; None when it was fitted on all of them."""
    evaluation = getattr(predictor, "evaluation_", None)
    fitted = set() if evaluation is None else set(evaluation["model"])
    new = [model for model in models if model.name not in fitted]
    return predictor.predict(frames.profile_frame(new)) if new else None


def prediction_panels(predictions: pd.DataFrame | None) -> list[dict[str, Any]]:
    """One panel per model: its name and its interval picture, all on one scale."""
    if predictions is None or predictions.empty:
        return []
    limits = _score_limits(predictions, ["predicted", "low", "high", "baseline", "actual"])
    return [
        {
            "name": name,
            "picture": inline_svg(figures.prediction_figure(part, limits), f"p{i}", f"Predicted scores of {name} with intervals"),
        }
        for i, (name, part) in enumerate(predictions.groupby("model", sort=False))
    ]


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
    return inline_svg(figures.error_figure(errors), "err", "Mean absolute error per benchmark, predictor and baseline")


def model_sections(models: Sequence[ReportModel], made: ReportFrames, threshold: float) -> list[dict[str, Any]]:
    """Per model: thumbnail, maps, scatter, maps per question type, and the rows of its tables."""
    limits = {name: figures.shared_limits(made.heads[name], name) for name in (*MAP_STATISTICS, "region_lift")}
    cloud = tuple(_reach(made.heads[name]) for name in ("image_attention", "concentration"))
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
                "pooled": model.pooled_tasks,
                "about": rows(made.runs[made.runs["model"] == model.name])[0],
                "summary": rows(made.models[made.models["model"] == model.name])[0],
                "documents": int(heads["n_documents"].max()),
                "missing": bool(~np.isfinite(values["visual_head_score"]).all()),
                "thumbnail": inline_svg(
                    figures.thumbnail_figure(values["visual_head_score"], "visual_head_score", limits["visual_head_score"]),
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
                figures.thumbnail_figure(frames.matrix(model.profile[model.profile["task"] == one.task], name), name, limits),
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
    return {"benchmarks": list(grid.columns), "rows": [(name, list(line)) for name, line in zip(grid.index, grid.to_numpy(), strict=True)]}


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as dictionaries, for the template."""
    return frame.to_dict("records")  # type: ignore[return-value]


def number(value: Any, digits: int = 1, signed: bool = False) -> Markup:
    """`value` with `digits` decimals and a real minus sign; a dash that says "missing" where there is none."""
    if value is None or pd.isna(value) or not np.isfinite(value):
        return MISSING
    shown = f"{float(value):{'+' if signed else ''},.{digits}f}"
    if float(shown.replace(",", "")) == 0:
        shown = f"{0.0:.{digits}f}"
    return Markup(shown.replace("-", "−"))  # noqa: S704 - digits only


def integer(value: Any) -> Markup:
    """`value` as a whole number with thousands set apart; see `number`."""
    return number(value, 0)


def text(value: Any) -> Markup:
    """`value` escaped; a dash that says "missing" where there is none."""
    missing = value is None or value == "" or (isinstance(value, float) and np.isnan(value))
    return MISSING if missing else escape(value)


def sort_key(value: Any) -> str:
    """What a column is sorted by: the full number, or the text; empty where missing."""
    return "" if value is None or (not isinstance(value, str) and pd.isna(value)) else str(value)


MISSING = Markup('<span class="missing" title="missing">–</span>')


def flat(description: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested description as (name, text) pairs; lists as comma-separated text, empty entries as missing."""
    pairs: list[tuple[str, str]] = []
    for name, value in description.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{label}: ")
        elif isinstance(value, list | tuple | set | frozenset):
            pairs.append((label, ", ".join(str(entry) for entry in value)))
        elif isinstance(value, float | np.floating):
            pairs.append((label, "" if np.isnan(value) else f"{value:.4g}"))
        else:
            pairs.append((label, "" if value is None else str(value)))
    return pairs


def _level(made: ReportFrames) -> float | None:
    """Nominal level of the intervals, where the predictions name one."""
    if made.predictions is None:
        return None
    levels = made.predictions["level"].dropna().unique()
    return float(levels[0]) if len(levels) == 1 else None


def _reach(values: pd.Series) -> float:
    """End of an axis from 0: a little above the largest value, at most 1."""
    largest = values.max()
    return 1.0 if not largest > 0 else float(min(1.0, np.ceil(largest * 1.04 * 20) / 20))


def _score_limits(frame: pd.DataFrame, names: list[str]) -> tuple[float, float]:
    """One axis for all panels: whole tens around every number, within 0..100 unless a score lies outside."""
    values = frame[names].to_numpy(float)
    centres = frame[[name for name in names if name not in ("low", "high")]].to_numpy(float)
    low, high = np.nanmin(values), np.nanmax(values)
    if np.nanmin(centres) >= 0:
        low = max(low, 0.0)
    if np.nanmax(centres) <= 100:
        high = min(high, 100.0)
    low, high = np.floor(low / 10) * 10, np.ceil(high / 10) * 10
    return float(low), float(high if high > low else low + 10)
