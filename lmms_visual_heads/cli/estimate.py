"""`visual-heads estimate`: a few labelled items and many unlabelled prompts -> a benchmark's score, without reference models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

COLUMNS = (
    "model",
    "benchmark",
    "estimate",
    "low",
    "high",
    "level",
    "labels",
    "unlabelled",
    "direct",
    "power",
    "guarantee",
)


def estimate(
    heads: Annotated[
        list[Path],
        typer.Option("--heads", help="Tables of a run or their folder: the answer tables of the benchmarks are read."),
    ],
    items: Annotated[list[Path], typer.Option("--items", help="Samples files of lmms-eval: the labelled items.")],
    level: Annotated[float, typer.Option("--level", help="Wanted coverage of the intervals, 0..1.")] = 0.9,
    format: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Estimate benchmark scores from few labels and many prompts without, in points, with valid intervals and no predictor.

    Prediction-powered inference: the confidences of all answered prompts stand in for labels, the labelled ones say how far to
    believe them. The labelled items must be a random sample of the prompts: the first ones of a benchmark are that only where
    its order says nothing. Below 30 labels the interval is the exact one of the labels alone.

    Examples:

        visual-heads estimate --heads heads --items logs/new/20260101_120000_samples_pope.jsonl
    """
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction.inputs import check_items, labelled_items
    from lmms_visual_heads.prediction.prediction_powered import prediction_powered_mean
    from lmms_visual_heads.tables import read_items

    if format not in ("table", "csv", "json"):
        raise VisualHeadsError(f"--format must be table, csv or json; {format!r} came.")
    measured, read = read_measurements(heads), read_items(items)
    models = sorted({model for model, _ in measured.prompts})
    if not models:
        raise VisualHeadsError(
            "Answer tables are required; none lies under --heads. Run lmms-eval --model visual_heads_llava with --tasks BENCHMARK."
        )
    own, notes = check_items(read.frame, models, sorted({task for _, task in measured.prompts}))
    rows = []
    for model, parts in labelled_items(own, measured).items():
        for benchmark, part in parts.items():
            if not len(part.unlabelled):
                notes.append(
                    f"{model}, {benchmark}: every answered prompt is labelled, so its score is known; left out."
                )
                continue
            found = prediction_powered_mean(part.correct, part.confidence, part.unlabelled, level)
            numbers = (found.mean, found.low, found.high, level, len(part.correct), len(part.unlabelled))
            rows.append(
                dict(
                    zip(COLUMNS, (model, benchmark, *numbers, found.direct, found.power, found.guarantee), strict=True)
                )
            )
    for note in dict.fromkeys([*measured.notes, *read.notes, *notes]):
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    if format == "json":
        import json

        typer.echo(json.dumps(rows, indent=1, allow_nan=False))
    elif format == "csv":
        import pandas as pd

        typer.echo(pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n"), nl=False)
    else:
        _print_table(rows, level)


def _print_table(rows: list[dict[str, object]], level: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Scores from labels and unlabelled prompts, points of 100", box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    table.add_column("benchmark", overflow="fold", min_width=18)
    for name in ("estimate", f"{level:.0%} interval", "labels alone", "labels", "unlabelled"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        interval = f"{row['low']:.1f} to {row['high']:.1f}"
        numbers = (
            f"{row['estimate']:.1f}",
            interval,
            f"{row['direct']:.1f}",
            str(row["labels"]),
            str(row["unlabelled"]),
        )
        table.add_row(str(row["model"]), str(row["benchmark"]), *numbers)
    console = Console()
    console.print(table)
    for guarantee in dict.fromkeys(str(row["guarantee"]) for row in rows):
        console.print(f"The interval {guarantee}.", highlight=False)
