"""`visual-heads fit`: heads, answers, causal scores and scores of known checkpoints -> a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fit(
    heads: Annotated[
        list[Path], typer.Option("--heads", help="Head tables or folders of them; several may follow one another.")
    ],
    scores: Annotated[Path, typer.Option("--scores", help="Score table (see: visual-heads scores).")],
    out: Annotated[Path, typer.Option("--out", help="Where the predictor goes (one file).")],
    lineages: Annotated[
        Path | None,
        typer.Option("--lineages", help="CSV model,lineage: checkpoints of one training share a lineage."),
    ] = None,
    items: Annotated[
        list[Path] | None,
        typer.Option(
            "--items", help="Samples files of lmms-eval of the same checkpoints: what their confidence is worth."
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            "--checkpoints", help="CSV with model and what is known of its training (parameters, training_loss, ...)."
        ),
    ] = None,
    level: Annotated[float, typer.Option("--level", help="Wanted coverage of the intervals, 0..1.")] = 0.9,
) -> None:
    """Fit a predictor on checkpoints whose heads and scores are both known, and say how well it does.

    Answer and causal tables that lie beside the head tables are used, too: on the probe, and on the prompts of the benchmarks
    themselves where the run had them. Per benchmark the method is chosen that errs least on left-out trainings, there and on
    the benchmarks together.

    The errors are those on trainings that were left out, beside the mean of the other trainings.
    At least 15 separate trainings are needed before an interval can be trusted.

    Examples:

        visual-heads fit --heads heads --scores scores.csv --out predictor.skops

        visual-heads fit --heads heads --scores scores.csv --lineages lineages.csv --items logs --out predictor.skops

        visual-heads fit --heads a.heads.parquet b.heads.parquet --scores scores.csv --lineages lineages.csv --out predictor.skops
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction import BenchmarkPredictor
    from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    measurements = read_measurements(heads, checkpoints=checkpoints)
    with Console(stderr=True).status("fitting every method, with every group of trainings left out in turn"):
        predictor = BenchmarkPredictor(level=level).fit(measurements, scores, groups=lineages, items=items or None)
    predictor.save(out)
    for note in predictor.notes_:
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    table = Table(title="Mean absolute error on trainings that were left out, in points of 100", box=box.SIMPLE_HEAD)
    table.add_column("benchmark", overflow="fold", min_width=18)
    for name in ("models", "trainings", "error", "baseline", f"in {level:.0%}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("method", overflow="fold")
    chosen = predictor.describe()["chosen"]
    for row in predictor.errors_.to_dict("records"):
        table.add_row(
            row["benchmark"],
            str(row["n_models"]),
            str(row["n_lineages"]),
            f"{row['error']:.1f}",
            f"{row['baseline_error']:.1f}",
            f"{row['coverage']:.0%}",
            "better" if row["error"] < row["baseline_error"] else "no better",
            chosen[row["benchmark"]],
        )
    console = Console()
    console.print(table)
    for name in dict.fromkeys(chosen.values()):
        console.print(f"{name}: predicted from {METHOD_WORDS[name]}.", highlight=False)
    n_lineages = len(set(predictor.lineages_.values()))
    if n_lineages < CERTIFIED_LINEAGES:
        console.print(
            f"Fitted on {n_lineages} separate trainings: below {CERTIFIED_LINEAGES} no coverage of {level:.0%} can be certified, "
            "and the intervals are widened."
        )
    typer.echo(f"predictor: {out}")
