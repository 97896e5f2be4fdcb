"""Writing the score table."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from lmms_visual_heads.tables.csv_writing import write_csv
from lmms_visual_heads.tables.scores.columns import SCORE_COLUMNS, check_scores


def write_scores(frame: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a score table as CSV, atomically; numbers read back exactly.

    Raises
    ------
    VisualHeadsError
        A table that `check_scores` refuses, or a file that cannot be written.
    """
    return write_csv(check_scores(frame), SCORE_COLUMNS, path)
