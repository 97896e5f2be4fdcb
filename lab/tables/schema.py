"""Columns of the tables of a measured zoo: checkpoints, benchmarks, items, replies, answers, head profiles, causal scores."""

from __future__ import annotations

import pyarrow as pa

from lmms_visual_heads.schema import PROFILE_COLUMNS, Column

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
