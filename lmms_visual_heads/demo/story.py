"""What the demo does, step by step: folders, runs of lmms-eval, a fit, a comparison. Prints nothing; cli/demo.py tells it.

Units: scores, predictions and errors in points, 100 = everything right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_visual_heads.demo.manifest import shipped_checkpoints
from lmms_visual_heads.demo.measured import LINEAGES_FILE, SCORES_FILE, measured_folder
from lmms_visual_heads.demo.runs import BENCHMARK_ARGUMENTS, BENCHMARK_PROMPTS, BENCHMARKS, PROBE
from lmms_visual_heads.errors import VisualHeadsError

if TYPE_CHECKING:
    import pandas as pd

    from lmms_visual_heads.harness.evaluation import CommandRun
    from lmms_visual_heads.prediction.predictor import BenchmarkPredictor

HEADS, SCORING, LOGS = "heads", "scoring", "logs"
"""Folders of the demo: tables of the measuring runs, of the scoring run, and results and logs of lmms-eval."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part.

    Attributes
    ----------
    probed : dict
        The manifest's entry of the checkpoint that is predicted.
    relatives : tuple of str
        Checkpoints of its own training, itself among them: left out of the fit.
    others : tuple of str
        Checkpoints that the predictor is fitted on.
    """

    probed: dict[str, Any]
    relatives: tuple[str, ...]
    others: tuple[str, ...]


def cast(checkpoint: str) -> Cast:
    """Who takes part when `checkpoint` is predicted.

    Raises
    ------
    VisualHeadsError
        When it is not one of the shipped checkpoints; names them.
    """
    shipped = {entry["name"]: entry for entry in shipped_checkpoints()}
    if checkpoint not in shipped:
        raise VisualHeadsError(f"--checkpoint must be one of {', '.join(shipped)}; {checkpoint!r} came.")
    probed = shipped[checkpoint]
    relatives = tuple(name for name, entry in shipped.items() if entry["lineage"] == probed["lineage"])
    return Cast(probed, relatives, tuple(name for name in shipped if name not in relatives))


def make_folders(out: Path) -> None:
    """Make the demo's folders; tables of an earlier demo go.

    Raises
    ------
    VisualHeadsError
        When `out` cannot be written.
    """
    try:
        for name in (HEADS, SCORING, LOGS):
            (out / name).mkdir(parents=True, exist_ok=True)
            for old in (out / name).glob("*.parquet*"):
                old.unlink()
    except OSError as error:
        raise VisualHeadsError(
            f"--out must name a folder that can be written; {str(out)!r} cannot ({error.strerror})."
        ) from None


def run_probe(probed: dict[str, Any], out: Path) -> CommandRun:
    """Read the heads on the probe."""
    return _run(probed, PROBE, out, HEADS)


def run_benchmark_prompts(probed: dict[str, Any], out: Path) -> CommandRun:
    """Answer some prompts of each benchmark, as they are, with other images, and with heads knocked out."""
    return _run(probed, BENCHMARKS, out, HEADS, BENCHMARK_PROMPTS, **BENCHMARK_ARGUMENTS)


def run_scoring(probed: dict[str, Any], documents: int, out: Path) -> CommandRun:
    """Score `documents` documents of each benchmark."""
    return _run(probed, BENCHMARKS, out, SCORING, documents)


def _run(
    probed: dict[str, Any], task: str, out: Path, tables: str, limit: int | None = None, **model_args: str
) -> CommandRun:
    from lmms_visual_heads.harness.evaluation import run_command

    return run_command(
        probed["path"],
        [task],
        output=out / LOGS,
        heads=out / tables,
        batch_size=32,
        limit=limit,
        model_name=probed["name"],
        **model_args,
    )


def fitted(others: Sequence[str]) -> tuple[BenchmarkPredictor, int]:
    """A predictor fitted on the shipped measurements of these checkpoints, and of how many trainings they are."""
    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction.predictor import BenchmarkPredictor
    from lmms_visual_heads.tables import read_lineages, read_scores

    folder, names = measured_folder(), list(others)
    scores = read_scores(folder / SCORES_FILE)
    lineages = {name: lineage for name, lineage in read_lineages(folder / LINEAGES_FILE).items() if name in names}
    predictor = BenchmarkPredictor().fit(
        read_measurements(folder).only(names), scores[scores.model.isin(names)], groups=lineages
    )
    return predictor, len(set(lineages.values()))


def compared(predictions: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Predictions beside what the checkpoint really scored.

    Parameters
    ----------
    predictions : DataFrame
        As `BenchmarkPredictor.predict` gives it.
    scores : DataFrame
        Score table of the same checkpoint.

    Returns
    -------
    DataFrame
        benchmark, predicted, low, high, baseline, actual (points); inside: whether the interval holds the actual score;
        nearer: whether the prediction is nearer to it than the baseline.
    """
    points = dict(zip(scores.benchmark, 100 * scores.score / scores.scale, strict=True))
    table = predictions[["benchmark", "predicted", "low", "high", "baseline"]].copy()
    table["actual"] = table.benchmark.map(points)
    table["inside"] = table.actual.between(table.low, table.high)
    table["nearer"] = (table.predicted - table.actual).abs() < (table.baseline - table.actual).abs()
    return table
