"""The study's published statistics: `<model>/<split>/imatt_sum.pt`, `imatt_concen.pt`, `reatt_sum.pt` -> means per head.

The study, here and wherever the package says so, is Bi et al., "Unveiling Visual Perception in Language Models", CVPR 2025; the
files are its Hugging Face data set `jing-bi/visual-head`, which was not at hand here.

Known from its code (github.com/jing-bi/visual-head): the folders and the names `imatt_sum.pt`, `reatt_sum.pt`; one
tensor per file whose mean over dimension 0 is the map of layers x heads (`heatmap.py`); the row that is recorded is the
first decode step (`llava/model/forward.py`). `imatt_concen.pt` is known by its name alone, no code that writes it was published.
Assumed: dimension 0 counts documents; `imatt_sum` is W, attention summed over the visual tokens; `reatt_sum` is the part
of it in the pointed region. What contradicts this (outside 0..1, region above image) is refused. Never computes C or F:
their concentration is handed on as it is. Shapes: N documents, L layers, H heads. Units: attention 0..1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmms_visual_heads.checkpoints.known_models import find_known
from lmms_visual_heads.errors import VisualHeadsError

REPOSITORY = "jing-bi/visual-head"
IMAGE_FILE, REGION_FILE, CONCENTRATION_FILE = "imatt_sum.pt", "reatt_sum.pt", "imatt_concen.pt"
_FILES = (IMAGE_FILE, REGION_FILE, CONCENTRATION_FILE)
SPLITS = ("mm", "pope", "qbench", "seed", "visual-general")
"""Splits that the data set is known to have; others are read as well."""

_ROUNDING = 0.01
"""A sum of half-precision numbers may leave 0..1 by this much; it is cut to 0..1."""
_DOCUMENTS_AT_ONCE = 1024
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class StudySplit:
    """One model's statistics on one split.

    Attributes
    ----------
    model, split : str
        Names of the folders.
    image_attention : array [L, H]
        Mean W over documents; NaN where no document has it.
    n_documents : array of int [L, H]
        Documents behind it; 1 where the file holds a mean already.
    region_attention : array [L, H] or None
    concentration : array [L, H] or None
        Mean of the study's own concentration. Not our C: its formula is not known.
    """

    model: str
    split: str
    image_attention: NDArray[np.float64]
    n_documents: NDArray[np.int64]
    region_attention: NDArray[np.float64] | None = None
    concentration: NDArray[np.float64] | None = None


def read_study(
    folder: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[list[StudySplit], tuple[str, ...]]:
    """Everything of the study under `folder`: the data set, one model's folder, or one split's.

    Parameters
    ----------
    folder : Path
    progress : callable, optional
        Called with the number of splits read and their total.

    Returns
    -------
    list of StudySplit, tuple of str
        Sorted by model and split; and one sentence per file that was left out.

    Raises
    ------
    VisualHeadsError
        When there is no such folder, no such file in it, a model's split lies in it twice, or no file can be read.
    """
    if not folder.is_dir():
        raise VisualHeadsError(
            f"A folder with the study's statistics is required; {folder} is not one. Download the data set {REPOSITORY}, "
            "then name its folder."
        )
    root = folder.resolve()
    places = sorted({path.parent for name in _FILES for path in root.rglob(name) if path.is_file()})
    if not places:
        raise VisualHeadsError(
            f"Files <model>/<split>/{IMAGE_FILE} are required; {folder} has none. Name the folder of the data set "
            f"{REPOSITORY}."
        )
    seen: dict[tuple[str, str], Path] = {}
    for place in places:
        key = (place.parent.name, place.name)
        if key in seen:
            raise VisualHeadsError(
                f"Each model's split may occur once; {key[0]}/{key[1]} lies in {seen[key].parent.parent} and in "
                f"{place.parent.parent}. Name one of the two folders."
            )
        seen[key] = place
    splits: list[StudySplit] = []
    notes: list[str] = []
    shapes: dict[str, tuple[int, int]] = {}
    for number, ((model, split), place) in enumerate(sorted(seen.items()), start=1):
        known = find_known(model)
        shape = (known.layers, known.heads) if known else shapes.get(model)
        one = _read_split(model, split, place, shape, notes)
        if one is not None:
            splits.append(one)
            layers, heads = one.image_attention.shape
            shapes.setdefault(model, (layers, heads))
        if progress is not None:
            progress(number, len(seen))
    if not splits:
        raise VisualHeadsError(notes[0])
    return splits, tuple(notes)


def _read_split(
    model: str, split: str, place: Path, shape: tuple[int, int] | None, notes: list[str]
) -> StudySplit | None:
    """One split; None, with a note, where its image attention cannot be used."""
    if not (place / IMAGE_FILE).is_file():
        notes.append(f"Image attention is required; {place} lacks {IMAGE_FILE}. Download it too.")
        return None
    try:
        image, counts = _mean_over_documents(place / IMAGE_FILE, shape, bounded=True)
    except VisualHeadsError as error:
        notes.append(str(error))
        return None
    layers, heads = image.shape
    others: dict[str, NDArray[np.float64] | None] = {REGION_FILE: None, CONCENTRATION_FILE: None}
    for name in others:
        if not (place / name).is_file():
            continue
        try:
            mean, _ = _mean_over_documents(place / name, (layers, heads), bounded=name == REGION_FILE)
            if name == REGION_FILE and (mean > image + _ROUNDING).any():
                raise VisualHeadsError(
                    f"A region's attention must be part of the image's; {place / name} is above {IMAGE_FILE} for some "
                    "heads, so its unit is another one. It is left out; nothing can be done about it here."
                )
        except VisualHeadsError as error:
            notes.append(str(error))
        else:
            others[name] = mean
    return StudySplit(model, split, image, counts, others[REGION_FILE], others[CONCENTRATION_FILE])


def _mean_over_documents(
    path: Path, shape: tuple[int, int] | None, bounded: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean over the documents that have a value, and how many those are; both [L, H].

    Raises
    ------
    VisualHeadsError
        When the file cannot be read, has another shape than `shape`, is infinite, or leaves 0..1 although `bounded`.
    """
    tensor = _load(path)
    came = " x ".join(str(size) for size in tensor.shape) or "a single number"
    if tensor.dim() not in (2, 3) or 0 in tensor.shape:
        raise VisualHeadsError(
            f"Documents x layers x heads, or layers x heads, are required; {path} has {came}. Download it again, or "
            "leave it out."
        )
    if tensor.dim() == 2:
        tensor = tensor.unsqueeze(0)
    layers, heads = tensor.shape[1:]
    if shape is not None and (layers, heads) != shape:
        raise VisualHeadsError(
            f"This model's heads are {shape[0]} x {shape[1]} (layers x heads); {path} has {came}, and which heads those are "
            "is not known. Leave it out."
        )
    total = torch.zeros(layers, heads, dtype=torch.float64)
    count = torch.zeros(layers, heads, dtype=torch.int64)
    for piece in tensor.split(_DOCUMENTS_AT_ONCE):
        values = piece.to(torch.float64)
        present = ~values.isnan()
        if values.isinf().any():
            raise VisualHeadsError(
                f"Statistics must be finite or missing; {path} has infinite ones. Download it again, or leave it out."
            )
        if bounded:
            outside = present & ((values < -_ROUNDING) | (values > 1 + _ROUNDING))
            if outside.any():
                raise VisualHeadsError(
                    f"Attention is a share from 0 to 1; {path} has {values[outside][0].item():.4g}. Download it again, or "
                    "leave it out."
                )
            values = values.clamp(0.0, 1.0)
        total += torch.where(present, values, 0.0).sum(dim=0)
        count += present.sum(dim=0)
    # 0 / 0 is NaN, the missing value: a head without any document
    return (total / count).numpy(), count.numpy()


def _load(path: Path) -> Tensor:
    """The one tensor in a file; nothing that is loaded runs code."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
        if start == _POINTER:
            raise VisualHeadsError(
                f"The study's files themselves are required; {path} is only a Git LFS pointer to one. Fetch it with git lfs "
                "pull."
            )
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if start.startswith((b"\x80", b"PK")) and "unsupported" in str(error).lower():
            raise VisualHeadsError(
                f"The study's files must hold nothing but a tensor; {path} is a pickle that wants to run code, and was not "
                "read further. Download it again from where you trust it."
            ) from error
        raise _damaged(path, error) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(loaded, Tensor) or not loaded.is_floating_point() or loaded.layout != torch.strided:
        what = f"a tensor of {loaded.dtype}" if isinstance(loaded, Tensor) else f"a {type(loaded).__name__}"
        raise VisualHeadsError(
            f"One dense tensor of floating-point numbers per file is required; {path} holds {what}. Download it again, "
            "or leave it out."
        )
    return loaded.detach()


_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What torch raises for files that are cut short or overwritten, depending on where."""


def _damaged(path: Path, error: Exception) -> VisualHeadsError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return VisualHeadsError(
        f"The study's files must be whole; {path} is truncated or damaged ({first}). Download it again."
    )
