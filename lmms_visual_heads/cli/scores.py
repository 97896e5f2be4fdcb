"""`visual-heads scores`: results files of lmms-eval and lm-eval -> one score table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_visual_heads.cli.printing import note, say


def scores(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Results files (*_results.json), folders, which are searched recursively, or wide CSV files: one row per "
            "model, one column of percent per benchmark."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the score table goes (CSV).")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", help="TASK=METRIC or TASK=METRIC:SCALE, for a task whose primary metric is not declared."
        ),
    ] = None,
) -> None:
    """Collect benchmark scores out of results files of lmms-eval and lm-eval.

    One primary metric per task; of two results of a model the one over more items stays; groups are not benchmarks.

    Examples:

        visual-heads scores logs --out scores.csv

        visual-heads scores lvlm_scores_108x149.csv --out prior.csv

        visual-heads scores a_results.json b_results.json --metric mybench=accuracy:1 --out scores.csv
    """
    from lmms_visual_heads.tables import read_results, write_scores

    table, notes = read_results(results, metric or ())
    write_scores(table, out)
    for sentence in notes:
        note(sentence)
    say(f"{len(table)} scores ({table['model'].nunique()} models, {table['benchmark'].nunique()} benchmarks): {out}")
