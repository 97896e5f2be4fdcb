"""`visual-heads sweep`: the probe and other tasks for many checkpoints, one lmms-eval each, on one machine or many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    checkpoints: Annotated[list[str], typer.Argument(help="Folders or hub ids.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks of lmms-eval, joined by commas.")] = "vhead",
    heads: Annotated[
        Path, typer.Option("--heads", help="Folder for the tables; one folder per checkpoint in it.")
    ] = Path("heads"),
    output_path: Annotated[
        Path,
        typer.Option("--output_path", "--out", help="Folder for results and logs; one folder per checkpoint in it."),
    ] = Path("logs"),
    batch_size: Annotated[str, typer.Option("--batch_size", "--batch-size", help="As for lmms-eval.")] = "auto",
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/n: only every n-th checkpoint, from the i-th on (i from 1).")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents per task; default: all.")] = None,
    model: Annotated[
        str, typer.Option("--model", help="visual_heads_llava or visual_heads_hf.")
    ] = "visual_heads_llava",
    model_args: Annotated[
        str, typer.Option("--model_args", "--model-args", help="Further arguments of the model, joined by commas.")
    ] = "",
    output_format: Annotated[str, typer.Option("--format", help="table, csv or json (a list).")] = "table",
) -> None:
    """Measure many checkpoints, one lmms-eval command each.

    What is done is passed over, so the same command goes on after an interruption. A checkpoint that fails does not stop the
    others; it is named at the end, and the exit status is 1. Machines that share a disk each take a --shard; the table at
    the end shows what all of them have done, and lies in OUTPUT_PATH/sweep.csv.

    Examples:

        visual-heads sweep checkpoints/step-* --tasks vhead,pope --batch_size 8

        visual-heads sweep $(cat checkpoints.txt) --tasks vhead --shard 1/4

        sbatch --array=1-8 --gres=gpu:1 --wrap 'visual-heads sweep checkpoints/* --shard $SLURM_ARRAY_TASK_ID/8'
    """
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.harness import sweep as sweeping

    if output_format not in ("table", "csv", "json"):
        raise VisualHeadsError(f"--format must be table, csv or json; got {output_format!r}. Choose one of them.")
    every = sweeping.named(checkpoints)
    mine = sweeping.share(list(every), shard)
    asked = sweeping.Sweep(tasks, heads, output_path, batch_size, model, model_args, limit)
    failed: list[str] = []
    position = 0
    for name, state, message in sweeping.run(asked, {name: every[name] for name in mine}):
        position += state in ("running", "passed over")
        typer.secho(f"[{position}/{len(mine)}] {name}: {state} ({message})", err=True)
        if state == "failed":
            failed.append(f"{name}: {message}")
    frame = sweeping.table(asked, every)
    path = sweeping.write_table(asked, frame)
    if output_format == "json":
        typer.echo(frame.to_json(orient="records", indent=1))
    elif output_format == "csv":
        typer.echo(frame.to_csv(index=False), nl=False)
    else:
        from rich.console import Console
        from rich.table import Table

        shown = Table(*[str(name) for name in frame if name not in ("checkpoint", "heads")])
        for row in frame.drop(columns=["checkpoint", "heads"]).itertuples(index=False):
            shown.add_row(*["-" if cell != cell or cell is None else str(cell) for cell in row])
        Console().print(shown)
        typer.echo(f"{(frame['state'] == 'done').sum()} of {len(frame)} checkpoints are done: {path}")
    if failed:
        raise VisualHeadsError(f"{len(failed)} of {len(mine)} checkpoints failed. " + "; ".join(failed))
