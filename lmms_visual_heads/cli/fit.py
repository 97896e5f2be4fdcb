"""`visual-heads fit`: heads, answers, causal scores and scores of known checkpoints -> a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmms_visual_heads.cli.printing import PrintedColumn, note, number, print_table, say, text

if TYPE_CHECKING:
    from lmms_visual_heads.prediction import BenchmarkPredictor


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
    themselves where the run had them. Per benchmark the method with the least MAE on left-out trainings is chosen, there and on
    the benchmarks together.

    The errors are those on trainings that were left out, beside the mean of the other trainings.
    At least 15 separate trainings are needed before an interval can be trusted.

    Examples:

        visual-heads fit --heads heads --scores scores.csv --out predictor.skops

        visual-heads fit --heads heads --scores scores.csv --lineages lineages.csv --items logs --out predictor.skops

        visual-heads fit --heads a.heads.parquet b.heads.parquet --scores scores.csv --lineages lineages.csv --out predictor.skops
    """
    from rich.console import Console

    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction import BenchmarkPredictor

    measurements = read_measurements(heads, checkpoints=checkpoints)
    with Console(stderr=True).status("fitting every method, with every group of trainings left out in turn"):
        predictor = BenchmarkPredictor(level=level).fit(measurements, scores, groups=lineages, items=items or None)
    predictor.save(out)
    for sentence in predictor.notes_:
        note(sentence)
    _print(predictor)
    say(f"predictor: {out}")


def _print(predictor: BenchmarkPredictor) -> None:
    from lmms_visual_heads.prediction.conformal import CERTIFIED_LINEAGES
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    chosen = predictor.describe()["chosen"]
    columns = (
        text("benchmark"),
        number("n_models", "models", "d", importance=4),
        number("n_lineages", "trainings", "d", importance=3),
        number("error", "MAE"),
        number("baseline_error", "baseline MAE"),
        PrintedColumn("", lambda row: "better" if row["error"] < row["baseline_error"] else "no better", importance=5),
        number("coverage", f"in {predictor.level:.0%} interval", ".0%", importance=2),
        PrintedColumn("method", lambda row: chosen[row["benchmark"]], importance=1),
    )
    print_table(predictor.errors_, columns, "MAE on trainings that were left out, in points of 100")
    for name in dict.fromkeys(chosen.values()):
        say(f"{name}: predicted from {METHOD_WORDS[name]}.")
    n_lineages = len(set(predictor.lineages_.values()))
    if n_lineages < CERTIFIED_LINEAGES:
        say(
            f"Fitted on {n_lineages} separate trainings: below {CERTIFIED_LINEAGES} no coverage of {predictor.level:.0%} can be "
            "certified, and the intervals are widened."
        )
