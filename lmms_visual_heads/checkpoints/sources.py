"""A checkpoint's name -> where it lies and what its config.json says: a folder, or a hub id. Nothing is loaded here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lmms_visual_heads.errors import VisualHeadsError, first_line

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def checked_source(pretrained: str | Path) -> str:
    """The folder or hub id as transformers wants it.

    Raises
    ------
    VisualHeadsError
        When `pretrained` is neither, or a folder without config.json.
    """
    text = str(pretrained).strip()
    if not text:
        raise VisualHeadsError("A checkpoint is a folder or a hub id; pretrained= is empty. Give one of them.")
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise VisualHeadsError(
                f"A checkpoint's folder needs config.json; {folder} has none. "
                "Give the folder that holds the weights, or a hub id."
            )
        return str(folder)
    if folder.exists():
        raise VisualHeadsError(f"A checkpoint is a folder or a hub id; {folder} is a file. Give its folder.")
    if not _HUB_ID.match(text):
        raise VisualHeadsError(f"A checkpoint is a folder or a hub id; there is no folder {text}. Check the path.")
    return text


def stored_config(source: str, revision: str | None) -> dict[str, Any]:
    """The checkpoint's config.json as it stands.

    Raises
    ------
    VisualHeadsError
        When it is not there, or no JSON object.
    """
    folder = Path(source)
    if folder.is_dir():
        try:
            stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VisualHeadsError(
                f"config.json must be a JSON document; {folder / 'config.json'} cannot be read "
                f"({first_line(error)}). Copy it again from where the checkpoint comes from."
            ) from error
        if not isinstance(stored, dict):
            raise VisualHeadsError(
                f"config.json must be a JSON object; {folder / 'config.json'} is not. Copy it again."
            )
        return stored
    try:
        return PretrainedConfig.get_config_dict(source, revision=revision)[0]
    except (OSError, ValueError, KeyError) as error:
        raise no_such_checkpoint(source, revision, error) from error


def no_such_checkpoint(source: str, revision: str | None, error: BaseException) -> VisualHeadsError:
    """What a hub id that leads nowhere ends in."""
    return VisualHeadsError(
        f"No such checkpoint: {source} is no folder here, and the hub did not give it"
        f"{f' at revision {revision}' if revision else ''} ({first_line(error)}). "
        "Check the spelling, the network (HF_HUB_OFFLINE) and your access."
    )
