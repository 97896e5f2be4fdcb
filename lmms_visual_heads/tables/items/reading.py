"""Reading the item table: samples files of lmms-eval, and item tables in CSV or Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.csv_reading import CsvForm, read_form
from lmms_visual_heads.tables.files import find_files
from lmms_visual_heads.tables.items.columns import ITEM_COLUMNS, ITEM_KEY, check_items_table
from lmms_visual_heads.tables.items.samples import SAMPLES_FILES, samples_rows
from lmms_visual_heads.tables.scores.benchmarks import parse_choices

ITEM_FORM = CsvForm(
    "item table",
    ITEM_COLUMNS,
    required=tuple(column.name for column in ITEM_COLUMNS),
    key=ITEM_KEY,
    remedy="Write one line per item: model,benchmark,doc_id,correct.",
)


class Items(NamedTuple):
    """An item table and sentences on what was left out."""

    frame: pd.DataFrame
    notes: tuple[str, ...]


def read_items(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], metrics: Iterable[str] = ()) -> Items:
    """Item table out of samples files of lmms-eval, folders of them, and item tables (`.csv`, `.parquet`).

    An item that stands in several files counts once: the newest samples file of a folder first, else in the order named.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, and folders, which are searched recursively for samples files.
    metrics : iterable of str
        The user's choices for samples files, TASK=METRIC.

    Raises
    ------
    VisualHeadsError
        No such path, no samples file, a line that is not JSON, or an item table that is refused.
    """
    chosen = parse_choices(list(metrics))
    notes: list[str] = []
    rows: dict[tuple[str, str, int], float] = {}
    files = find_files(paths, [SAMPLES_FILES], "samples files of lmms-eval")
    named = [path for path, by_name in files.items() if by_name]
    in_folders = sorted((path for path, by_name in files.items() if not by_name), reverse=True)  # newer runs first
    for path in (*named, *in_folders):
        of_file = _TABLES[path.suffix](path) if path.suffix in _TABLES else samples_rows(path, chosen, notes)
        rows = {**of_file, **rows}
    if not files:
        raise VisualHeadsError(
            "At least one samples file is required; none was found. Run lmms-eval with --log_samples."
        )
    frame = pd.DataFrame([(*key, value) for key, value in sorted(rows.items())], columns=[c.name for c in ITEM_COLUMNS])
    return Items(frame.astype({"doc_id": "int32", "correct": "float32"}), tuple(dict.fromkeys(notes)))


def _csv_rows(path: Path) -> dict[tuple[str, str, int], float]:
    return _rows(read_form(path, ITEM_FORM), path)


def _parquet_rows(path: Path) -> dict[tuple[str, str, int], float]:
    try:
        frame = pq.read_table(path).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise ITEM_FORM.refusal(path, f"it is not Parquet ({error})") from error
    return _rows(frame, path)


def _rows(frame: pd.DataFrame, path: Path) -> dict[tuple[str, str, int], float]:
    clean = check_items_table(frame, str(path))
    keys = zip(clean["model"], clean["benchmark"], clean["doc_id"].tolist(), strict=True)
    return dict(zip(keys, clean["correct"].tolist(), strict=True))


_TABLES = {".csv": _csv_rows, ".parquet": _parquet_rows}
