"""Columns of the answer table: one row per (task, document)."""

from __future__ import annotations

import pyarrow as pa

from lmms_visual_heads.schema import DOCUMENT_KEY, Column

ANSWER_COLUMNS = (
    *DOCUMENT_KEY,
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
