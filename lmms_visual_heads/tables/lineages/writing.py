"""Writing the lineage table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lmms_visual_heads.tables.csv_writing import write_csv
from lmms_visual_heads.tables.lineages.columns import LINEAGE_COLUMNS


def write_lineages(lineages: Mapping[str, str], path: str | os.PathLike[str]) -> Path:
    """Write model -> lineage as CSV, atomically.

    Raises
    ------
    VisualHeadsError
        A file that cannot be written.
    """
    frame = pd.DataFrame({"model": list(lineages), "lineage": list(lineages.values())}, dtype=object)
    return write_csv(frame, LINEAGE_COLUMNS, path)
