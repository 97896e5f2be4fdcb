"""Requests that wait for their batch, and what is handed back for them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts

from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.harness.documents import Document

PLAIN_GENERATION = {"max_new_tokens": 1024, "temperature": 0, "num_beams": 1}
"""What a plain lmms-eval wrapper takes where a task says nothing."""
GENERATION_ARGUMENTS = (
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
)
"""What of a task's generation_kwargs reaches `generate`. As in lmms-eval's own wrappers of these models, `until` does not."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A request that waits for its batch.

    `index` is its place among the answers, `name` its name in the journal; `asked` holds its generation settings as JSON, or
    the continuation to be scored.
    """

    index: int
    name: str
    document: Document
    encoded: Encoded
    asked: str
    captured: bool = False

    @property
    def batch(self) -> tuple[str, bool, int, bool]:
        """Requests that agree in this can be answered together."""
        return self.asked, self.captured, len(self.encoded), self.document.n_images > 0


def request_name(number: int, repeat: int, asked: str) -> str:
    """Tells the requests about one document apart: their number, the repeat, and what is asked for."""
    return f"{number}.{repeat}.{hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()}"


def repeats_of(requests: list[Instance]) -> list[int]:
    """How often each request came before: one that lmms-eval repeats, to draw several answers, is the same object."""
    seen: Counter[tuple[str, int, int]] = Counter()
    found = []
    for request in requests:
        key = (request.args[4], request.args[3], request.idx)
        found.append(seen[key])
        seen[key] += 1
    return found


def scored(response: dict[str, Any]) -> GenerationResult:
    return GenerationResult(text=(response["loss"], response["is_greedy"]))


def generated(response: dict[str, Any]) -> GenerationResult:
    counts = TokenCounts(input_tokens=response["n_prompt"], output_tokens=response["n_answer"])
    return GenerationResult(text=response["text"], token_counts=counts)


def generation_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of `generate` out of a task's generation_kwargs."""
    chosen = {**PLAIN_GENERATION, **{k: v for k, v in given.items() if k in GENERATION_ARGUMENTS and v is not None}}
    # As lmms-eval's wrappers do: the temperature alone decides whether tokens are drawn.
    return {**chosen, "do_sample": chosen["temperature"] > 0}
