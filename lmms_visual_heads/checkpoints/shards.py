"""Writing a safetensors file tensor by tensor, so that it never stands in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lmms_visual_heads.errors import VisualHeadsError

_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


def write_shard(path: Path, names: Sequence[str], tensor: Callable[[str], Tensor]) -> int:
    """Write the tensors `names` to `path` and return their bytes.

    Parameters
    ----------
    path : Path
    names : sequence of str
    tensor : callable
        Gives the tensor of a name; called once for its size and once for its values.

    Raises
    ------
    VisualHeadsError
        For tensors that are not floating point (quantised checkpoints).
    """
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        one = tensor(name)
        if one.dtype not in _NAMES:
            raise VisualHeadsError(
                f"Weights must be floating point to be converted; {name} is {one.dtype}. Convert the unquantised checkpoint."
            )
        size = one.numel() * one.element_size()
        header[name] = {"dtype": _NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [offset, offset + size]}
        offset += size
        del one
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            one = tensor(name).contiguous()
            if one.numel():
                one.reshape(-1).view(torch.uint8).numpy().tofile(file)
            del one
    return offset
