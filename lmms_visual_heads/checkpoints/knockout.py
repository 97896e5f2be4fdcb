"""What knocking out heads does to one answer: KL of the first answer token's distribution, one knock-out at a time.

What the prompt begins with up to its last visual token is run once; the question goes on from it with many knock-outs side by
side. The intact question runs in every such batch and is what its knock-outs are compared with, so that rounding that depends
on the shape of a batch is no effect. Units: nats. Shapes: L layers, H heads, N knock-outs, B batch, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmms_visual_heads.capture.knockout import VisualKnockout, as_keyword, check_can_knock_out, unchanged_start
from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.capture.prefix import Prefix
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.passes import TOKENS, on_device, prefill_documents
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.statistics.causal import answer_kl_or_nan

LEVELS = ("all", "layers", "heads")
TOGETHER = 64
"""Sequences of a batch of knock-outs, where memory suffices; the intact one is among them."""
_HOST_BYTES = 1 << 30
_PART_OF_FREE = 0.5
"""Caches of the sequences of a batch may take this much: on the CPU, and of what is free on a GPU."""


@dataclass(frozen=True, slots=True)
class KnockoutEffect:
    """KL(p || p with the knock-out) of one document's first answer token, nats; NaN where logits are not finite.

    Attributes
    ----------
    all : float or None
        All heads knocked out; None where it was not asked for, and so below.
    layers : Tensor [L] or None, float64
        All heads of one layer knocked out.
    heads : Tensor [L, H] or None, float64
        One head knocked out.
    n_passes, n_tokens : int
        Sequences that the language model ran, and their tokens; the shared beginning counts its tokens once.
    """

    all: float | None
    layers: Tensor | None
    heads: Tensor | None
    n_passes: int
    n_tokens: int


def knockouts_of(levels: Sequence[str], n_layers: int, n_heads: int) -> Tensor:
    """Every knock-out of `levels`, bool [N, L, H]: all heads, then each layer, then each head in order of layer and head."""
    each = torch.eye(n_layers * n_heads, dtype=torch.bool).view(-1, n_layers, n_heads)
    layers = torch.eye(n_layers, dtype=torch.bool)[:, :, None].expand(-1, -1, n_heads)
    everything = torch.ones(1, n_layers, n_heads, dtype=torch.bool)
    wanted = {"all": everything, "layers": layers, "heads": each}
    return torch.cat([wanted[level] for level in LEVELS if level in levels])


class KnockoutMeter:
    """Knocks out heads of one model, document after document.

    Parameters
    ----------
    model : PreTrainedModel
        After `attach`, of a LLaVA family.
    levels : sequence of str
        Some of `LEVELS`.
    together : int
        Most sequences in a batch. It is lowered for good when a batch does not fit into memory.

    Raises
    ------
    VisualHeadsError
        When a level is unknown, or this family's heads cannot be knocked out.
    """

    def __init__(self, model: PreTrainedModel, levels: Sequence[str] = LEVELS, together: int = TOGETHER) -> None:
        unknown = [level for level in levels if level not in LEVELS]
        if unknown or not levels:
            raise VisualHeadsError(
                f"A knockout is of {', '.join(LEVELS)}, one or several; {unknown[0] if unknown else 'nothing'!r} came. "
                "Choose among them."
            )
        check_can_knock_out(model)
        text_config = model.config.get_text_config(decoder=True)
        self.n_layers, self.n_heads = int(text_config.num_hidden_layers), int(text_config.num_attention_heads)
        self.model = model
        self.levels = tuple(level for level in LEVELS if level in levels)
        self.together = together
        self._knockouts = knockouts_of(self.levels, self.n_layers, self.n_heads)

    def cost(self, n_prompt: int, after_image: int, forced: bool) -> tuple[int, int]:
        """(passes, tokens) of one document whose prompt has `after_image` tokens behind its last visual token."""
        n = len(self._knockouts)
        passes = n + (1 if self.together == 1 else -(-n // (self.together - 1)))
        return passes, n_prompt - after_image + passes * (after_image + forced)

    @torch.inference_mode()
    def measure(
        self, encoded: Encoded, forced: int | None = None, progress: Callable[[int], Any] | None = None
    ) -> KnockoutEffect:
        """Knock out the heads in one document.

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
        start = unchanged_start(encoded.visual_positions)
        start = start if start < len(ids) else 0
        prefix = prefill_documents(self.model, [encoded], start) if start else None
        limit = self._fitting(prefix, len(ids))
        effects: list[Tensor] = []
        done, n_passes = 0, 0
        alone: Tensor | None = None
        while done < len(self._knockouts):
            size = min(self.together, limit)
            part = self._knockouts[done : done + max(1, size - 1)]
            try:
                if size == 1:  # the intact sequence has a batch of its own, once
                    run = 1 + (alone is None)
                    alone = self._logits(encoded, ids, visual, part[:0], prefix) if alone is None else alone
                    logits = torch.cat([alone, self._logits(encoded, ids, visual, part, prefix, intact=False)])
                else:
                    logits = self._logits(encoded, ids, visual, part, prefix)
                    run = len(logits)
            except RuntimeError as error:
                if size == 1 or not out_of_memory(error):
                    raise
                self.together = max(1, min(size, 1 + len(part)) // 2)
                torch.cuda.empty_cache()
                continue
            effects.append(answer_kl_or_nan(logits[:1].expand(len(part), -1), logits[1:]))
            done, n_passes = done + len(part), n_passes + run
            if progress is not None:
                progress(run)
        return self._effect(torch.cat(effects).cpu(), n_passes, start + n_passes * (len(ids) - start))

    def _logits(
        self, encoded: Encoded, ids: Tensor, visual: Tensor, heads: Tensor, prefix: Prefix | None, intact: bool = True
    ) -> Tensor:
        """Logits [1 + N, V] of the last position, float32: intact (where wanted), then with every knock-out."""
        if intact:
            heads = torch.cat([torch.zeros_like(self._knockouts[:1]), heads])
        n = len(heads)
        tokens = {"input_ids": ids.expand(n, -1), "attention_mask": torch.ones(n, len(ids), dtype=torch.long)}
        if prefix is None:
            pixels = {k: v for k, v in encoded.inputs.items() if k not in TOKENS}
            many = {k: v.expand(n, *v.shape[1:]) if len(v) == 1 else torch.cat([v] * n) for k, v in pixels.items()}
            inputs: dict[str, Any] = {**on_device(self.model, {**tokens, **many}), "use_cache": False}
        else:
            tokens["input_ids"] = tokens["input_ids"][:, prefix.length :]
            cache = prefix.branch([0] * n)
            inputs = {**on_device(self.model, tokens), "past_key_values": cache, "use_cache": True}
        knockout = VisualKnockout(heads, visual) if bool(heads.any()) else None
        return self.model(**inputs, **as_keyword(knockout), logits_to_keep=1).logits[:, -1].float()

    def _fitting(self, prefix: Prefix | None, length: int) -> int:
        """Sequences whose caches fit into memory, by estimate; at least 1."""
        if prefix is None:
            return self.together
        device = self.model.device
        room = _PART_OF_FREE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _HOST_BYTES
        each = 2 * prefix.n_bytes * length / prefix.length  # a branch, and its copy while the question is appended
        return max(1, min(self.together, int(room / each)))

    def _effect(self, kl: Tensor, n_passes: int, n_tokens: int) -> KnockoutEffect:
        n_layers, n_heads = self.n_layers, self.n_heads
        sizes = {"all": 1, "layers": n_layers, "heads": n_layers * n_heads}
        parts = dict(zip(self.levels, kl.split([sizes[level] for level in self.levels]), strict=True))
        heads = parts.get("heads")
        return KnockoutEffect(
            all=float(parts["all"]) if "all" in parts else None,
            layers=parts.get("layers"),
            heads=None if heads is None else heads.view(n_layers, n_heads),
            n_passes=n_passes,
            n_tokens=n_tokens,
        )
