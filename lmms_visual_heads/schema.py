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

ZOO_CONDITIONS = ("clean", "temperature", "corrupted")
"""How a checkpoint of a measured zoo was asked: as it is; logits divided by its lineage's hidden temperature; images corrupted."""

ZOO_STRATA = ("ordinary", "smoothed", "noisy", "broken")
"""What was done to a training on purpose: nothing; label smoothing; noisy answers; something that must fail."""

PROMPT_COUNTS = (16, 32, 64, 128, 256)
"""Numbers of prompts behind the five entries of an answer statistic of a zoo."""

ZOO_CHECKPOINT_COLUMNS = (
    Column("model", pa.string(), "", "model name; joins all tables"),
    Column("lineage", pa.string(), "", "training that the checkpoint comes from"),
    Column("step", pa.int64(), "steps", "optimiser steps behind the checkpoint"),
    Column("steps", pa.int64(), "steps", "optimiser steps of the whole training"),
    Column("final", pa.bool_(), "", "the last checkpoint of its training"),
    Column("stratum", pa.string(), "", "ordinary, smoothed, noisy or broken"),
    Column("layers", pa.int64(), "layers", "decoder layers", nullable=True),
    Column("heads", pa.int64(), "heads", "query heads per layer", nullable=True),
    Column("key_value_heads", pa.int64(), "heads", "key heads per layer", nullable=True),
    Column("hidden", pa.int64(), "units", "width of the language model", nullable=True),
    Column("visual_tokens", pa.int64(), "tokens", "visual tokens per image", nullable=True),
    Column("anyres", pa.bool_(), "", "base view and tiles", nullable=True),
    Column("tower_trained", pa.bool_(), "", "the tower learnt with the language model", nullable=True),
    Column("parameters", pa.int64(), "", "parameters in all", nullable=True),
    Column("language_model_parameters", pa.int64(), "", "parameters of the language model", nullable=True),
    Column("scenes", pa.int64(), "images", "different training images", nullable=True),
    Column("answers_seen", pa.int64(), "answers", "answers trained on so far", nullable=True),
    Column("tokens_seen", pa.float64(), "tokens", "tokens trained on so far", nullable=True),
    Column("flops", pa.float64(), "FLOP", "floating point operations of the training so far", nullable=True),
    Column("training_loss", pa.float64(), "nats", "mean loss of the answers over the last steps", nullable=True),
    Column("written_trained", pa.bool_(), "", "saw real handwriting in training", nullable=True),
    Column("hidden_temperature", pa.float64(), "", "divides the logits under the condition temperature", nullable=True),
)

ZOO_BENCHMARK_COLUMNS = (
    Column("benchmark", pa.string(), "", "task name"),
    Column("generator", pa.string(), "", "scenes, bars or written"),
    Column("counting", pa.bool_(), "", "the answer is a count"),
    Column("chance", pa.float64(), "0..1", "share of the most frequent answer"),
    Column("n_items", pa.int64(), "items", "items of the benchmark"),
)

ZOO_ITEM_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("benchmark", pa.string(), "", "task name"),
    Column("condition", pa.string(), "", "clean, temperature or corrupted"),
    Column("correct", pa.list_(pa.bool_()), "", "per item, in the order of doc_id: answered correctly"),
    Column("confidence", pa.list_(pa.float32()), "0..1", "per item: largest probability of the first answer token"),
    Column("entropy", pa.list_(pa.float32()), "nats", "per item: entropy of the first answer token", nullable=True),
)

ZOO_REPLY_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("benchmark", pa.string(), "", "task name"),
    Column("condition", pa.string(), "", "clean or corrupted: a temperature changes no answer"),
    Column("answer", pa.list_(pa.int16()), "", "per item, in the order of doc_id: most probable first answer token"),
)

ZOO_ANSWER_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("task", pa.string(), "", "benchmark (own prompts) or probe task"),
    Column("condition", pa.string(), "", "clean, temperature or corrupted"),
    Column("n_prompts", pa.int32(), "prompts", "prompts behind the last entry"),
    Column("accuracy", pa.float64(), "0..1", "share of correct answers over these prompts", nullable=True),
    Column(
        "confidence",
        pa.list_(pa.float32()),
        "0..1",
        "mean confidence over the first 16, 32, 64, 128, 256 prompts",
        nullable=True,
    ),
    Column("entropy", pa.list_(pa.float32()), "nats", "mean answer entropy over the same", nullable=True),
    Column("information", pa.list_(pa.float32()), "nats", "answer information over the same", nullable=True),
    Column("swap_kl", pa.list_(pa.float32()), "nats", "mean KL with another document's image", nullable=True),
    Column("blank_kl", pa.list_(pa.float32()), "nats", "mean KL with a blank image", nullable=True),
)

ZOO_PROFILE_COLUMNS = (
    *PROFILE_COLUMNS,
    Column("grid_focus", pa.float32(), "nats", "focus of p on a common 4 x 4 grid of image content", nullable=True),
    Column("sinkless_attention", pa.float32(), "0..1", "image attention without visual sink tokens", nullable=True),
    Column(
        "content_dependence",
        pa.float32(),
        "nats",
        "H(mean p) - mean H(p) over documents on the common grid",
        nullable=True,
    ),
    Column("image_log_share", pa.float32(), "nats", "ln(W K / number of visual tokens)", nullable=True),
    Column("half", pa.int8(), "", "-1 all documents, 0 the even ones, 1 the odd ones"),
    Column("condition", pa.string(), "", "clean"),
)

ZOO_CAUSAL_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("task", pa.string(), "", "benchmark (own prompts) or probe task"),
    Column("layer", pa.int16(), "", "decoder layer, from 0; -1: all heads of the model are cut"),
    Column("head", pa.int16(), "", "query head, from 0; -1: the whole layer is cut"),
    Column("kl", pa.float32(), "nats", "causal visual-head score, mean over documents", nullable=True),
    Column("kl_half0", pa.float32(), "nats", "the same over the even documents", nullable=True),
    Column("kl_half1", pa.float32(), "nats", "the same over the odd documents", nullable=True),
    Column("n_documents", pa.int32(), "documents", "documents behind kl"),
)
