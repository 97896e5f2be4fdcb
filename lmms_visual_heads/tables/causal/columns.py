"""Columns of the causal table: one row per knock-out, (task, document, layer, head)."""

from __future__ import annotations

import pyarrow as pa

from lmms_visual_heads.schema import DOCUMENT_KEY, Column

EVERY = -1
"""In a causal table: `head` of a whole layer's row, `layer` and `head` of the row of all heads."""

CAUSAL_COLUMNS = (
    *DOCUMENT_KEY,
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
