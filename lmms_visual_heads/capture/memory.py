"""Running out of memory, told apart from every other failure of a forward pass."""

from __future__ import annotations

import torch

_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "Triton Error [CUDA]: out of memory",
)


def out_of_memory(error: Exception) -> bool:
    """Whether a failed pass would fit with fewer documents: memory of the device, of cuBLAS's workspace, or of the machine."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
    )
