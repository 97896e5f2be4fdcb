"""What a run costs: sequences that the language model ran, their tokens, and FLOPs by estimate; per task and kind of pass.

FLOPs = 2 x parameters x tokens, of the language model, and of everything else (tower, projector) where an image goes through it.
Every document counts as if it were asked alone: what questions about one image share is not taken off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.checkpoints.quantization import countable

ORDINARY, IMAGE_CONTROL, KNOCKOUT = "ordinary", "image_control", "knockout"


@dataclass(frozen=True, slots=True)
class Cost:
    """Sequences through the language model, their tokens, and tokens through the vision tower."""

    passes: int = 0
    tokens: int = 0
    tower_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.passes + other.passes, self.tokens + other.tokens, self.tower_tokens + other.tower_tokens)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of the language model and of everything else."""

    language: int
    tower: int

    @classmethod
    def of(cls, model: VisualModel) -> Sizes:
        """Those of a loaded checkpoint."""
        language = int(model.description["language_model_parameters"])
        return cls(language, max(0, sum(p.numel() for p in countable(model.model).parameters()) - language))

    def flops(self, cost: Cost) -> int:
        """Estimate for `cost`."""
        return 2 * (self.language * cost.tokens + self.tower * cost.tower_tokens)

    def described(self, cost: Cost) -> dict[str, int]:
        """`cost` as it stands in the tables' metadata."""
        return {"forward_passes": cost.passes, "tokens": cost.tokens, "flops": self.flops(cost)}


@dataclass(frozen=True, slots=True)
class Ran:
    """What one ordinary request ran, as the journal keeps it.

    Attributes
    ----------
    passes, tokens, tower_tokens : int
        As in `Cost`.
    n_prompt, n_visual, after_image : int
        Tokens of the prompt, its visual tokens, and those behind the last of them.
    blank : int or None
        The first token of the answer, where it is a blank and the answer is the token after it.
    """

    passes: int
    tokens: int
    tower_tokens: int
    n_prompt: int
    n_visual: int
    after_image: int
    blank: int | None

    @property
    def cost(self) -> Cost:
        return Cost(self.passes, self.tokens, self.tower_tokens)

    def to_json(self) -> dict[str, Any]:
        """A mapping that `Ran(**mapping)` turns back."""
        return asdict(self)


def ran(encoded: Encoded, config: Any, passes: int, tokens: int, blank: int | None = None) -> Ran:
    """What a request with this prompt ran; `passes` and `tokens` as in `Cost`, `config` the model's."""
    visual = encoded.visual_positions
    after = len(encoded) - int(visual[-1]) - 1 if len(visual) else len(encoded)
    return Ran(passes, tokens, tower_tokens(encoded, config), len(encoded), len(visual), after, blank)


def generated(n_prompt: int, n_answer: int, n_beams: int) -> tuple[int, int]:
    """(passes, tokens) of one answer; beams run the prompt each, and once more for rows and statistics."""
    return n_beams + (n_beams > 1), n_beams * (n_prompt + n_answer - 1) + (n_prompt + 1) * (n_beams > 1)


def tower_tokens(encoded: Encoded, config: Any) -> int:
    """Tokens through the vision tower: patches of every view; by the visual tokens where pixels do not tell."""
    pixels: Tensor | None = encoded.inputs.get("pixel_values")
    if pixels is None:
        return 0
    patch = getattr(getattr(config, "vision_config", None), "patch_size", None)
    if pixels.dim() == 2:  # a row per patch
        return len(pixels)
    if pixels.dim() < 4 or not isinstance(patch, int):
        return len(encoded.visual_positions)
    views = math.prod(pixels.shape[:-3])
    return views * (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)


class CostBook:
    """Sums of costs per (task, kind)."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Cost] = {}

    def add(self, task: str, kind: str, cost: Cost) -> None:
        """Count one request or control."""
        self.sums[task, kind] = self.sums.get((task, kind), Cost()) + cost


def by_task(books: Iterable[Mapping[tuple[str, str], Cost]], sizes: Sizes) -> dict[str, dict[str, dict[str, int]]]:
    """Per task and kind the metadata's numbers, over the books of all processes."""
    total = CostBook()
    for book in books:
        for (task, kind), cost in book.items():
            total.add(task, kind, cost)
    described: dict[str, dict[str, dict[str, int]]] = {}
    for (task, kind), cost in sorted(total.sums.items()):
        described.setdefault(task, {})[kind] = sizes.described(cost)
    return described
