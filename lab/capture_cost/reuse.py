"""Three questions about one image, answered in three ways, with the rows of the first generated token.

Prompts share everything up to the question. Each way returns (tokens [3, T], rows [L, 3, H, K]).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lab.capture_cost.timing import Way
from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.generation import CapturedGeneration, generate_with_rows
from lmms_visual_heads.capture.prefix import common_prefix, prefill

SETTINGS = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}


def reuse_ways(model: Any, questions: list[dict[str, Tensor]]) -> dict[str, Way]:
    """`separate`, `batch` and `reuse` over one model and the questions' inputs (batch 1, equal lengths)."""

    def separate() -> tuple[Tensor, Tensor]:
        found = [generate_with_rows(model, given, "first_generated", SETTINGS) for given in questions]
        return torch.cat([one.tokens for one in found]), torch.cat([rows_of(one) for one in found], dim=1)

    stacked = {name: torch.cat([given[name] for given in questions]) for name in questions[0]}

    def batch() -> tuple[Tensor, Tensor]:
        found = generate_with_rows(model, stacked, "first_generated", SETTINGS)
        return found.tokens, rows_of(found)

    ids = stacked["input_ids"]
    prefix = common_prefix(list(ids))

    def reuse() -> tuple[Tensor, Tensor]:
        started = prefill(model, questions[0], prefix)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = generate_with_rows(model, given, "first_generated", SETTINGS, started.branch([0] * len(questions)))
        return found.tokens, rows_of(found)

    ready: Callable[[], None] = lambda: attach(model)  # noqa: E731
    return {name: Way(run, ready) for name, run in (("separate", separate), ("batch", batch), ("reuse", reuse))}


def rows_of(generation: CapturedGeneration) -> Tensor:
    """The rows that were asked for."""
    if generation.rows is None:
        raise RuntimeError("the capture read no rows")
    return generation.rows
