"""What the writers of CSV tables share: the declared columns, commas, UTF-8, one line per row; numbers read back exactly."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Literal

import pandas as pd

from lmms_visual_heads.schema import Column
from lmms_visual_heads.tables.files import write_bytes


def write_csv(frame: pd.DataFrame, columns: tuple[Column, ...], path: str | os.PathLike[str]) -> Path:
    """Write the declared columns of `frame`, atomically; text in quotes where a name would look like a comment.

    Raises
    ------
    VisualHeadsError
        When the file cannot be written.
    """
    names = [column.name for column in columns]
    looks_like_comment = frame[names[0]].astype(str).str.startswith("#").any()
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if looks_like_comment else csv.QUOTE_MINIMAL
    return write_bytes(path, frame[names].to_csv(index=False, lineterminator="\n", quoting=quoting).encode())
