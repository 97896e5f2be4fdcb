"""`python -m lab measure`: measure the shipped checkpoints through lmms-eval, or a whole trained zoo quickly and completely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.cli.zoo import DEFAULT_WORK, Config, Only, Shard, chosen_trainings

if TYPE_CHECKING:
    from lab.zoo.settings import Training

POLL_SECONDS = 20.0


def measure(
    out: Annotated[Path, typer.Option("--out", help="Folder for what is measured.")] = Path("zoo-work/measured"),
    config: Config = None,
    work: Annotated[
        Path, typer.Option("--from", help="With --config: the folder that `lab train` wrote or is writing.")
    ] = DEFAULT_WORK,
    only: Only = None,
    shard: Shard = "1/1",
    wait: Annotated[
        bool, typer.Option("--wait", help="With --config: wait for trainings that are not finished yet.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Without --config: target of profiles, own answers, scores, lineages; default: the package's folder.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Without --config: prompts of equal length answered together.")
    ] = 32,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents per task; default: all.")] = None,
) -> None:
    """Measure checkpoints. What is measured already is passed over: to measure again, remove the --out folder.

    Without --config every shipped checkpoint: the probe and the `scenes` benchmarks through lmms-eval. With --config every finished
    training of that zoo: scores, answers, heads and causal scores on the suite and the probe, as lmms-eval would give them, in 5 to
    20 CPU-seconds a checkpoint; the joined tables stand in --out.
    """
    import torch

    # One thread: the numbers do not depend on the machine's cores, and two processes can run side by side.
    torch.set_num_threads(1)
    if config is not None:
        _measure_zoo(chosen_trainings(config, only, shard), work, out, limit, wait)
        return
    _measure_shipped(out, to, batch_size, limit)


def _measure_shipped(out: Path, to: Path | None, batch_size: int, limit: int | None) -> None:
    import shutil

    import pandas as pd

    from lab.measure.shipped import measure as measure_all
    from lmms_visual_heads.demo import measured
    from lmms_visual_heads.demo.manifest import shipped_checkpoints
    from lmms_visual_heads.features import read_profiles, write_profiles
    from lmms_visual_heads.tables import read_results, write_scores

    shipped = shipped_checkpoints()
    results = measure_all({entry["name"]: entry["path"] for entry in shipped}, out, batch_size=batch_size, limit=limit)
    target = measured.measured_folder() if to is None else to
    own = target / measured.BENCHMARK_FOLDER
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    for table in measured.benchmark_tables(out, (entry["name"] for entry in shipped)):
        shutil.copy2(table, own)
    write_profiles(read_profiles([out / "heads"]), target / measured.PROFILES_FILE)
    write_scores(read_results(results).frame, target / measured.SCORES_FILE)
    lineages = pd.DataFrame({"model": [e["name"] for e in shipped], "lineage": [e["lineage"] for e in shipped]})
    lineages.to_csv(target / measured.LINEAGES_FILE, index=False)
    typer.echo(
        f"{len(shipped)} checkpoints in {target}: {measured.PROFILES_FILE}, {measured.BENCHMARK_FOLDER}/, {measured.SCORES_FILE}, "
        f"{measured.LINEAGES_FILE}"
    )


def _measure_zoo(trainings: list[Training], work: Path, out: Path, limit: int | None, wait: bool) -> None:
    import time

    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from lab.measure.checkpoint import STAGES, is_measured, is_trained, measure_lineage
    from lab.measure.tasks import PromptReader
    from lab.tables.zoo import join_parts
    from lmms_visual_heads.errors import VisualHeadsError

    disable_progress_bar()  # a bar for every loaded checkpoint would hide ours
    names = {t.name: [t.checkpoint_name(step) for step in t.kept_steps] for t in trainings}
    reader = PromptReader()
    waiting = list(trainings)
    total = sum(not is_measured(name, out) for kept in names.values() for name in kept)
    with tqdm(total=total, desc="checkpoints", unit="checkpoint") as bar:
        while waiting:
            ready = [training for training in waiting if is_trained(work / training.name)]
            for training in ready:
                waiting.remove(training)
                left = [name for name in names[training.name] if not is_measured(name, out)]

                def tell(stage: str, name: str = training.name) -> None:
                    bar.set_postfix_str(f"{name}: {stage}")
                    if stage == STAGES[-1]:
                        bar.update(1)

                folders = [work / training.name / name for name in left]
                measure_lineage(folders, out, reader=reader, limit=limit, progress=tell)
            if not wait:
                break
            if waiting and not ready:
                bar.set_postfix_str(f"waiting for {len(waiting)} trainings")
                time.sleep(POLL_SECONDS)
    if waiting:
        typer.echo(f"Not finished yet, so not measured: {', '.join(training.name for training in waiting)}")
    if not any(is_measured(name, out) for kept in names.values() for name in kept):
        raise VisualHeadsError(
            f"Measuring a zoo needs a finished training; {work} has none of those chosen. Run `python -m lab train` first, "
            "or give its folder with --from."
        )
    joined = join_parts(out)
    for note in joined.notes:
        typer.echo(note)
    typer.echo(f"{len(joined.tables.checkpoints)} checkpoints in {out}")
