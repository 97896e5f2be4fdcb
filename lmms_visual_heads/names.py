"""The model's name, which joins heads and scores.

One rule for every room; standard library only, never reads a file."""

from __future__ import annotations

import os.path
import re

from lmms_visual_heads.errors import VisualHeadsError

_CACHED_REPOSITORY = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+$")
_UNSAFE_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def model_name(pretrained: str, override: str | None = None) -> str:
    """Name of the checkpoint `pretrained`: `override` if given, else the hub id, else the last two parts of the path.

    Parameters
    ----------
    pretrained : str
        Hub id (`organisation/name`) or path of a folder; a snapshot inside the hub's cache folder counts as its hub id.
    override : str or None
        The user's `model_name=`.

    Returns
    -------
    str
        At most two parts joined by "/", unless the user chose otherwise.

    Raises
    ------
    VisualHeadsError
        When nothing that could serve as a name is left.

    Examples
    --------
    >>> model_name("llava-hf/llava-1.5-7b-hf")
    'llava-hf/llava-1.5-7b-hf'
    >>> model_name("/data/runs/seed3/step-2000/")
    'seed3/step-2000'
    >>> model_name("/data/runs/seed3/step-2000", override="seed 3")
    'seed 3'
    """
    if override is not None and str(override).strip():
        return str(override).strip()
    text = str(pretrained).strip().replace("\\", "/")
    if not text:
        raise VisualHeadsError(
            "A model needs a name; pretrained= is empty. Give pretrained=CHECKPOINT or model_name=NAME."
        )
    cached = _CACHED_REPOSITORY.search(text.rstrip("/"))
    if cached:
        return f"{cached.group(1)}/{cached.group(2)}"
    parts = _parts(text)
    if not parts or ".." in parts:
        parts = _parts(os.path.abspath(os.path.expanduser(text)))
    if not parts:
        raise VisualHeadsError(f"A model needs a name; pretrained={pretrained!r} has none. Give model_name=NAME.")
    return "/".join(parts[-2:])


def file_stem(name: str) -> str:
    """`name` as a part of a file name: "/" becomes "__", any other unusual character "-".

    >>> file_stem("llava-hf/llava-1.5-7b-hf")
    'llava-hf__llava-1.5-7b-hf'
    """
    return _UNSAFE_IN_FILE_NAMES.sub("-", name.replace("/", "__")).strip("-.") or "model"


def _parts(path: str) -> list[str]:
    return [part for part in os.path.normpath(path).split("/") if part not in ("", ".", "~")]
