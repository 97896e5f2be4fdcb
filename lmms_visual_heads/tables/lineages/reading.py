"""Reading the lineage table."""

from __future__ import annotations

import os

from lmms_visual_heads.tables.csv_reading import CsvForm, read_form
from lmms_visual_heads.tables.lineages.columns import LINEAGE_COLUMNS

LINEAGE_FORM = CsvForm(
    "lineage table",
    LINEAGE_COLUMNS,
    required=("model", "lineage"),
    key=("model",),
    remedy="Write one line per checkpoint: model,lineage.",
    comments=True,
)


def read_lineages(path: str | os.PathLike[str]) -> dict[str, str]:
    """model -> lineage out of a CSV file; lines that begin with # are passed over.

    Raises
    ------
    VisualHeadsError
        A file that `csv_reading.read_form` refuses: no such file, not that CSV, an empty cell, a model that stands twice.
    """
    frame = read_form(path, LINEAGE_FORM)
    return dict(zip(frame["model"], frame["lineage"], strict=True))
