"""The page: frames to CSV files and figures to one self-contained `index.html`. Fetches nothing, and neither does the page.

Every picture stands on a frame, and every frame is written beside the page as `data/*.csv`. Writes are atomic.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.measurements import Measurements, as_measurements
from lmms_visual_heads.features.profiles import HeadProfiles
from lmms_visual_heads.prediction.predictor import BenchmarkPredictor
from lmms_visual_heads.prediction.sources import as_scores, heads_of
from lmms_visual_heads.report import frames, palette, panels, words
from lmms_visual_heads.report.collection import ReportFrames, build_frames
from lmms_visual_heads.report.formatting import integer, number, sort_key, text
from lmms_visual_heads.report.inputs import ReportModel, report_models
from lmms_visual_heads.report.trust import Trust, is_small, trust
from lmms_visual_heads.tables import HeadTable
from lmms_visual_heads.tables.files import write_bytes

PAGE_NAME = "index.html"
DATA_FOLDER = "data"
OPEN_PANELS = 12
"""Benchmarks beyond this many are folded away, so that the page stays readable."""


@dataclass(frozen=True, slots=True)
class Report:
    """A written page: where it lies, its first line, how far to trust it, and what the reader must be told besides."""

    path: Path
    headline: str
    trust: Trust
    notes: tuple[str, ...]
    n_models: int

    def __fspath__(self) -> str:
        """The page's path, so that a report can be opened like one."""
        return str(self.path)


def write_report(
    out: str | os.PathLike[str],
    measurements: Any,
    scores: pd.DataFrame | str | os.PathLike[str] | None = None,
    predictor: Any | None = None,
    predictions: pd.DataFrame | None = None,
    *,
    threshold: float = frames.DEFAULT_THRESHOLD,
    command: Sequence[str] | None = None,
    force: bool = False,
) -> Report:
    """Write the page `index.html` and the numbers behind its pictures, `data/*.csv`, and say what the page says.

    Parameters
    ----------
    out : path
        Folder; made if it is not there.
    measurements : Measurements, path, or several paths
        What was measured of the models, heads among it; a path is read with `read_measurements`.
    scores : DataFrame, path or None
        Score table.
    predictor : BenchmarkPredictor, path or None
        Gives its errors on left-out trainings, and predicts the models that it was not fitted on unless `predictions` is given.
    predictions : DataFrame or None
        `schema.PREDICTION_COLUMNS`, in points.
    threshold : float
        A head whose mean S exceeds this is called a visual head.
    command : sequence of str or None
        The command that wrote the page, word by word, to be shown on it.
    force : bool
        Predict models that the predictor does not vouch for, too; their rows are flagged.

    Returns
    -------
    Report
        `path` of the page, its first line `headline`, how far to `trust` it, `notes`.

    Raises
    ------
    VisualHeadsError
        When the folder cannot be written (before any work), no heads came, a model came twice, or columns are missing.

    Examples
    --------
    >>> import tempfile
    >>> from lmms_visual_heads import write_report
    >>> from lmms_visual_heads.demo.measured import PROFILES_FILE, measured_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_report(folder, measured_folder() / PROFILES_FILE)
    >>> report.path.name, report.n_models
    ('index.html', 22)
    """
    writable_folder(out)
    heads, beside = _read(measurements)
    table = as_scores(scores) if scores is not None else None
    if isinstance(predictor, str | os.PathLike):
        predictor = BenchmarkPredictor.load(predictor)
    return _write(out, heads, table, predictor, predictions, threshold, command, force, beside)


def make_report(
    out: str | os.PathLike[str],
    heads: Iterable[Any],
    scores: pd.DataFrame | None = None,
    predictor: Any | None = None,
    predictions: pd.DataFrame | None = None,
    *,
    measured: Any | None = None,
    **settings: Any,
) -> Report:
    """Deprecated: `write_report`, which takes heads, answers and knock-outs as one object."""
    warnings.warn("make_report is now write_report(out, measurements, ...)", DeprecationWarning, stacklevel=2)
    chosen = {"threshold": frames.DEFAULT_THRESHOLD, "command": None, "force": False, **settings}
    return _write(out, heads, scores, predictor, predictions, **chosen, measured=measured)


def _read(measurements: Any) -> tuple[Iterable[Any], Measurements | None]:
    """What carries heads, and what was measured beside them."""
    single = isinstance(measurements, Measurements | HeadProfiles | HeadTable | str | os.PathLike)
    entries = [measurements] if single else list(measurements)
    if all(isinstance(entry, Measurements | HeadProfiles | HeadTable | str | os.PathLike) for entry in entries):
        found = as_measurements(measurements if single else entries)
        return [heads_of(found)], found
    return entries, None  # models of the page, as `report_models` knows them


