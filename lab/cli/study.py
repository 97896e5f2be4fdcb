"""`python -m lab study`: from the tables of a measured zoo to the report on what predicts scores, and the lock-box."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def study(
    zoo: Annotated[
        list[Path] | None, typer.Argument(help="Folders with the tables of measured zoos, judged as one.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for page, tables and pictures.")] = Path(
        "reports/prediction/zoo"
    ),
    lockbox: Annotated[
        Path | None,
        typer.Option("--lockbox", help="Tables of further lineages; predicted once, with the committed list."),
    ] = None,
    frozen: Annotated[Path, typer.Option("--frozen", help="The committed list of features and methods.")] = Path(
        "reports/prediction/lockbox/features.json"
    ),
    freeze: Annotated[
        bool,
        typer.Option("--freeze", help="Write that list, to be committed before the lock-box is trained, and stop."),
    ] = False,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Groups of lineages that are left out in turn.")] = 8,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Random draws of the labelled items.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of folds and draws.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Folds judged at once, each in its own process.")] = 1,
) -> None:
    """Judge every way of predicting scores on lineages that were left out, and write the report.

    Examples:

        python -m lab study zoo-work/measured --out reports/prediction/zoo

        python -m lab study --freeze

        python -m lab study tables/development tables/longer --folds 4 --draws 1 --jobs 2

        python -m lab study zoo-work/measured --lockbox zoo-work/lockbox --out reports/prediction/lockbox
    """
    from tqdm import tqdm

    from lab.study.cross_validation import Protocol
    from lab.study.run import freeze as write_list
    from lab.study.run import write_study
    from lmms_visual_heads.errors import VisualHeadsError

    if freeze:
        typer.echo(f"{write_list(frozen)}: commit it before the lock-box is trained")
        return
    if not zoo:
        raise VisualHeadsError(
            "A study needs the folder of a measured zoo; none came. Measure one: python -m lab measure."
        )
    bar = tqdm(unit="fold", leave=False, delay=0.5)

    def show(what: str, done: int, of: int) -> None:
        bar.total, bar.n = of, done
        bar.set_description(what)
        bar.refresh()

    done = write_study(zoo, out, lockbox, frozen, Protocol(n_folds=folds, draws=draws, seed=seed), show, jobs)
    bar.close()
    for sentence in done.sentences[:8]:
        typer.echo(f"- {sentence}")
    typer.echo(f"{done.folder / 'README.md'}")
