"""`visual-heads estimate`: a few labelled items and many unlabelled prompts -> a benchmark's score, without reference models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_visual_heads.cli.printing import Format, interval, note, number, print_data, print_table, say, text

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
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
) -> None:
    """Estimate benchmark scores from few labels and many prompts without, in points, with valid intervals and no predictor.

    Prediction-powered inference: the confidences of all answered prompts stand in for labels, the labelled ones say how far to
    trust them. The labelled items must be a random sample of the prompts: the first ones of a benchmark are that only where
    its order says nothing. Below 30 labels the interval is the exact one of the labels alone.

    Examples:

        visual-heads estimate --heads heads --items logs/new/20260101_120000_samples_pope.jsonl

        visual-heads estimate --heads heads --items logs --level 0.95 --format csv > estimates.csv
    """
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction.inputs import check_items, labelled_items
    from lmms_visual_heads.prediction.prediction_powered import prediction_powered_mean
    from lmms_visual_heads.tables import read_items

    measured, read = read_measurements(heads), read_items(items)
    models = sorted({model for model, _ in measured.prompts})
    if not models:
        raise VisualHeadsError(
            "Answer tables are required; none lies under --heads. Run lmms-eval --model visual_heads_llava with --tasks BENCHMARK."
        )
    checked, notes = check_items(read.frame, models, sorted({task for _, task in measured.prompts}))
    rows = []
    for model, parts in labelled_items(checked, measured).items():
        for benchmark, part in parts.items():
            if not len(part.unlabelled):
                notes.append(
                    f"{model}, {benchmark}: every answered prompt is labelled, so its score is known; left out."
                )
                continue
            answer = prediction_powered_mean(part.correct, part.confidence, part.unlabelled, level)
            numbers = (answer.mean, answer.low, answer.high, level, len(part.correct), len(part.unlabelled))
            rows.append(
                dict(
                    zip(
                        COLUMNS,
                        (model, benchmark, *numbers, answer.direct, answer.power, answer.guarantee),
                        strict=True,
                    )
                )
            )
    for sentence in dict.fromkeys([*measured.notes, *read.notes, *notes]):
        note(sentence)
    if form is Format.TABLE:
        _print(rows, level)
        return
    import pandas as pd

    print_data(pd.DataFrame(rows, columns=list(COLUMNS)), form)


def _print(rows: list[dict[str, object]], level: float) -> None:
    columns = (
        text("model", importance=1 if len({row["model"] for row in rows}) == 1 else 0),
        text("benchmark"),
        number("estimate"),
        interval(f"{level:.0%} interval"),
        number("direct", "labels alone", importance=2),
        number("labels", form="d", importance=3),
        number("unlabelled", form="d", importance=4),
    )
    print_table(rows, columns, "Scores from labels and unlabelled prompts, points of 100", whole="--format csv")
    for guarantee in dict.fromkeys(str(row["guarantee"]) for row in rows):
        say(f"The interval {guarantee}.")
