"""Columns of the head table: one row per (task, document, layer, head)."""

from __future__ import annotations

import pyarrow as pa

from lmms_visual_heads.schema import DOCUMENT_KEY, Column

STATISTICS_BITS = 20
"""Significant bits of a head statistic on disk: off by at most 2**-20 of its value (1e-6), a tenth of what statistics promise."""

HEAD_COLUMNS = (
    *DOCUMENT_KEY,
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
