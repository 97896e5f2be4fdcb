"""`visual-heads demo`: the whole story on embedded checkpoints, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmms_visual_heads.cli.printing import PrintedColumn, Row, clean, interval, number, print_table, say, text

if TYPE_CHECKING:
    import pandas as pd

    from lmms_visual_heads.demo.story import Cast
    from lmms_visual_heads.features.measurements import Measurements
    from lmms_visual_heads.harness.evaluation import CommandRun
    from lmms_visual_heads.prediction.predictor import BenchmarkPredictor

DEMO_CHECKPOINT = "w80-d3-t16-s4000"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    documents: Annotated[int, typer.Option("--documents", min=1, max=1000, help="Documents of each benchmark.")] = 500,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="Another embedded checkpoint; a wrong name lists them.")
    ] = DEMO_CHECKPOINT,
) -> None:
    """Probe an embedded checkpoint, predict its benchmark scores without labels, then really score it, and write a report.

    The predictor is fitted on the other embedded checkpoints; every checkpoint of the probed one's own training is left out.
    The checkpoints are small models trained on drawn scenes: the demo shows how the tool works, not what it says of a 7B model.

    Examples:

        visual-heads demo --out demo

        visual-heads demo --out /tmp/demo --documents 100
    """
    from rich.console import Console

    from lmms_visual_heads.demo import story

    actors = story.cast(checkpoint)
    story.make_folders(out)
    console = Console()
    measurements = _measure(console, actors.probed, out)
    predictor = _fit(console, actors, out)
    predictions = _predict(console, predictor, measurements, out)
    results = _score(console, actors.probed, documents, out)
    _compare(console, predictions, results, out)
    _report(console, measurements, predictor, out)


def _show(console: Any, run: CommandRun) -> None:
    console.print(clean(f"$ {run.command}"), style="dim", markup=False, soft_wrap=True, highlight=False)


def _measure(console: Any, probed: dict[str, Any], out: Path) -> Measurements:
    """Heads on the probe, and what the checkpoint answered to prompts of the benchmarks."""
    from lmms_visual_heads.demo import story
    from lmms_visual_heads.demo.runs import BENCHMARK_PROMPTS
    from lmms_visual_heads.features.measurements import read_measurements

    console.rule("1. Probe: 256 drawn scenes, three questions each, heads read on the way", align="left")
    _show(console, story.run_probe(probed, out))
    console.rule(
        f"2. {BENCHMARK_PROMPTS} prompts of each benchmark, labels unused, also with heads knocked out", align="left"
    )
    _show(console, story.run_benchmark_prompts(probed, out))
    return read_measurements(out / story.HEADS)


def _fit(console: Any, actors: Cast, out: Path) -> BenchmarkPredictor:
    from lmms_visual_heads.demo import story

    console.rule("3. Fit a predictor on checkpoints with known scores", align="left")
    with console.status("fitting every method, with every group of trainings left out in turn"):
        predictor, n_trainings = story.fitted(actors.others)
    predictor.save(out / "predictor.skops")
    say(f"{len(actors.others)} checkpoints of {n_trainings} other trainings that answered the same prompts.")
    say(f"None of the probed one's training: {', '.join(actors.relatives)}.")
    return predictor


def _predict(console: Any, predictor: Any, measurements: Any, out: Path) -> pd.DataFrame:
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    console.rule("4. Predict the scores of a checkpoint that it has not seen", align="left")
    predictions = predictor.predict(measurements)
    predictions.to_csv(out / "predictions.csv", index=False, float_format="%.6f")
    columns = (
        text("benchmark"),
        number("predicted"),
        interval(f"{predictor.level:.0%} interval"),
        number("baseline"),
        text("method", importance=1),
    )
    print_table(predictions, columns, console=console)
    for name in dict.fromkeys(predictions["method"]):
        say(f"{name}: predicted from {METHOD_WORDS[name]}.")
    return predictions


def _score(console: Any, probed: dict[str, Any], documents: int, out: Path) -> Path:
    from lmms_visual_heads.demo import story

    console.rule(f"5. Really score it: {documents} documents of each benchmark", align="left")
    run = story.run_scoring(probed, documents, out)
    _show(console, run)
    return run.results


def _compare(console: Any, predictions: pd.DataFrame, results: Path, out: Path) -> None:
    from lmms_visual_heads.demo import story
    from lmms_visual_heads.prediction.flags import FLAG_WORDS
    from lmms_visual_heads.tables import read_results, write_scores

    scores = read_results([results]).frame
    write_scores(scores, out / "scores.csv")
    console.rule("6. Compare, in points (100 = everything right)", align="left")
    comparison = story.compared(predictions, scores)

    def verdict(row: Row) -> str:
        return "inside" if row["inside"] else "outside"

    columns = (
        text("benchmark"),
        number("predicted"),
        interval("interval"),
        number("baseline"),
        number("actual"),
        PrintedColumn("", verdict, importance=1),
    )
    print_table(comparison, columns, console=console)
    n = len(comparison)
    say(f"The actual score lies inside the interval on {comparison.inside.sum()} of {n} benchmarks.")
    say(f"The prediction is nearer than the baseline on {comparison.nearer.sum()} of {n}.")
    say("One checkpoint proves nothing: the report shows the error over all trainings.")
    for flag in sorted({flag for flags in predictions["flags"] for flag in flags.split(";") if flag}):
        say(f"{flag}: {FLAG_WORDS[flag]}.")


def _report(console: Any, measurements: Any, predictor: Any, out: Path) -> None:
    from lmms_visual_heads.report.page import write_report

    console.rule("7. Report", align="left")
    command = ["visual-heads", "report", "--heads", f"{out}/heads", "--scores", f"{out}/scores.csv"]
    command += ["--predictor", f"{out}/predictor.skops", "--out", f"{out}/report"]
    made = write_report(out / "report", measurements, out / "scores.csv", predictor, command=command)
    say(made.trust.sentence)
    say(f"Open {made.path}")
