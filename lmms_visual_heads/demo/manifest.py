"""The checkpoints that come with the package: where they lie and what is known about each.

Never imports torch. `manifest.json` holds one entry per checkpoint: name, lineage, step, answers and operations seen,
training loss and architecture.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError

MANIFEST_FILE = "manifest.json"
FACTS_FILE = "training.json"
"""Stands in every checkpoint folder and tells where the checkpoint comes from."""


def checkpoints_folder() -> Path:
    """The folder inside the package with one folder per shipped checkpoint."""
    return Path(str(resources.files("lmms_visual_heads.demo"))) / "checkpoints"


def shipped_checkpoints(folder: Path | None = None) -> list[dict[str, Any]]:
    """The manifest's entries, each with `path` (Path) added, in the manifest's order.

    Raises
    ------
    VisualHeadsError
        If there is no manifest in `folder` (default: the package's).
    """
    folder = checkpoints_folder() if folder is None else folder
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise VisualHeadsError(f"The shipped checkpoints need {path}; it is missing. Reinstall the package.")
    return [entry | {"path": folder / entry["name"]} for entry in json.loads(path.read_text())["checkpoints"]]
