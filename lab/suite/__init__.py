"""Fourteen benchmarks of three kinds of pictures, by which predictions are judged: drawn scenes, bar charts, real handwriting.

`documents(name)` and `draw(document)` are the way in; `BENCHMARKS` says what each asks. Benchmarks of one pool ask about the
same 2,000 pictures, one question each.
"""

from __future__ import annotations

from lab.suite.benchmarks import BENCHMARKS, POOLS, SuiteBenchmark, documents, draw, draw_pool

__all__ = ["BENCHMARKS", "POOLS", "SuiteBenchmark", "documents", "draw", "draw_pool"]
