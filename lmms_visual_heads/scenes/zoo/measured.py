"""Where the shipped measurements of the shipped checkpoints lie (written by `visual-heads zoo measure`). Never imports torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

PROFILES_FILE = "zoo.profiles.parquet"
SCORES_FILE = "scores.csv"
LINEAGES_FILE = "lineages.csv"


def measured_folder() -> Path:
    """The folder inside the package with head profiles, scores and lineages of the shipped checkpoints."""
    return Path(str(resources.files("lmms_visual_heads.scenes"))) / "measured"
