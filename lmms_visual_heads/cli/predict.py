"""`visual-heads predict`: what was measured of a checkpoint -> predicted scores, each with its interval, baseline and method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmms_visual_heads.cli.printing import (
    Format,
    PrintedColumn,
    Row,
    interval,
    note,
    number,
    print_data,
    print_sections,
    say,
    text,
)

if TYPE_CHECKING:
    import pandas as pd


def predict(
    predictor: Annotated[Path, typer.Argument(help="A predictor (see: visual-heads fit).")],
    heads: Annotated[
        list[Path], typer.Option("--heads", help="Head tables or folders of them; several may follow one another.")
    ],
    known: Annotated[
        Path | None, typer.Option("--known", help="Score table of scores that are measured already.")
    ] = None,
    items: Annotated[
        list[Path] | None,
        typer.Option(
            "--items", help="Samples files of lmms-eval: labelled items of the benchmarks, blended with the prediction."
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="CSV with model and what is known of its training.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Predict for models that the predictor is not compatible with, too; every such row is flagged.",
        ),
    ] = False,
) -> None:
    """Predict benchmark scores from heads and all else that is known, in points (100 = the benchmark's best possible score).

    Every row has its interval, its baseline (the mean of the trainings that the predictor was fitted on; with labelled items
    those items scored directly, drawn to that mean) and the method behind it. Answer and causal tables beside the head tables
    are used: an unlabelled run over 32 prompts of a benchmark (--tasks BENCHMARK --limit 32) usually says more than the probe, most
    of all where the fitted checkpoints answered the same prompts.

    Examples:

        visual-heads predict predictor.skops --heads heads/new.heads.parquet

        visual-heads predict predictor.skops --heads heads --items logs/new/20260101_120000_samples_pope.jsonl

        visual-heads predict predictor.skops --heads heads --known scores.csv --format csv > predictions.csv
    """
    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction import BenchmarkPredictor
    from lmms_visual_heads.tables import read_items

    fitted = BenchmarkPredictor.load(predictor)
    measurements = read_measurements(heads, checkpoints=checkpoints)
    labelled = None if not items else read_items(items)
    frame = None if labelled is None else labelled.frame
    predictions = fitted.predict(measurements, known_scores=known, items=frame, force=force)
    notes = [*measurements.notes, *(() if labelled is None else labelled.notes)]
    for sentence in dict.fromkeys([*notes, *(() if frame is None else item_sentences(predictions, frame))]):
        note(sentence)
    if form is Format.TABLE:
        _print(fitted, predictions.to_dict("records"))
    else:
        print_data(predictions, form)


def item_sentences(predictions: pd.DataFrame, items: pd.DataFrame) -> list[str]:
    """How many labelled items each prediction has, and the noise that their number alone implies."""
    from lmms_visual_heads.prediction.labelled_items import item_noise

    sentences = []
    by_cell = {(row["model"], row["benchmark"]): row for row in predictions.to_dict("records")}
    for (model, benchmark), part in items.groupby(["model", "benchmark"], sort=True):
        if (model, benchmark) in by_cell:
            row = by_cell[model, benchmark]
            direct, level = 100 * float(part["correct"].mean()), float(row["level"])
            noise = item_noise(float(row["predicted"]), len(part), level)
            sentences.append(
                f"{model}, {benchmark}: {len(part)} labelled items, {direct:.1f} % right; their number alone leaves ±{noise:.1f} "
                f"points ({level:.0%} of draws)."
            )
    return sentences


def _print(fitted: Any, rows: list[dict[Any, Any]]) -> None:
    from lmms_visual_heads.prediction import FLAG_WORDS
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    all_flags = [row["flags"].split(";") for row in rows]
    common = [flag for flag in FLAG_WORDS if all(flag in flags for flags in all_flags)]

    def flags_of(row: Row) -> str:
        return ", ".join(flag for flag in row["flags"].split(";") if flag not in common)

    columns = [
        text("benchmark"),
        number("predicted"),
        interval(f"{fitted.level:.0%} interval"),
        number("baseline"),
        text("method", importance=2),
    ]
    if any(flags_of(row) for row in rows):
        columns.append(PrintedColumn("flags", flags_of, 1, wraps=True))
    models = dict.fromkeys(row["model"] for row in rows)
    sections = {f"{model}, points of 100": [row for row in rows if row["model"] == model] for model in models}
    print_sections(sections, columns, whole="--format csv")
    described = fitted.describe()
    say(
        f"Fitted on {described['n_models']} checkpoints of {described['n_lineages']} trainings, query {described['query']}, "
        f"probe {', '.join(described['probe'])}."
    )
    say("Baseline: the mean of those trainings.")
    for name in dict.fromkeys(row["method"].partition("+")[0] for row in rows):
        if name in METHOD_WORDS:
            say(f"{name}: predicted from {METHOD_WORDS[name]}.")
    for flag in dict.fromkeys(flag for flags in all_flags for flag in flags if flag):
        where = "every row, " if flag in common and len(rows) > 1 else ""
        say(f"{where}{flag}: {FLAG_WORDS[flag]}.")
