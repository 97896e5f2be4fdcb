"""`visual-heads zoo measure`: probe and score the shipped checkpoints, and put the tables into the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def measure(
    out: Annotated[Path, typer.Option("--out", help="Folder for head tables and results.")] = Path("zoo-work/measured"),
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Target of profiles, scores, lineages; default: the package's own folder."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Prompts of equal length answered together.")
    ] = 32,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents per task; default: all.")] = None,
) -> None:
    """Measure every shipped checkpoint: the probe and the `scenes` benchmarks through lmms-eval.

    What is measured already is passed over: to measure again, remove the --out folder.

    Examples:

        visual-heads zoo measure

        visual-heads zoo measure --limit 50 --out /tmp/measured --to /tmp/tables
    """
    import pandas as pd
    import torch

    from lmms_visual_heads.features import read_profiles, write_profiles
    from lmms_visual_heads.harness.zoo import measure as measure_all
    from lmms_visual_heads.scenes.zoo.manifest import shipped_checkpoints
    from lmms_visual_heads.scenes.zoo.measured import LINEAGES_FILE, PROFILES_FILE, SCORES_FILE, measured_folder
    from lmms_visual_heads.tables import read_results, write_scores

    # One thread: the numbers do not depend on the machine's cores.
    torch.set_num_threads(1)
    shipped = shipped_checkpoints()
    results = measure_all({entry["name"]: entry["path"] for entry in shipped}, out, batch_size=batch_size, limit=limit)
    target = measured_folder() if to is None else to
    target.mkdir(parents=True, exist_ok=True)
    write_profiles(read_profiles([out / "heads"]), target / PROFILES_FILE)
    write_scores(read_results(results).frame, target / SCORES_FILE)
    lineages = pd.DataFrame({"model": [e["name"] for e in shipped], "lineage": [e["lineage"] for e in shipped]})
    lineages.to_csv(target / LINEAGES_FILE, index=False)
    typer.echo(
        f"{len(shipped)} checkpoints: {target / PROFILES_FILE}, {target / SCORES_FILE}, {target / LINEAGES_FILE}"
    )
