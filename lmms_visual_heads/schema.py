"""What a declared column is, and what every room shares: version, endings of files, names of queries and probe tasks.

The columns of the tables on disk stand with each table (`tables/*/columns.py`). Never imports torch. Units: attention and probability 0..1, entropy in nats, scores in the scale that the row names.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; files with a newer version are refused by name."""

METADATA_KEY = b"lmms_visual_heads"
"""Key of the JSON document in the Parquet schema metadata."""

QUERIES = ("first_generated", "last_prompt")
DEFAULT_QUERY = "first_generated"
HEADS_SUFFIX = ".heads.parquet"
ANSWERS_SUFFIX = ".answers.parquet"
CAUSAL_SUFFIX = ".causal.parquet"
PROBE_TASKS = tuple(f"vhead_{kind}{variant}" for variant in ("", "_visual") for kind in ("general", "obj", "super"))


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its Arrow type, unit, meaning, and whether a cell may be missing (null).

    `added`: declared after the first files of this schema version were written; in a file without it every cell is missing.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    added: bool = False

    def __post_init__(self) -> None:
        if self.added and not self.nullable:
            raise ValueError(f"column {self.name!r} was added later, so it must be nullable")


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """Arrow schema of `columns`, unit and meaning in each field's metadata."""
    return pa.schema(
        pa.field(c.name, c.type, nullable=c.nullable, metadata={"unit": c.unit, "meaning": c.meaning}) for c in columns
    )


def declared(batch: pa.RecordBatch, columns: tuple[Column, ...]) -> pa.RecordBatch:
    """The declared columns of `batch` in their order and types; a column that was added later and is not there is null."""
    arrays = [
        batch.column(c.name).cast(c.type)
        if c.name in batch.schema.names or not c.added
        else pa.nulls(len(batch), type=c.type)
        for c in columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(columns))


DOCUMENT_KEY = (
    Column("task", pa.string(), "", "lmms-eval task name"),
    Column("doc_id", pa.int32(), "", "position of the document in the task"),
    Column("item_id", pa.string(), "", "identifier in the data; pairs documents across tasks", nullable=True),
)

PROFILE_STATISTICS = (
    "image_attention",
    "concentration",
    "focus",
    "visual_head_score",
    "region_attention",
    "newline_attention",
    "sink_attention",
)

PROFILE_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("task", pa.string(), "", "task that the documents come from"),
    Column("layer", pa.int16(), "", "decoder layer, from 0"),
    Column("head", pa.int16(), "", "query head, from 0"),
    *(
        Column(name, pa.float32(), "mean", f"mean of {name} over documents; C and F weighted by W", nullable=True)
        for name in PROFILE_STATISTICS
    ),
    Column(
        "region_lift",
        pa.float32(),
        "nats",
        "ln(sum of region attention / sum of patch attention x region share)",
        nullable=True,
    ),
    Column("n_documents", pa.int32(), "documents", "documents behind the means"),
)

PREDICTION_COLUMNS = ("model", "benchmark", "predicted", "low", "high", "level", "baseline", "flags", "method")
