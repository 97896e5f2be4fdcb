"""`visual-heads convert`: an original llava checkpoint becomes a Hugging Face one, proven before it appears."""

from __future__ import annotations

from typing import Annotated

import typer

from lmms_visual_heads.cli.printing import note, say


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or hub id of an original llava checkpoint.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="New folder for the Hugging Face format.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    conversation: Annotated[
        str | None, typer.Option(help="Conversation template, under the original's name; default: from the checkpoint.")
    ] = None,
) -> None:
    """Write SRC in Hugging Face format to DST, one weight file at a time; reload it and prove equal logits.

    Examples:

        visual-heads convert liuhaotian/llava-v1.5-7b ./llava-1.5-7b-hf

        visual-heads convert ./my-checkpoint ./my-checkpoint-hf --conversation vicuna_v1
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from lmms_visual_heads.checkpoints.convert import convert_checkpoint

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("reading", total=None)

            def report(step: str, done: int, total: int) -> None:
                bar.update(task, description=step, completed=done, total=total)

            done = convert_checkpoint(
                source, destination, revision=revision, conversation=conversation, progress=report
            )
    except KeyboardInterrupt:
        note("visual-heads: stopped; nothing was left at the destination.")
        raise typer.Exit(130) from None
    say(
        f"{done.destination}: {done.shards} weight files, {done.bytes / 1e9:.2f} GB, conversation "
        f"{done.description['conversation']}; logits equal the original's to {done.largest_difference:.1e}."
    )
