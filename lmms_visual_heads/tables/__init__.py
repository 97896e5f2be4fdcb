"""Tables on disk. A folder per table, each with columns, reading and writing; what tables share stands beside the folders.

| table | row | file | shared code |
|---|---|---|---|
| heads | (task, document, layer, head) | `*.heads.parquet` | `parquet_reading`, `parquet_writing`, `metadata` |
| answers | (task, document) | `*.answers.parquet` | the same |
| causal | (task, document, layer, head) knocked out | `*.causal.parquet` | the same |
| scores | (model, benchmark) | CSV | `csv_reading`, `csv_writing` |
| items | (model, benchmark, document) | CSV, Parquet, lmms-eval's samples | the same |
| lineages | model | CSV | the same |

`files` finds files and writes them whole, `journal` holds an unfinished run. Never imports torch.
"""

from __future__ import annotations

from lmms_visual_heads.tables.answers import (
    ANSWER_COLUMNS,
    AnswerTable,
    AnswerTableWriter,
    read_answer_table,
    read_answer_tables,
)
from lmms_visual_heads.tables.causal import (
    CAUSAL_COLUMNS,
    EVERY,
    CausalTable,
    CausalTableWriter,
    read_causal_table,
    read_causal_tables,
)
from lmms_visual_heads.tables.heads import (
    HEAD_COLUMNS,
    STATISTICS_BITS,
    HeadTable,
    HeadTableWriter,
    read_head_table,
    read_head_tables,
)
from lmms_visual_heads.tables.items import ITEM_COLUMNS, read_items, write_items
from lmms_visual_heads.tables.lineages import LINEAGE_COLUMNS, lineage_of, read_lineages, write_lineages
from lmms_visual_heads.tables.scores import (
    SCORE_COLUMNS,
    check_scores,
    is_wide,
    parent_benchmark,
    read_results,
    read_scores,
    read_wide_scores,
    write_scores,
)

__all__ = [
    "ANSWER_COLUMNS",
    "CAUSAL_COLUMNS",
    "EVERY",
    "HEAD_COLUMNS",
    "ITEM_COLUMNS",
    "LINEAGE_COLUMNS",
    "SCORE_COLUMNS",
    "STATISTICS_BITS",
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
    "write_items",
    "write_lineages",
    "write_scores",
]
