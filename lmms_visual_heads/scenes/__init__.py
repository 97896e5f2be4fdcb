"""Drawn scenes: a small world of coloured things for the probe, five benchmarks and the training of small checkpoints.

Everything is drawn from integers, the same on every machine. `documents(name)` and `draw(document)` are the way in.
"""

from __future__ import annotations

from lmms_visual_heads.scenes.documents import (
    DATA_NAMES,
    PROBE_DATA,
    BenchmarkFacts,
    benchmark_facts,
    data_fingerprint,
    documents,
    draw,
)
from lmms_visual_heads.scenes.questions import (
    BENCHMARKS,
    LETTER_POST_PROMPT,
    WORD_POST_PROMPT,
    full_prompt,
    options_text,
)

__all__ = [
    "BENCHMARKS",
    "DATA_NAMES",
    "LETTER_POST_PROMPT",
    "PROBE_DATA",
    "WORD_POST_PROMPT",
    "BenchmarkFacts",
    "benchmark_facts",
    "data_fingerprint",
    "documents",
    "draw",
    "full_prompt",
    "options_text",
]
