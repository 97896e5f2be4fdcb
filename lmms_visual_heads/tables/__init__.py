"""Tables on disk: head, answer, causal, score and item table. Columns and units are declared in `lmms_visual_heads.schema`.

Never imports torch.
"""

from __future__ import annotations

from lmms_visual_heads.tables.items import read_items
from lmms_visual_heads.tables.lineages import lineage_of, read_lineages
from lmms_visual_heads.tables.reading import (
    AnswerTable,
    CausalTable,
    HeadTable,
    read_answer_table,
    read_answer_tables,
    read_causal_table,
    read_causal_tables,
    read_head_table,
    read_head_tables,
)
from lmms_visual_heads.tables.results import read_results
from lmms_visual_heads.tables.scores import check_scores, read_scores, write_scores
from lmms_visual_heads.tables.wide import is_wide, parent_benchmark, read_wide_scores
from lmms_visual_heads.tables.writing import AnswerTableWriter, CausalTableWriter, HeadTableWriter

__all__ = [
    "AnswerTable",
    "AnswerTableWriter",
    "CausalTable",
    "CausalTableWriter",
    "HeadTable",
    "HeadTableWriter",
    "check_scores",
    "is_wide",
    "lineage_of",
    "parent_benchmark",
    "read_answer_table",
    "read_answer_tables",
    "read_causal_table",
    "read_causal_tables",
    "read_head_table",
    "read_head_tables",
    "read_items",
    "read_lineages",
    "read_results",
    "read_scores",
    "read_wide_scores",
    "write_scores",
]
