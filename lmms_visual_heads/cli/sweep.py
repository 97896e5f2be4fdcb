"""`visual-heads sweep`: the probe and other tasks for many checkpoints, one lmms-eval each, on one machine or many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_visual_heads.cli.printing import Format, number, print_data, print_table, say, text


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
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
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

    every = sweeping.named(checkpoints)
    mine = sweeping.share(list(every), shard)
    asked = sweeping.Sweep(tasks, heads, output_path, batch_size, model, model_args, limit)
    failed: list[str] = []
    position = 0
    for name, state, message in sweeping.run(asked, {name: every[name] for name in mine}):
        position += state in ("running", "passed over")
        say(f"[{position}/{len(mine)}] {name}: {state} ({message})", error=True)
        if state == "failed":
            failed.append(f"{name}: {message}")
    frame = sweeping.table(asked, every)
    path = sweeping.write_table(asked, frame)
    if form is Format.TABLE:
        benchmarks = [name for name in frame if name not in ("model", "checkpoint", "state", "seconds", "heads")]
        columns = [text("model"), text("state"), number("seconds", form=".0f", importance=len(benchmarks) + 1)]
        scores = [number(str(name), form=".4g", importance=place) for place, name in enumerate(benchmarks, start=1)]
        print_table(frame, [*columns, *scores], whole="--format csv")
        say(f"{(frame['state'] == 'done').sum()} of {len(frame)} checkpoints are done: {path}")
    else:
        print_data(frame, form)
    if failed:
        raise VisualHeadsError(f"{len(failed)} of {len(mine)} checkpoints failed. " + "; ".join(failed))
