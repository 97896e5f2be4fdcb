"""Columns of the item table, one row per (model, benchmark, document), and the check that every item table passes."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import Column

ITEM_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("benchmark", pa.string(), "", "lmms-eval task name"),
    Column("doc_id", pa.int32(), "", "position of the document in the task"),
    Column("correct", pa.float32(), "0..1", "1 where the item was answered correctly; partial credit lies between"),
)

ITEM_KEY = ("model", "benchmark", "doc_id")


def check_items_table(frame: pd.DataFrame, where: str = "the item table") -> pd.DataFrame:
    """A clean copy of an item table: the declared columns in their types, every item once.

    Raises
    ------
    VisualHeadsError
        A column or cell is missing, an item stands twice, or `correct` lies outside 0..1.
    """
    names = [column.name for column in ITEM_COLUMNS]
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise VisualHeadsError(
            f"An item table needs the columns {', '.join(names)}; {where} lacks {', '.join(missing)}."
        )
    clean = frame[names]
    if clean.isna().to_numpy().any():
        raise VisualHeadsError(f"An item table has no empty cell; {where} has one. Leave such items out.")
    twice = clean[clean.duplicated(list(ITEM_KEY))]
    if len(twice):
        item = twice.iloc[0]
        raise VisualHeadsError(
            f"Every item stands once; {where} has document {item['doc_id']} of {item['benchmark']} twice for {item['model']}. "
            "Keep one."
        )
    outside = clean[~clean["correct"].between(0, 1)]
    if len(outside):
        item = outside.iloc[0]
        raise VisualHeadsError(
            f"correct lies in 0..1; {where} has {item['correct']:g} for {item['model']} on {item['benchmark']}, document "
            f"{item['doc_id']}. Divide by the best value."
        )
    return clean.astype({"doc_id": "int32", "correct": "float32"}).reset_index(drop=True)
