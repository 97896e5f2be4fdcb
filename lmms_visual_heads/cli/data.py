"""`visual-heads data`: bring published data into a folder that the vhead tasks read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_visual_heads.cli.printing import note, say

data_app = typer.Typer(no_args_is_help=True)


@data_app.callback()
def _data() -> None:
    """Bring published data into a folder that the vhead tasks read.

    Examples:

        visual-heads data looktwice --out looktwice --limit 256

        visual-heads data looktwice --help
    """


@data_app.command()
def looktwice(
    out: Annotated[Path, typer.Option("--out", help="Folder for questions and images; run again to go on.")],
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--questions",
            help="Question file: a path, an address, vip-llava (default, the study's) or pointqa (all splits, as published). "
            "Several times for files of one question type each.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val, test or all; default: test.")] = None,
    split_file: Annotated[
        str | None, typer.Option("--split-file", help="JSON list of the split's image ids: a path or an address.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many scenes, drawn with --seed.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws the scenes of --limit and the wrong options.")] = 0,
    answers: Annotated[
        str, typer.Option("--answers", help="short (a number) or options (a letter of four, as in the study).")
    ] = "short",
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Local folder with Visual Genome images; nothing is fetched without --image-url."
        ),
    ] = None,
    image_url: Annotated[
        str | None, typer.Option("--image-url", help="Address of an image, with the places {folder} and {image_id}.")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further attempts at a file.")] = 4,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Longest wait for a connection or the next bytes, seconds.")
    ] = 20.0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out images that could not be had, and go without them.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Bring LookTwice-QA into a folder: the questions, and only the Visual Genome images that they need, one by one.

    Stopped with Ctrl-C or cut off, the same command goes on: whole images are kept. Then VHEAD_DATA=DIR puts the data
    under the names of the vhead tasks.

    Examples:

        visual-heads data looktwice --out looktwice --limit 256

        visual-heads data looktwice --out looktwice --images visual_genome --answers options

        VHEAD_DATA=looktwice lmms-eval --model visual_heads_llava --model_args pretrained=CKPT --tasks vhead
    """
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.probe.looktwice.build import build_folder
    from lmms_visual_heads.probe.looktwice.download import Patience

    try:
        summary = build_folder(
            out,
            questions or ("vip-llava",),
            split=split,
            split_file=split_file,
            limit=limit,
            seed=seed,
            answers=answers,
            images=images,
            image_url=image_url,
            patience=Patience(retries=retries, stall_seconds=timeout, file_seconds=max(300.0, 10 * timeout)),
            allow_missing=allow_missing,
            quiet=quiet,
        )
    except KeyboardInterrupt:
        note(f"visual-heads: stopped; the whole images in {out} are kept, and the same command goes on.")
        raise typer.Exit(130) from None
    for sentence in summary.sentences():
        say(sentence)
    if not summary.complete:
        name, reason = next(iter(summary.not_fetched.items()))
        raise VisualHeadsError(
            f"{len(summary.not_fetched)} images could not be had, such as {name} ({reason}). Run the same command again to "
            "fetch them, or with --allow-missing to go without them."
        )
    say(f"Use it: VHEAD_DATA={out} lmms-eval … --tasks vhead")
