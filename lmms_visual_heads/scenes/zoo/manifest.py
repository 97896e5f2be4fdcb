"""The checkpoints that come with the package: where they lie, what is known about each, and how a new set is put there.

Never imports torch. `manifest.json` holds one entry per checkpoint: name, lineage, step, answers and operations seen,
training loss and architecture.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.scenes.zoo.settings import Training

MANIFEST_FILE = "manifest.json"
FACTS_FILE = "training.json"
"""Stands in every checkpoint folder and tells where the checkpoint comes from."""
LARGEST_CHECKPOINT = 2_500_000
LARGEST_SET = 16_000_000
"""Bytes that one checkpoint, and all together, may take in the package."""


def checkpoints_folder() -> Path:
    """The folder inside the package with one folder per shipped checkpoint."""
    return Path(str(resources.files("lmms_visual_heads.scenes"))) / "checkpoints"


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
        raise VisualHeadsError(
            f"The shipped checkpoints need {path}; it is missing. Reinstall the package, or remake them with "
            "`visual-heads zoo train` and `visual-heads zoo ship`."
        )
    return [entry | {"path": folder / entry["name"]} for entry in json.loads(path.read_text())["checkpoints"]]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def ship(trainings: Sequence[Training], work: Path, folder: Path) -> list[dict[str, Any]]:
    """Copy the checkpoints that the settings ship from `work` to `folder` and write the manifest there.

    Checkpoints in `folder` that the settings no longer name are removed.

    Raises
    ------
    VisualHeadsError
        If a checkpoint was not trained yet, or the set is too large.
    """
    entries = []
    sources = []
    for training in trainings:
        for step in training.shipped:
            source = work / training.name / training.checkpoint_name(step)
            if not (source / FACTS_FILE).exists():
                raise VisualHeadsError(
                    f"Shipping needs every checkpoint that the settings name; {source} is missing. Run "
                    f"`visual-heads zoo train --only {training.name} --out {work}` first."
                )
            if _size(source) > LARGEST_CHECKPOINT:
                raise VisualHeadsError(
                    f"A shipped checkpoint may take {LARGEST_CHECKPOINT / 1e6} MB; {source.name} takes "
                    f"{_size(source) / 1e6:.1f} MB. Make the model of {training.name!r} smaller."
                )
            sources.append(source)
            entries.append(json.loads((source / FACTS_FILE).read_text()))
    total = sum(map(_size, sources))
    if total > LARGEST_SET:
        raise VisualHeadsError(
            f"All shipped checkpoints together may take {LARGEST_SET / 1e6} MB; these take {total / 1e6:.1f} MB. "
            "Ship fewer steps."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    for source in sources:
        shutil.copytree(source, folder / source.name)
        for file in (folder / source.name).iterdir():
            file.chmod(0o644)
    part = folder / (MANIFEST_FILE + ".part")
    part.write_text(json.dumps({"checkpoints": entries}, indent=1) + "\n")
    os.replace(part, folder / MANIFEST_FILE)
    return entries
