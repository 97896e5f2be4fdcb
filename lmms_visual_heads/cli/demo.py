"""`visual-heads demo`: the whole story on embedded checkpoints, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    documents: Annotated[int, typer.Option("--documents", min=1, max=1000, help="Documents of each benchmark.")] = 500,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Name of another embedded checkpoint (see: visual-heads zoo status)."),
    ] = None,
) -> None:
    """Probe an embedded checkpoint, predict its benchmark scores, then really score it, and write a report.

    The predictor is fitted on the other embedded checkpoints; all checkpoints of the probed one's training are left out.
    The checkpoints are small models trained on drawn scenes: the demo shows how the tool works, not what it says of a 7B model.

    Examples:

        visual-heads demo --out demo

        visual-heads demo --out /tmp/demo --documents 100
    """
    from lmms_visual_heads.harness.demo import run_demo

    run_demo(out, n_documents=documents, checkpoint=checkpoint)
