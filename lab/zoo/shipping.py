"""Puts trained checkpoints into the package, for the demo. Never imports torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.zoo.settings import Training
from lmms_visual_heads.demo.manifest import FACTS_FILE, MANIFEST_FILE
from lmms_visual_heads.errors import VisualHeadsError

LARGEST_CHECKPOINT = 2_500_000
LARGEST_SET = 16_000_000
"""Bytes that one checkpoint, and all together, may take in the package."""


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
                    f"`python -m lab train --only {training.name} --out {work}` first."
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
