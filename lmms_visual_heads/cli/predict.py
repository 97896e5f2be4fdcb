"""`visual-heads predict`: heads of a checkpoint -> predicted scores, each with its interval and its baseline."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(enum.StrEnum):
    """How the predictions are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def predict(
    predictor: Annotated[Path, typer.Argument(help="A predictor (see: visual-heads fit).")],
    heads: Annotated[
        list[Path], typer.Option("--heads", help="Head tables or folders of them; several may follow one another.")
    ],
    known: Annotated[
        Path | None, typer.Option("--known", help="Score table of scores that are measured already.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    force: Annotated[
        bool, typer.Option("--force", help="Predict for heads from another world, too; every such row is flagged.")
    ] = False,
) -> None:
    """Predict benchmark scores from attention heads, in points (100 = the benchmark's best possible score).

    Every row has its interval and its baseline: the mean of the trainings that the predictor was fitted on.

    Examples:

        visual-heads predict predictor.skops --heads heads/new.heads.parquet

        visual-heads predict predictor.skops --heads heads --known scores.csv --format csv > predictions.csv
    """
    from lmms_visual_heads.features import read_profiles
    from lmms_visual_heads.prediction import BenchmarkPredictor
    from lmms_visual_heads.tables import read_scores

    fitted = BenchmarkPredictor.load(predictor)
    profiles = read_profiles(heads)
    scores = None if known is None else read_scores(known)
    predictions = fitted.predict(profiles, known=scores, force=force)
    for note in profiles.notes:
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    if form is Format.CSV:
        typer.echo(predictions.to_csv(index=False, lineterminator="\n"), nl=False)
    elif form is Format.JSON:
        import json

        typer.echo(json.dumps(predictions.to_dict("records"), indent=1, allow_nan=False))
    else:
        _print_table(fitted, predictions.to_dict("records"))


def _print_table(fitted: Any, rows: list[dict[Any, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lmms_visual_heads.prediction import FLAG_WORDS

    console = Console()
    all_flags = [row["flags"].split(";") for row in rows]
    common = [flag for flag in FLAG_WORDS if all(flag in flags for flags in all_flags)]
    for model in dict.fromkeys(row["model"] for row in rows):
        table = Table(title=f"{model}, points of 100", box=box.SIMPLE_HEAD)
        table.add_column("benchmark", overflow="fold", min_width=18)
        for name in ("predicted", f"{fitted.level:.0%} interval", "baseline"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("flags", overflow="fold")
        for row in rows:
            if row["model"] == model:
                interval = f"{row['low']:.1f} to {row['high']:.1f}"
                flags = ", ".join(flag for flag in row["flags"].split(";") if flag not in common)
                table.add_row(row["benchmark"], f"{row['predicted']:.1f}", interval, f"{row['baseline']:.1f}", flags)
        console.print(table)
    described = fitted.describe()
    console.print(
        f"Fitted on {described['n_models']} checkpoints of {described['n_lineages']} trainings, query {described['query']}, "
        f"probe {', '.join(described['probe'])}. Baseline: the mean of those trainings.",
        highlight=False,
    )
    for flag in dict.fromkeys(flag for flags in all_flags for flag in flags if flag):
        where = "every row, " if flag in common and len(rows) > 1 else ""
        console.print(f"{where}{flag}: {FLAG_WORDS[flag]}.", highlight=False)
