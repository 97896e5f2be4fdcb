"""`visual-heads report`: one page about measured heads, predicted and actual scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_visual_heads.cli.printing import note, say


def report(
    heads: Annotated[list[Path], typer.Option("--heads", help="Head tables or folders of them; several in a row.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for index.html and data/*.csv.")],
    scores: Annotated[Path | None, typer.Option("--scores", help="Score table (visual-heads scores).")] = None,
    predictor: Annotated[Path | None, typer.Option("--predictor", help="Saved predictor (visual-heads fit).")] = None,
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0.0, max=1.0, help="A head whose mean S exceeds this is called a visual head."),
    ] = 0.1,
    force: Annotated[
        bool, typer.Option("--force", help="Predict models that the predictor does not vouch for, too; flagged.")
    ] = False,
) -> None:
    """Write one self-contained page: predictions with intervals and baselines, how far to trust them, and what the heads do.

    Without --predictor the page shows the heads only. Models that the predictor was fitted on are shown as it predicted them
    with their own training left out. Every picture's numbers lie beside the page as CSV files.

    Examples:

        visual-heads report --heads heads/ --out report

        visual-heads report --heads heads/ --scores scores.csv --predictor predictor.skops --out report
    """
    from lmms_visual_heads.report.page import writable_folder, write_report

    writable_folder(out)

    from lmms_visual_heads.features.measurements import read_measurements

    measurements = read_measurements(heads)
    fitted = None
    command = ["visual-heads", "report", "--heads", *map(str, heads)]
    if scores is not None:
        command += ["--scores", str(scores)]
    if predictor is not None:
        from lmms_visual_heads.prediction.predictor import BenchmarkPredictor

        fitted = BenchmarkPredictor.load(predictor)
        command += ["--predictor", str(predictor)]
    if threshold != 0.1:
        command += ["--threshold", f"{threshold:g}"]
    command += ["--force"] if force else []
    command += ["--out", str(out)]
    made = write_report(out, measurements, scores, fitted, threshold=threshold, command=command, force=force)
    for sentence in (*measurements.notes, *made.notes):
        note(sentence)
    say(made.path)
    say(made.headline)
    say(made.trust.sentence)
    models = "1 model" if made.n_models == 1 else f"{made.n_models} models"
    say(
        f"{models}, {made.path.stat().st_size / 1e6:.1f} MB; the numbers behind the pictures: {made.path.parent / 'data'}"
    )
