"""Several processes of one run, as `torchrun` and `accelerate launch` start them. One process is the case of one rank."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed


def rank() -> int:
    """This process's rank, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device() -> str | None:
    """The GPU of this process where several share a machine; None leaves the choice to the loader."""
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
