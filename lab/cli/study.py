"""`python -m lab study`: judge the predictor and its baselines on trainings that were left out, and write the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def study(
    zoo: Annotated[list[Path], typer.Argument(help="Folders with the tables of measured zoos, studied as one.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for page, tables and picture.")],
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            "--held-out", help="Tables of further trainings, named by their folder; give it again for several."
        ),
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Groups of trainings that are left out in turn.")] = 4,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Random draws of the labelled items.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the groups of trainings.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Fits side by side, each in its own process.")] = 1,
    work: Annotated[
        Path, typer.Option("--work", help="Folder of finished fits; the same command goes on where it was stopped.")
    ] = Path("zoo-work/judged"),
) -> None:
    """Judge the product, each of its methods and the baselines: MAE, coverage and paired differences, training by training."""
    from tqdm import tqdm

    from lab.study.run import write_study
    from lmms_visual_heads.errors import VisualHeadsError

    further = {path.resolve().name: path for path in held_out or ()}
    if len(further) < len(held_out or ()):
        raise VisualHeadsError("Held-out sets are named by their folders; two have the same name. Rename one folder.")
    bar = tqdm(unit="fit", desc="judged")

    def show(done: int, of: int) -> None:
        bar.total, bar.n = of, done
        bar.refresh()

    told = [*(path.as_posix() for path in zoo), *(f"--held-out {path.as_posix()}" for path in held_out or ())]
    told += [
        f"--{name} {value}"
        for name, value, usual in (("folds", folds, 4), ("draws", draws, 1), ("seed", seed, 0))
        if value != usual
    ]
    page = write_study(
        zoo, out, further, folds=folds, draws=draws, seed=seed, work=work, jobs=jobs, progress=show,
        command=" ".join(["python -m lab study", *told, f"--out {out.as_posix()}"]),
    )  # fmt: skip
    bar.close()
    print(page, file=sys.stdout)
