"""Weight files of an original checkpoint: which there are, their tensors one by one, and the Hugging Face names.

Files are memory-mapped where their format allows it, so reading a tensor costs no memory beyond that tensor. Pickles
are read with `weights_only`; nothing that is loaded runs code.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmms_visual_heads.errors import VisualHeadsError, first_line

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?")
_PROJECTOR = {
    "0": "linear_1",
    "2": "linear_2",
    "final_linear.0": "linear_1",
    "final_linear.2": "linear_2",
    "clip_layernorm": "projector_layernorm",
}
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$|\.masked_bias$|\.attn\.bias$")


@dataclass(frozen=True, slots=True)
class OpenWeights:
    """One opened weight file.

    Attributes
    ----------
    names : tuple of str
        As stored.
    """

    path: Path
    names: tuple[str, ...]
    _handle: Any

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, as stored."""
        if isinstance(self._handle, dict):
            return self._handle[name]
        return self._handle.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        if isinstance(self._handle, dict):
            return tuple(self._handle[name].shape)
        return tuple(self._handle.get_slice(name).get_shape())


@contextmanager
def opened(path: Path) -> Iterator[OpenWeights]:
    """Open one weight file.

    Raises
    ------
    VisualHeadsError
        When it is missing, truncated, damaged, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise VisualHeadsError(
            f"A checkpoint needs all of its weight files; {path} is missing. Copy it again from where the checkpoint comes from."
        )
    handle: Any = None
    try:
        if path.suffix == ".safetensors":
            handle = safe_open(path, framework="pt")
            names = tuple(handle.keys())
        else:
            handle = _unpickled(path)
            names = tuple(handle)
    except UnpicklingError as error:
        raise VisualHeadsError(
            f"A checkpoint's .bin files must hold nothing but tensors; {path} is damaged or wants to run code, and was "
            "not read further. Convert it to safetensors where you trust it, or copy it again."
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise VisualHeadsError(
            f"A checkpoint's weight files must be whole; {path} is truncated or damaged ({first_line(error)[:200]}). "
            "Copy it again from where the checkpoint comes from."
        ) from error
    try:
        yield OpenWeights(path, names, handle)
    finally:
        if isinstance(handle, dict):
            handle.clear()
        del handle
        return_free_memory()


def return_free_memory() -> None:
    """Give freed memory back to the system at once, where the C library can (glibc keeps it otherwise)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _unpickled(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    # only the zip format can be mapped; the older one is read whole
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UnpicklingError("not a dictionary of tensors")
    return loaded


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a whole model."""
    return any((folder / name).is_file() for name in (*_INDEXES, *_SINGLES))


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's weight files, shards in order, then mm_projector.bin where no other file holds the projector.

    Raises
    ------
    VisualHeadsError
        When there are none, or an index is damaged.
    """
    files: list[Path] = []
    has_projector = False
    for name in _INDEXES:
        if (folder / name).is_file():
            try:
                places = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"]
                files = [folder / shard for shard in sorted(set(places.values()))]
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise VisualHeadsError(
                    f"{folder / name} must be a JSON document with a weight_map; it is damaged. Copy it again."
                ) from error
            has_projector = any("mm_projector." in key for key in places)
            break
    else:
        files = [folder / name for name in _SINGLES if (folder / name).is_file()][:1]
        if files:
            with opened(files[0]) as weights:
                has_projector = any("mm_projector." in key for key in weights.names)
    if not files:
        raise VisualHeadsError(
            f"A checkpoint's folder needs weights (model.safetensors, pytorch_model.bin or shards with an index); "
            f"{folder} has none. Copy them, or give model_base= where the folder holds an adapter only."
        )
    if not has_projector and (folder / PROJECTOR_FILE).is_file():
        files.append(folder / PROJECTOR_FILE)
    return files


def hugging_face_name(name: str) -> str | None:
    """The name of a stored tensor in the Hugging Face classes of transformers 5, or None where it has no use."""
    name = plain_name(name)
    if _IGNORED.search(name):
        return None
    if _TOWER.match(name):
        return "model.vision_tower." + _TOWER.sub("", name)
    if name.startswith("lm_head."):
        return name
    inner = name.removeprefix("model.")
    if inner.startswith("mm_projector."):
        module, _, leaf = inner.removeprefix("mm_projector.").rpartition(".")
        return f"model.multi_modal_projector.{_PROJECTOR[module]}.{leaf}" if module in _PROJECTOR else inner
    if inner == "image_newline":
        return "model.image_newline"
    return f"model.language_model.{inner}"


def published_name(name: str) -> str:
    """The name under which Hugging Face repositories store the weight `name` of a transformers 5 model."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    inner = name.removeprefix("model.")
    for module, stored in (
        ("language_model.", "language_model.model."),
        ("vision_tower.", "vision_tower.vision_model."),
    ):
        if inner.startswith(module):
            return stored + inner.removeprefix(module)
    return inner


def tower_name(name: str) -> str | None:
    """The same for a stored tensor of a CLIP file; None for its text half and heads."""
    if _IGNORED.search(name) or not name.startswith("vision_model."):
        return None
    return "model.vision_tower." + name.removeprefix("vision_model.")


def is_tower(name: str) -> bool:
    """Whether a tensor stored in a checkpoint belongs to its vision tower."""
    return _TOWER.match(plain_name(name)) is not None


def plain_name(name: str) -> str:
    """A stored name without what PEFT puts in front of it."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith(("model.model.", "model.lm_head.")) else name
