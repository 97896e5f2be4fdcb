"""How a checkpoint is to be loaded: device, dtype, and what else `load_model` takes. Checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmms_visual_heads.checkpoints.original_config import IMAGE_ASPECTS
from lmms_visual_heads.errors import VisualHeadsError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(device_map: str | dict[str, Any] | None, device: str | torch.device | None) -> None:
    """Refuse an unknown device map, and one beside a device."""
    if device_map is None:
        return
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise VisualHeadsError(
            f"device_map must be one of {', '.join(DEVICE_MAPS)}; {device_map!r} came. Write device_map=auto."
        )
    if device is not None:
        raise VisualHeadsError(
            f"device_map= chooses the devices itself; device={device} came beside it. Leave one of them out."
        )


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None: a GPU where torch sees one. A name that is none, or a GPU that is not there, is refused."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise VisualHeadsError(
            f"device must be a torch device such as cpu, cuda or cuda:1; got {device!r}. Choose one of these."
        ) from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise VisualHeadsError(
            f"device {str(device)!r} needs {(chosen.index or 0) + 1} GPU(s); torch sees {torch.cuda.device_count()}. "
            "Use device=cpu, or install a torch build for your GPU."
        )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """The dtype of that name, or "auto"; None: bfloat16 on a GPU, float32 on the CPU.

    Raises
    ------
    VisualHeadsError
        For another name.
    """
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise VisualHeadsError(f"dtype must be one of {', '.join(DTYPES)} or auto; got {dtype!r}. Choose one of these.")
    return DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What `load_model` takes besides the checkpoint and its name; see there.

    Raises
    ------
    VisualHeadsError
        For an unknown device map or one beside a device, and for an unknown image aspect.
    """

    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    revision: str | None = None
    conversation: str | None = None
    image_aspect: str | None = None
    model_base: str | Path | None = None
    peft: str | Path | None = None
    quantization: str | None = None
    device_map: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_device_map(self.device_map, self.device)
        if self.image_aspect is not None and self.image_aspect not in IMAGE_ASPECTS:
            raise VisualHeadsError(
                f"image_aspect must be pad or crop; got {self.image_aspect!r}. Choose one, or leave it out."
            )

    def placement(self) -> tuple[torch.device, torch.dtype | str]:
        """The device and the dtype ("auto": as stored).

        Raises
        ------
        VisualHeadsError
            For a device that is not there, or an unknown name.
        """
        device = choose_device(self.device)
        return device, choose_dtype(self.dtype, device)
