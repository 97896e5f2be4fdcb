"""`python -m lab train | ship | status`: train the small checkpoints, put those that ship into the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lab.zoo.settings import Training

Config = Annotated[
    str | None,
    typer.Option(
        "--config", help="Settings file, or `proof`: the zoo that predictions are judged on. Default: the shipped zoo."
    ),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Name of a training, wildcards allowed; give it again for several.")
]
Shard = Annotated[
    str, typer.Option("--shard", help="i/n: every n-th training from the i-th on, for n processes side by side.")
]
DEFAULT_WORK = Path("zoo-work")


def chosen_trainings(config: str | None, only: list[str] | None, shard: str = "1/1") -> list[Training]:
    """The trainings of a settings file, or those of them that were asked for."""
    from fnmatch import fnmatchcase

    from lab.zoo.settings import proof_settings_path, read_settings
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.harness.sweep import share

    path = proof_settings_path() if config == "proof" else None if config is None else Path(config)
    trainings = read_settings(path)
    names = [training.name for training in trainings]
    for name in only or ():
        if not any(fnmatchcase(known, name) for known in names):
            raise VisualHeadsError(f"--only needs one of {', '.join(names)}; {name!r} came. Choose one of them.")
    chosen = [t for t in trainings if not only or any(fnmatchcase(t.name, name) for name in only)]
    own = share([training.name for training in chosen], shard)
    return [training for training in chosen if training.name in own]


def train(
    config: Config = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the trainings.")] = DEFAULT_WORK,
    only: Only = None,
    shard: Shard = "1/1",
    device: Annotated[
        str,
        typer.Option("--device", help="Where they learn, cpu or cuda; rounding, so every digit, is the device's own."),
    ] = "cpu",
) -> None:
    """Train small checkpoints, one training after the other. A finished training is passed over, a stopped one goes on.

    A training keeps one core busy, on a GPU, too: give every core a process of its own with --shard.
    """
    trainings = chosen_trainings(config, only, shard)

    import torch
    from tqdm import tqdm

    from lab.zoo.training import run_training
    from lmms_visual_heads.checkpoints.settings import choose_device

    where = str(choose_device(device))
    # One thread: results do not depend on the machine's cores, and two trainings can run side by side.
    torch.set_num_threads(1)
    for training in trainings:
        bars: dict[str, tqdm] = {}

        def show(stage: str, done: int, total: int, loss: float, name: str = training.name, bars: dict = bars) -> None:
            if stage not in bars:
                bars[stage] = tqdm(total=total, initial=done - 1, desc=f"{name}: {stage}", unit="step")
            bars[stage].update(1)
            if done % 50 == 0 or done == total:
                bars[stage].set_postfix(loss=f"{loss:.3f}")
            if done == total:
                bars[stage].close()

        folder = run_training(training, out, show, device=where)
        typer.echo(f"{training.name}: {len(training.kept_steps)} checkpoints in {folder}")


def ship(
    work: Annotated[Path, typer.Option("--from", help="Folder that `lab train` wrote.")] = DEFAULT_WORK,
    config: Config = None,
    to: Annotated[Path | None, typer.Option("--to", help="Target; default: the package's own folder.")] = None,
) -> None:
    """Copy the checkpoints that the settings ship into the package, with a manifest."""
    from lab.zoo.shipping import ship as copy
    from lmms_visual_heads.demo.manifest import checkpoints_folder

    folder = checkpoints_folder() if to is None else to
    entries = copy(chosen_trainings(config, None), work, folder)
    typer.echo(f"{len(entries)} checkpoints of {len({entry['lineage'] for entry in entries})} trainings in {folder}")


def status(
    config: Config = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the trainings.")] = DEFAULT_WORK,
) -> None:
    """Print every checkpoint that the settings keep: its size, whether it was trained or comes with the package, its loss."""
    from rich.console import Console
    from rich.table import Table

    from lmms_visual_heads.demo.manifest import MANIFEST_FILE, checkpoints_folder, shipped_checkpoints

    in_package = shipped_checkpoints() if (checkpoints_folder() / MANIFEST_FILE).exists() else []
    shipped = {entry["name"]: entry for entry in in_package}
    table = Table("checkpoint", "layers", "heads", "width", "tokens", "state", "loss")
    for column in table.columns:
        column.no_wrap = True
    for training in chosen_trainings(config, None):
        for step in training.kept_steps:
            name = training.checkpoint_name(step)
            trained = (out / training.name / name).exists()
            entry = shipped.get(name)
            table.add_row(
                name,
                str(training.layers),
                str(training.heads),
                str(training.hidden),
                str(training.n_visual_tokens),
                "shipped" if entry else "trained" if trained else "-",
                f"{entry['training_loss']:.3f}" if entry else "",
            )
    Console().print(table)
