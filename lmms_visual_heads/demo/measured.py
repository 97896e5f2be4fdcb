"""Where the shipped measurements of the shipped checkpoints lie (written by `python -m lab measure`). Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from lmms_visual_heads.names import file_stem
from lmms_visual_heads.schema import ANSWERS_SUFFIX, CAUSAL_SUFFIX

PROFILES_FILE = "zoo.profiles.parquet"
SCORES_FILE = "scores.csv"
LINEAGES_FILE = "lineages.csv"
BENCHMARK_FOLDER = "own"
"""Answers of every shipped checkpoint to a few prompts of each benchmark, plain, with other pictures and with heads knocked out."""


def benchmark_tables(folder: Path, models: Iterable[str]) -> list[Path]:
    """Answer and causal tables of `models` in the folder `BENCHMARK_FOLDER` of `folder`."""
    suffixes = (ANSWERS_SUFFIX, CAUSAL_SUFFIX)
    return [folder / BENCHMARK_FOLDER / f"{file_stem(model)}{suffix}" for model in models for suffix in suffixes]


def measured_folder() -> Path:
    """The folder inside the package with head profiles, own answers, scores and lineages of the shipped checkpoints."""
    return Path(str(resources.files("lmms_visual_heads.demo"))) / "measurements"
