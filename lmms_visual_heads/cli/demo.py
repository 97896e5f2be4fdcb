"""`visual-heads demo`: the whole story on embedded checkpoints, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

_COMPARED = ("predicted", "interval", "baseline", "actual", "")
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

    from lmms_visual_heads.demo.manifest import shipped_checkpoints
    from lmms_visual_heads.errors import VisualHeadsError

    shipped = {entry["name"]: entry for entry in shipped_checkpoints()}
    if checkpoint not in shipped:
        raise VisualHeadsError(f"--checkpoint must be one of {', '.join(shipped)}; {checkpoint!r} came.")
    _make_folders(out)
    console = Console()
    probed = shipped[checkpoint]
    relatives = [name for name, entry in shipped.items() if entry["lineage"] == probed["lineage"]]

    measurements = _measure(console, probed, out)
    predictor = _fit(console, shipped, relatives, out)
    predictions = _predict(console, predictor, measurements, out)
    results = _score(console, probed, documents, out)
    _compare(console, predictions, results, out)
    _report(console, measurements, predictor, out)


def _make_folders(out: Path) -> None:
    from lmms_visual_heads.errors import VisualHeadsError

    try:
        for name in ("heads", "scoring", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)
            for old in (out / name).glob("*.parquet*"):
                old.unlink()
    except OSError as error:
        raise VisualHeadsError(
            f"--out must name a folder that can be written; {str(out)!r} cannot ({error.strerror})."
        ) from None


def _run(
    console: Any, probed: dict[str, Any], task: str, out: Path, tables: str, limit: int | None = None, **model_args: str
) -> Path:
    """Run lmms-eval on one task as typed, its tables in `out / tables`, say how, and return its results file."""
    from lmms_visual_heads.harness.evaluation import run_command

    run = run_command(
        probed["path"],
        [task],
        output=out / "logs",
        heads=out / tables,
        batch_size=32,
        limit=limit,
        model_name=probed["name"],
        **model_args,
    )
    console.print(f"[dim]$ {run.command}[/dim]", soft_wrap=True, highlight=False)
    return run.results


def _measure(console: Any, probed: dict[str, Any], out: Path) -> Any:
    """Heads on the probe, and what the checkpoint answered to prompts of the benchmarks."""
    from lmms_visual_heads.demo.runs import BENCHMARKS, OWN_ARGUMENTS, OWN_PROMPTS, PROBE
    from lmms_visual_heads.features.measurements import read_measurements

    console.rule("1. Probe: 256 drawn scenes, three questions each, heads read on the way", align="left")
    _run(console, probed, PROBE, out, "heads")
    console.rule(f"2. {OWN_PROMPTS} prompts of each benchmark, labels unused, also with heads cut", align="left")
    _run(console, probed, BENCHMARKS, out, "heads", OWN_PROMPTS, **OWN_ARGUMENTS)
    return read_measurements(out / "heads")


def _fit(console: Any, shipped: dict[str, Any], relatives: list[str], out: Path) -> Any:
    from lmms_visual_heads.demo.measured import LINEAGES_FILE, SCORES_FILE, measured_folder
    from lmms_visual_heads.features.measurements import read_measurements
    from lmms_visual_heads.prediction.predictor import BenchmarkPredictor
    from lmms_visual_heads.tables import read_lineages, read_scores

    folder = measured_folder()
    others = [name for name in shipped if name not in relatives]
    scores = read_scores(folder / SCORES_FILE)
    scores = scores[scores.model.isin(others)]
    lineages = {name: lineage for name, lineage in read_lineages(folder / LINEAGES_FILE).items() if name in others}
    console.rule("3. Fit a predictor on checkpoints with known scores", align="left")
    with console.status("fitting every method, with every group of trainings left out in turn"):
        predictor = BenchmarkPredictor().fit(read_measurements(folder).only(others), scores, groups=lineages)
    predictor.save(out / "predictor.skops")
    console.print(
        f"{len(others)} checkpoints of {len(set(lineages.values()))} other trainings that answered the same prompts; none of "
        f"the probed one's training: {', '.join(relatives)}",
        highlight=False,
    )
    return predictor


def _predict(console: Any, predictor: Any, measurements: Any, out: Path) -> pd.DataFrame:
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    console.rule("4. Predict the scores of a checkpoint that it has not seen", align="left")
    predictions = predictor.predict(measurements)
    predictions.to_csv(out / "predictions.csv", index=False, float_format="%.6f")
    for row in predictions.to_dict("records"):
        interval = rf"\[{row['low']:.1f}, {row['high']:.1f}]"
        console.print(
            f"{row['benchmark']:22s} {row['predicted']:5.1f} {interval:16s} baseline {row['baseline']:.1f}  {row['method']}",
            highlight=False,
        )
    for name in dict.fromkeys(predictions["method"]):
        console.print(f"{name}: predicted from {METHOD_WORDS[name]}.", highlight=False)
    return predictions


def _score(console: Any, probed: dict[str, Any], documents: int, out: Path) -> Path:
    from lmms_visual_heads.demo.runs import BENCHMARKS

    console.rule(f"5. Really score it: {documents} documents of each benchmark", align="left")
    return _run(console, probed, BENCHMARKS, out, "scoring", documents)


def _compare(console: Any, predictions: pd.DataFrame, results: Path, out: Path) -> None:
    from rich import box
    from rich.table import Column, Table

    from lmms_visual_heads.prediction.flags import FLAG_WORDS
    from lmms_visual_heads.tables import read_results, write_scores

    scores = read_results([results]).frame
    write_scores(scores, out / "scores.csv")
    points = 100 * scores.score / scores.scale
    actual: dict[str, float] = dict(zip(scores.benchmark, points, strict=True))
    console.rule("6. Compare, in points (100 = everything right)", align="left")
    table = Table("benchmark", *(Column(name, justify="right", no_wrap=True) for name in _COMPARED), box=box.SIMPLE)
    inside = nearer = 0
    for row in predictions.to_dict("records"):
        truth = actual[row["benchmark"]]
        within = row["low"] <= truth <= row["high"]
        inside += within
        nearer += abs(row["predicted"] - truth) < abs(row["baseline"] - truth)
        table.add_row(
            row["benchmark"],
            f"{row['predicted']:.1f}",
            rf"\[{row['low']:.1f}, {row['high']:.1f}]",
            f"{row['baseline']:.1f}",
            f"{truth:.1f}",
            "inside" if within else "outside",
        )
    console.print(table)
    n = len(predictions)
    console.print(
        f"The actual score lies inside the interval on {inside} of {n} benchmarks; the prediction is nearer than the "
        f"baseline on {nearer} of {n}. One checkpoint proves nothing: the report shows the error over all trainings.",
        highlight=False,
    )
    for flag in sorted({flag for flags in predictions["flags"] for flag in flags.split(";") if flag}):
        console.print(f"[yellow]{flag}[/yellow]: {FLAG_WORDS[flag]}", highlight=False)


def _report(console: Any, measurements: Any, predictor: Any, out: Path) -> None:
    from lmms_visual_heads.report.page import write_report

    console.rule("7. Report", align="left")
    command = ["visual-heads", "report", "--heads", f"{out}/heads", "--scores", f"{out}/scores.csv"]
    command += ["--predictor", f"{out}/predictor.skops", "--out", f"{out}/report"]
    made = write_report(out / "report", measurements, out / "scores.csv", predictor, command=command)
    console.print(made.trust.sentence, highlight=False)
    console.print(f"Open [bold]{made.path}[/bold]", soft_wrap=True, highlight=False)
