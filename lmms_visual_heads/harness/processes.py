"""Several processes of one run, as `torchrun` and `accelerate launch` start them. One process is the case of one rank."""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.journal import RunJournal

POLL_SECONDS = 2.0
GRACE_SECONDS = 30.0
"""All processes of a run leave lmms-eval's last barrier together: one that is gone so much earlier has failed."""


_watching: list[int] = []


def rank() -> int:
    """This process's rank, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device(device_map: str | None = None) -> str | None:
    """The GPU of this process where several share a machine; None leaves the choice to the loader.

    Raises
    ------
    VisualHeadsError
        When every process of several would spread its model over the same GPUs.
    """
    if device_map is not None and world_size() > 1:
        raise VisualHeadsError(
            f"device_map= spreads one model over all GPUs, so it needs one process; {world_size()} were started. "
            "Start lmms-eval without torchrun and accelerate launch."
        )
    if world_size() > 1 and torch.cuda.is_available():
        return f"cuda:{local_rank()}"
    return None


def gather(value: Any) -> list[Any]:
    """Every process's `value`, in the order of the ranks."""
    if world_size() == 1 or not torch.distributed.is_initialized():
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1 and torch.distributed.is_initialized():
        torch.distributed.barrier()


def check_same_journal(journal: RunJournal) -> None:
    """Refuse a run whose processes write into different folders: what one of them measures would be missing in the tables.

    Raises
    ------
    VisualHeadsError
        In every process, after `GRACE_SECONDS`: a disk on the network shows new files late.
    """
    tokens = gather(journal.token)
    if len(tokens) < world_size():
        return  # nothing connects the processes yet; the tables are compared with what was measured at the end, too
    latest = time.monotonic() + GRACE_SECONDS
    while elsewhere := [number for number, token in enumerate(tokens) if not journal.is_that_of(number, token)]:
        if time.monotonic() > latest:
            raise VisualHeadsError(
                f"All processes of a run must write into one folder; process {elsewhere[0]} does not write into {journal.path} "
                f"as process {rank()} does. Name a heads= folder on a disk that all machines share, and give every process the "
                "same checkpoint and arguments (copies of a checkpoint must keep their files' times)."
            )
        time.sleep(0.2)


def check_same_data(data: Mapping[str, str], journal: Path) -> None:
    """Refuse a run whose processes have different data: one table would hold answers to two data sets.

    Parameters
    ----------
    data : mapping of str to str
        Task -> what tells its data from other data.
    journal : Path
        What to remove before the next try.

    Raises
    ------
    VisualHeadsError
        In every process.
    """
    everywhere = gather(dict(data))
    for number, data_there in enumerate(everywhere):
        other = sorted(task for task, facts in everywhere[0].items() if data_there.get(task) != facts)
        if other:
            raise VisualHeadsError(
                f"All processes of a run must have the same data; that of task {other[0]} in process {number} is not that of "
                f"process 0. Set VHEAD_DATA alike on every machine, remove {journal}, and run again."
            )


def watch_others(say: Callable[[str], None]) -> None:
    """End this process when another one of the run has ended early, instead of waiting for it for ever.

    lmms-eval prints an exception and lets its process end with status 0; torchrun takes that for success, and the other
    processes wait in the next collective. So every process leaves a mark when it ends, and a thread looks for the marks of
    the others. A process that is killed needs no mark: torchrun ends the others.
    """
    if world_size() == 1 or not torch.distributed.is_initialized() or _watching:
        return
    _watching.append(rank())
    store = torch.distributed.distributed_c10d._get_default_store()
    atexit.register(_leave_mark, store)
    threading.Thread(target=_watch, args=(store, say), daemon=True).start()


def _mark(of_rank: int) -> str:
    return f"visual_heads/ended/{of_rank}"


def _leave_mark(store: Any) -> None:
    try:
        store.set(_mark(rank()), "1")
    except RuntimeError:
        return  # the store's own process is gone, and with it the run


def _watch(store: Any, say: Callable[[str], None]) -> None:
    others = [number for number in range(world_size()) if number != rank()]
    while True:
        time.sleep(POLL_SECONDS)
        try:
            gone = [number for number in others if store.check([_mark(number)])]
        except RuntimeError:
            return
        if gone:
            break
    time.sleep(GRACE_SECONDS)
    say(
        f"process {gone[0]} of this run ended before the others; its reason stands above, in its own output. This process "
        f"(number {rank()}) ends too; what was measured is kept, and the same command goes on from there."
    )
    _thread.interrupt_main()  # where Python runs, what is not yet on disk is written
    time.sleep(GRACE_SECONDS)
    os._exit(1)
