"""Reading the score table: CSV, one row per (model, benchmark). Other layouts: `results` (lmms-eval), `wide`."""

from __future__ import annotations

import os

import pandas as pd

from lmms_visual_heads.tables.csv_reading import CsvForm, read_form
from lmms_visual_heads.tables.scores.columns import SCORE_COLUMNS, SCORE_REQUIRED, check_scores

SCORE_FORM = CsvForm(
    "score table",
    SCORE_COLUMNS,
    required=SCORE_REQUIRED,
    key=("model", "benchmark"),
    remedy="Write one with: visual-heads scores RESULTS... --out scores.csv.",
)


def read_scores(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Score table from a CSV file.

    Columns `model`, `benchmark`, `score` are required; a missing `scale` is 1 where all scores of the benchmark lie in
    0..1, else 100; a missing `metric` is "score", a missing `source` the file's name.

    Raises
    ------
    VisualHeadsError
        A file that `csv_reading.read_form` refuses, or a table that `check_scores` refuses.
    """
    return check_scores(read_form(path, SCORE_FORM), str(path))
