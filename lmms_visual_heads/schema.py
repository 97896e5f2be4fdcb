"""Columns, units and version of every table that is written. One declaration each; tables read and check against it.

Never imports torch. Units: attention and probability 0..1, entropy in nats, scores in the scale that the row names.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; files with a newer version are refused by name."""

METADATA_KEY = b"lmms_visual_heads"
"""Key of the JSON document in the Parquet schema metadata."""

STATISTICS_BITS = 20
"""Significant bits of a head statistic on disk: off by at most 2**-20 of its value (1e-6), a tenth of what statistics promise."""

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


_KEY = (
    Column("task", pa.string(), "", "lmms-eval task name"),
    Column("doc_id", pa.int32(), "", "position of the document in the task"),
    Column("item_id", pa.string(), "", "identifier in the data; pairs documents across tasks", nullable=True),
)

HEAD_COLUMNS = (
    *_KEY,
    Column("layer", pa.int16(), "", "decoder layer, from 0"),
    Column("head", pa.int16(), "", "query head, from 0"),
    Column("image_attention", pa.float32(), "0..1", "W: attention summed over the visual tokens", nullable=True),
    Column("concentration", pa.float32(), "0..1", "C = 1 - H(p) / ln n over the patch tokens", nullable=True),
    Column("focus", pa.float32(), "nats", "F = ln n - H(p) over the patch tokens", nullable=True),
    Column("visual_head_score", pa.float32(), "0..1", "S = W * C", nullable=True),
    Column(
        "region_attention",
        pa.float32(),
        "0..1",
        "attention on patch tokens that the pointed box overlaps",
        nullable=True,
    ),
    Column(
        "region_attention_base", pa.float32(), "0..1", "the part of it in the base view (anyres only)", nullable=True
    ),
    Column("region_attention_tiles", pa.float32(), "0..1", "the part of it in the tiles (anyres only)", nullable=True),
    Column(
        "newline_attention",
        pa.float32(),
        "0..1",
        "attention on visual tokens without a patch; W minus it is the patch attention",
        nullable=True,
    ),
    Column("sink_attention", pa.float32(), "0..1", "attention on the leading special tokens", nullable=True),
    Column("region_share", pa.float32(), "0..1", "share of the patch area that lies in the pointed box", nullable=True),
    Column("n_visual_tokens", pa.int32(), "tokens", "visual tokens of the prompt"),
    Column("n_patch_tokens", pa.int32(), "tokens", "visual tokens that stand for a patch: the n of C and F"),
    Column("n_prompt_tokens", pa.int32(), "tokens", "prompt length with the visual tokens, without padding"),
)

ANSWER_COLUMNS = (
    *_KEY,
    Column("n_images", pa.int16(), "images", "images of the document"),
    Column("n_visual_tokens", pa.int32(), "tokens", "visual tokens of the prompt"),
    Column("n_prompt_tokens", pa.int32(), "tokens", "prompt length with the visual tokens, without padding"),
    Column(
        "n_answer_tokens", pa.int32(), "tokens", "generated tokens, the end token included; 0 for a scored continuation"
    ),
    Column(
        "answer_token_index",
        pa.int16(),
        "",
        "which generated token the answer distribution belongs to: 0, or 1 where token 0 is a blank",
    ),
    Column("confidence", pa.float32(), "0..1", "largest probability of the first answer token", nullable=True),
    Column("answer_entropy", pa.float32(), "nats", "entropy of the first answer token's distribution", nullable=True),
    Column(
        "answer_log_probability", pa.float32(), "nats", "mean log-probability of the generated tokens", nullable=True
    ),
    Column("top_tokens", pa.list_(pa.int32()), "", "the 20 most probable first answer tokens", nullable=True),
    Column("top_probabilities", pa.list_(pa.float32()), "0..1", "their probabilities, largest first", nullable=True),
    Column(
        "swap_kl",
        pa.float32(),
        "nats",
        "KL(p || p with the image of another document) of the first answer token; its mean is the image dependence",
        nullable=True,
        added=True,
    ),
    Column(
        "blank_kl",
        pa.float32(),
        "nats",
        "KL(p || p with a blank image) of the first answer token; its mean is the image dependence",
        nullable=True,
        added=True,
    ),
    Column(
        "answer",
        pa.string(),
        "",
        "what was answered: first line, 64 characters at most; missing for a scored continuation",
        nullable=True,
        added=True,
    ),
)

EVERY = -1
"""In a causal table: `head` of a whole layer's row, `layer` and `head` of the row of all heads."""

CAUSAL_COLUMNS = (
    *_KEY,
    Column("layer", pa.int16(), "", "decoder layer, from 0; -1: all layers"),
    Column("head", pa.int16(), "", "query head, from 0; -1: all heads of the layer"),
    Column(
        "kl",
        pa.float32(),
        "nats",
        "KL(p || p with the cut) of the first answer token; its mean is the causal visual-head score",
        nullable=True,
    ),
)

SCORE_COLUMNS = (
    Column("model", pa.string(), "", "model name; joins heads and scores"),
    Column("benchmark", pa.string(), "", "lmms-eval task name"),
    Column("metric", pa.string(), "", "the benchmark's primary metric"),
    Column("scale", pa.float64(), "", "the metric's best value: 1 or 100 (2800 for MME's sum)"),
    Column("score", pa.float64(), "scale", "the model's score on that scale"),
    Column("n_items", pa.int64(), "items", "items that were scored", nullable=True),
    Column("source", pa.string(), "", "file or publication that the score comes from"),
)

ITEM_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("benchmark", pa.string(), "", "lmms-eval task name"),
    Column("doc_id", pa.int32(), "", "position of the document in the task"),
    Column("correct", pa.float32(), "0..1", "1 where the item was answered correctly; partial credit lies between"),
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
