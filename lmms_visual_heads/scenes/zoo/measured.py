"""Where the shipped measurements of the shipped checkpoints lie (written by `visual-heads zoo measure`). Never imports torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

PROFILES_FILE = "zoo.profiles.parquet"
SCORES_FILE = "scores.csv"
LINEAGES_FILE = "lineages.csv"
OWN_FOLDER = "own"
"""Answers of every shipped checkpoint to a few prompts of each benchmark, plain, with other pictures and with heads cut."""


def measured_folder() -> Path:
    """The folder inside the package with head profiles, own answers, scores and lineages of the shipped checkpoints."""
    return Path(str(resources.files("lmms_visual_heads.scenes"))) / "measured"