def _write(
    out: str | os.PathLike[str],
    heads: Iterable[Any],
    scores: pd.DataFrame | None,
    predictor: Any | None,
    predictions: pd.DataFrame | None,
    threshold: float,
    command: Sequence[str] | None,
    force: bool,
    measured: Measurements | None,
) -> Report:
    folder = writable_folder(out)
    models = report_models(heads)
    notes: list[str] = []
    if predictions is None and predictor is not None:
        try:
            predictions = new_predictions(predictor, models, force, measured)
        except VisualHeadsError as refusal:
            notes.append(f"No score is predicted: {refusal}")
    notes += method_notes(predictor, predictions)
    made = build_frames(models, scores, predictor, predictions, threshold)
    if made.predictions is not None and scores is not None and made.predictions["actual"].isna().all():
        names = ", ".join(dict.fromkeys(made.predictions["model"]))
        notes.append(
            f"The score table has no score of the predicted models ({names}): check that the names are the same."
        )
    verdict = page_trust(made, predictor)
    title = words.headline(models, made.heads, made.predictions, verdict)
    html = render(models, made, predictor, threshold, command, title, verdict, notes, measured)
    for name, frame in made.items():
        write_bytes(folder / DATA_FOLDER / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n").encode())
    path = write_bytes(folder / PAGE_NAME, html.encode())
    return Report(path, title[0], verdict, tuple(notes), len(models))


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


def render(
    models: Sequence[ReportModel],
    made: ReportFrames,
    predictor: Any | None,
    threshold: float,
    command: Sequence[str] | None,
    title: tuple[str, str],
    verdict: Trust,
    notes: Sequence[str] = (),
    measured: Any | None = None,
) -> str:
    """The page as HTML text; `title`: headline and the sentence that adds to it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lmms_visual_heads.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, integer=integer, text=text, sort=sort_key)
    return environment.get_template("index.html.jinja").render(
        headline=title[0],
        addition=title[1],
        notes=notes,
        trust=verdict,
        level=_level(made, predictor),
        frames=made,
        rows=panels.rows,
        threshold=threshold,
        missing_parts=words.missing_parts(made.scores is not None, predictor is not None, made.predictions is not None),
        mixed=frames.mixed_measurements(models),
        prediction_panels=panels.prediction_panels(made.predictions),
        evaluation_panels=panels.evaluation_panels(made),
        open_panels=OPEN_PANELS,
        error_picture=panels.error_picture(made.errors),
        model_sections=panels.model_sections(models, made, threshold),
        remarks=panels.remarks(made.predictions),
        fitted_on=words.fitted_facts(predictor.describe()) if predictor is not None else [],
        commands=words.remake_commands(models, command, predictor is not None, measured),
        score_table=panels.score_table(made.scores),
        glossary=words.GLOSSARY,
        citation=words.CITATION,
        data_folder=DATA_FOLDER,
        light=palette.css_variables(palette.LIGHT),
        dark=palette.css_variables(palette.DARK),
    )


def page_trust(made: ReportFrames, predictor: Any | None = None) -> Trust:
    """The verdict of `trust` for the frames of a page."""
    evaluation = made.evaluation
    if evaluation is None or evaluation.empty:
        return trust(None, predicted=made.predictions is not None and not made.predictions.empty)
    fitted = {} if predictor is None else predictor.describe()
    tasks = made.tasks[made.tasks["task"].isin(fitted.get("probe") or made.profiles["task"].unique())]
    documents = tasks.groupby("model")["n_documents"].sum()
    judged = made.runs[made.runs["model"].isin(evaluation["model"])]
    sizes = fitted.get("language_model_parameters") or judged["language_model_parameters"].tolist()
    needs_probe, benchmark_prompts, again = needed(fitted)
    return trust(
        evaluation,
        level=_level(made, predictor),
        small=is_small(sizes, evaluation["benchmark"].unique().tolist()),
        probe_documents=int(documents.median()) if len(documents) and needs_probe else None,
        benchmark_prompts=benchmark_prompts,
        again=again,
    )


def needed(description: Mapping[str, Any]) -> tuple[bool, int | None, bool]:
    """What the chosen methods of a predictor need, from its description.

    Returns
    -------
    bool, int or None, bool
        Whether the probe; how many prompts of a benchmark; whether these more than once, with other
        images or with heads knocked out.
    """
    if "chosen" not in description:
        return True, None, False
    from lmms_visual_heads.prediction.model_selection import methods_of

    used = methods_of(description["chosen"].values())
    counts = list(description["own_prompts"].values())
    prompts = int(median(counts)) if counts and any(method.own_prompts for method in used) else None
    return any(method.probe for method in used), prompts, any(method.extra_passes for method in used)


def method_notes(predictor: Any | None, predictions: pd.DataFrame | None) -> list[str]:
    """A sentence per method that stands behind predictions but not behind the left-out errors that the page judges by."""
    judged = getattr(predictor, "methods_", None)
    if judged is None or predictions is None or "method" not in predictions.columns:
        return []
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    used = predictions.assign(method=predictions["method"].str.partition("+")[0])[
        ["benchmark", "method"]
    ].drop_duplicates()
    others = used.merge(judged[~judged["chosen"].astype(bool)], on=["benchmark", "method"])
    return [
        f"{', '.join(part['benchmark'])}: predicted from {METHOD_WORDS[str(name)]} alone, whose left-out MAE is "
        f"{part['error'].mean():.1f} points (baseline: {part['baseline_error'].mean():.1f}). The left-out errors on this page are "
        "those of the best method, which needs more than was measured of these models."
        for name, part in others.groupby("method", sort=False)
    ]


def new_predictions(
    predictor: Any, models: Sequence[ReportModel], force: bool = False, measured: Any | None = None
) -> pd.DataFrame | None:
    """Predictions for the models that the predictor was not fitted on; None when it was fitted on all of them."""
    evaluation = getattr(predictor, "evaluation_", None)
    fitted = set() if evaluation is None else set(evaluation["model"])
    new = [model for model in models if model.name not in fitted]
    if not new:
        return None
    profiles = HeadProfiles(frames.profile_frame(new), {model.name: model.metadata for model in new})
    beside = Measurements() if measured is None else measured.only(profiles.models)
    return predictor.predict(replace(beside, heads=profiles), force=force)


def _level(made: ReportFrames, predictor: Any | None) -> float | None:
    """Nominal level of the intervals, where predictions or predictor name one."""
    levels = [] if made.predictions is None else list(made.predictions["level"].dropna().unique())
    if not levels and predictor is not None:
        levels = [level for level in [predictor.describe().get("level")] if level is not None]
    return float(levels[0]) if len(levels) == 1 else None
