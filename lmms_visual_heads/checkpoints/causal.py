"""What cutting heads off the image does to one answer: KL of the first answer token's distribution, cut by cut.

What the prompt begins with up to its last visual token is run once; the question goes on from it with many cuts side by side. The
uncut question runs in every such batch and is what its cuts are compared with, so that rounding that depends on the shape
of a batch is no effect. Also the blank image. Units: nats. Shapes: L layers, H heads, N cuts, B batch, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lmms_visual_heads.capture.cut import VisualCut, as_keyword, check_can_cut, shared_start
from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.capture.prefix import Prefix
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.statistics.causal import answer_kl_or_nan

if TYPE_CHECKING:
    from lmms_visual_heads.checkpoints.encoding import Encoded
    from lmms_visual_heads.checkpoints.model import VisualModel

LEVELS = ("all", "layers", "heads")
TOGETHER = 64
"""Sequences of a batch of cuts, where memory suffices; the uncut one is among them."""
_HOST_BYTES = 1 << 30
_PART_OF_FREE = 0.5
"""Caches of the sequences of a batch may take this much: on the CPU, and of what is free on a GPU."""


@dataclass(frozen=True, slots=True)
class Knockout:
    """KL(p || p with the cut) of one document's first answer token, nats; NaN where logits are not finite.

    Attributes
    ----------
    all : float or None
        All heads cut; None where it was not asked for, and so below.
    layers : Tensor [L] or None, float64
        All heads of one layer cut.
    heads : Tensor [L, H] or None, float64
        One head cut.
    n_passes, n_tokens : int
        Sequences that the language model ran, and their tokens; the shared beginning counts its tokens once.
    """

    all: float | None
    layers: Tensor | None
    heads: Tensor | None
    n_passes: int
    n_tokens: int


def cuts_of(levels: Sequence[str], n_layers: int, n_heads: int) -> Tensor:
    """Every cut of `levels`, bool [N, L, H]: all heads, then each layer, then each head in order of layer and head."""
    each = torch.eye(n_layers * n_heads, dtype=torch.bool).view(-1, n_layers, n_heads)
    layers = torch.eye(n_layers, dtype=torch.bool)[:, :, None].expand(-1, -1, n_heads)
    everything = torch.ones(1, n_layers, n_heads, dtype=torch.bool)
    wanted = {"all": everything, "layers": layers, "heads": each}
    return torch.cat([wanted[level] for level in LEVELS if level in levels])


class KnockoutMeter:
    """Cuts heads of one model, document after document.

    Parameters
    ----------
    model : VisualModel
    levels : sequence of str
        Some of `LEVELS`.
    together : int
        Most sequences in a batch. It is lowered for good when a batch does not fit into memory.

    Raises
    ------
    VisualHeadsError
        When a level is unknown, or this family's heads cannot be cut.
    """

    def __init__(self, model: VisualModel, levels: Sequence[str] = LEVELS, together: int = TOGETHER) -> None:
        unknown = [level for level in levels if level not in LEVELS]
        if unknown or not levels:
            raise VisualHeadsError(
                f"A knockout is of {', '.join(LEVELS)}, one or several; {unknown[0] if unknown else 'nothing'!r} came. "
                "Choose among them."
            )
        check_can_cut(model.model)
        self.model = model
        self.levels = tuple(level for level in LEVELS if level in levels)
        self.together = together
        self._cuts = cuts_of(self.levels, model.n_layers, model.n_heads)

    def cost(self, n_prompt: int, after_image: int, forced: bool) -> tuple[int, int]:
        """(passes, tokens) of one document whose prompt has `after_image` tokens behind its last visual token."""
        n = len(self._cuts)
        passes = n + (1 if self.together == 1 else -(-n // (self.together - 1)))
        return passes, n_prompt - after_image + passes * (after_image + forced)

    @torch.inference_mode()
    def measure(
        self, encoded: Encoded, forced: int | None = None, progress: Callable[[int], Any] | None = None
    ) -> Knockout:
        """Cut the heads in one document.

        Parameters
        ----------
        encoded : Encoded
            With at least one visual token.
        forced : int or None
            A blank token that the answer begins with: the distribution is that of the token after it.
        progress : callable or None
            Gets the number of passes after every batch.

        Raises
        ------
        torch.OutOfMemoryError
            When one sequence does not fit into memory.
        """
        ids = encoded.input_ids
        if forced is not None:
            ids = torch.cat([ids, torch.tensor([forced])])
        visual = torch.zeros(1, len(ids), dtype=torch.bool)
        visual[0, encoded.visual_positions] = True
        start = shared_start(encoded.visual_positions)
        start = start if start < len(ids) else 0
        prefix = self.model.prefill([encoded], start) if start else None
        limit = self._fitting(prefix, len(ids))
        found: list[Tensor] = []
        done, n_passes = 0, 0
        alone: Tensor | None = None
        while done < len(self._cuts):
            size = min(self.together, limit)
            part = self._cuts[done : done + max(1, size - 1)]
            try:
                if size == 1:  # the uncut sequence has a batch of its own, once
                    run = 1 + (alone is None)
                    alone = self._logits(encoded, ids, visual, part[:0], prefix) if alone is None else alone
                    logits = torch.cat([alone, self._logits(encoded, ids, visual, part, prefix, uncut=False)])
                else:
                    logits = self._logits(encoded, ids, visual, part, prefix)
                    run = len(logits)
            except RuntimeError as error:
                if size == 1 or not out_of_memory(error):
                    raise
                self.together = max(1, min(size, 1 + len(part)) // 2)
                torch.cuda.empty_cache()
                continue
            found.append(answer_kl_or_nan(logits[:1].expand(len(part), -1), logits[1:]))
            done, n_passes = done + len(part), n_passes + run
            if progress is not None:
                progress(run)
        return self._knockout(torch.cat(found).cpu(), n_passes, start + n_passes * (len(ids) - start))

    def _logits(
        self, encoded: Encoded, ids: Tensor, visual: Tensor, cuts: Tensor, prefix: Prefix | None, uncut: bool = True
    ) -> Tensor:
        """Logits [1 + N, V] of the last position, float32: uncut (where wanted), then with every cut."""
        if uncut:
            cuts = torch.cat([torch.zeros_like(self._cuts[:1]), cuts])
        n = len(cuts)
        tokens = {"input_ids": ids.expand(n, -1), "attention_mask": torch.ones(n, len(ids), dtype=torch.long)}
        given: dict[str, Any] = {}
        if prefix is None:
            pixels = {k: v for k, v in encoded.inputs.items() if k not in tokens}
            many = {k: v.expand(n, *v.shape[1:]) if len(v) == 1 else torch.cat([v] * n) for k, v in pixels.items()}
            given = {**self.model.move({**tokens, **many}), "use_cache": False}
        else:
            tokens["input_ids"] = tokens["input_ids"][:, prefix.length :]
            given = {**self.model.move(tokens), "past_key_values": prefix.branch([0] * n), "use_cache": True}
        cut = VisualCut(cuts, visual) if bool(cuts.any()) else None
        return self.model.model(**given, **as_keyword(cut), logits_to_keep=1).logits[:, -1].float()

    def _fitting(self, prefix: Prefix | None, length: int) -> int:
        """Sequences whose caches fit into memory, by estimate; at least 1."""
        if prefix is None:
            return self.together
        device = self.model.device
        room = _PART_OF_FREE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _HOST_BYTES
        each = 2 * prefix.n_bytes * length / prefix.length  # a branch, and its copy while the question is appended
        return max(1, min(self.together, int(room / each)))

    def _knockout(self, kl: Tensor, n_passes: int, n_tokens: int) -> Knockout:
        n_layers, n_heads = self.model.n_layers, self.model.n_heads
        sizes = {"all": 1, "layers": n_layers, "heads": n_layers * n_heads}
        parts = dict(zip(self.levels, kl.split([sizes[level] for level in self.levels]), strict=True))
        heads = parts.get("heads")
        return Knockout(
            all=float(parts["all"]) if "all" in parts else None,
            layers=parts.get("layers"),
            heads=None if heads is None else heads.view(n_layers, n_heads),
            n_passes=n_passes,
            n_tokens=n_tokens,
        )


def blank_image(image: Image.Image, image_processor: Any) -> Image.Image:
    """An RGB image of the same size in the processor's mean colour, which its normalisation maps to zero; else mid-grey."""
    mean = list(getattr(image_processor, "image_mean", None) or [0.5])
    mean = mean if len(mean) == 3 else [mean[0]] * 3
    red, green, blue = (round(255 * part) for part in mean)
    return Image.new("RGB", image.size, (red, green, blue))
