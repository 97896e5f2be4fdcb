"""The ways of reading an attention row that are compared: ours, full maps of eager attention, hooks that recompute it.

`off` is transformers' own SDPA and `generate`, with nothing of ours in the process's way. Each way returns
(tokens, rows or None). Shapes: L layers, B batch, H heads, K key positions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lab.capture_cost.timing import Way, synchronise
from lmms_visual_heads.capture import attention
from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.generation import generate_with_rows
from lmms_visual_heads.capture.rows import settle, stack_rows
from lmms_visual_heads.statistics.heads import head_statistics

EXPLAINED = {
    "off": "transformers' SDPA attention and `generate`, nothing else",
    "ours": "the row of the first generated token and its head statistics, on the host (one new token: the row of the last prompt "
    "token, since plain generation then runs no decode step; `ours, own step` runs that step for it)",
    "hooks": "forward hooks keep what `q_proj` and `k_proj` of every layer put out, and the row is recomputed "
    "from it; statistics as ours",
    "eager": "eager attention with `output_attentions=True`, full maps of every step, as tools that capture attention do "
    "it; statistics as ours",
}


def numbers_of(rows: Tensor, visual: Tensor) -> list[Tensor]:
    """Head statistics of every document of rows [L, B, H, K], on the host."""
    found = []
    for one in range(rows.shape[1]):
        numbers = head_statistics(rows[:, one], visual, visual, torch.tensor([0]))
        found.append(torch.stack(list(numbers.values())).cpu())
    return found


def ways(model: Any, given: dict[str, Tensor], new_tokens: int, names: tuple[str, ...]) -> dict[str, Way]:
    """The named ways over one model and one batch."""
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    visual = (given["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].cpu()
    length = given["input_ids"].shape[1]

    def implementation(name: str) -> Callable[[], None]:
        return lambda: model.set_attn_implementation({"text_config": name})

    @torch.inference_mode()
    def off() -> tuple[Tensor, None]:
        return model.generate(**given, **settings)[:, length:], None

    def ours(query: str) -> Callable[[], tuple[Tensor, Tensor]]:
        @torch.inference_mode()
        def run() -> tuple[Tensor, Tensor]:
            captured = generate_with_rows(model, given, query, settings)
            assert captured.rows is not None
            numbers_of(captured.rows, visual)
            return captured.tokens, captured.rows

        return run

    @torch.inference_mode()
    def eager() -> tuple[Tensor, Tensor]:
        output = model.generate(**given, **settings, output_attentions=True, return_dict_in_generate=True)
        rows = torch.stack([layer[:, :, -1].float() for layer in output.attentions[min(1, new_tokens - 1)]])
        numbers_of(rows, visual)
        return output.sequences[:, length:], rows

    @torch.inference_mode()
    def hooks() -> tuple[Tensor, Tensor]:
        with ExitStack() as stack:
            kept = _Projections(model, stack)
            tokens = model.generate(**given, **settings)[:, length:]
        rows = kept.rows(min(1, new_tokens - 1))
        numbers_of(rows, visual)
        return tokens, rows

    query = "first_generated" if new_tokens > 1 else "last_prompt"
    every = {
        "off": Way(off, implementation("sdpa")),
        "ours": Way(ours(query), lambda: attach(model)),
        "ours, own step": Way(ours("first_generated"), lambda: attach(model)),
        "hooks": Way(hooks, implementation("sdpa")),
        "eager": Way(eager, implementation("eager")),
    }
    return {name: every[name] for name in names}


class _Projections:
    """Outputs of every layer's q_proj and k_proj in the first two forward passes, and the rotation of their positions."""

    def __init__(self, model: Any, stack: ExitStack) -> None:
        self._layers = [layer.self_attn for layer in model.get_decoder().layers]
        self._queries: list[list[Tensor]] = [[] for _ in self._layers]
        self._keys: list[list[Tensor]] = [[] for _ in self._layers]
        self._rotations: list[Any] = []
        for number, layer in enumerate(self._layers):
            stack.callback(layer.q_proj.register_forward_hook(self._keeper(self._queries[number], last=True)).remove)
            stack.callback(layer.k_proj.register_forward_hook(self._keeper(self._keys[number], last=False)).remove)
        stack.callback(self._layers[0].register_forward_pre_hook(self._rotation, with_kwargs=True).remove)

    @staticmethod
    def _keeper(kept: list[Tensor], last: bool) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            if len(kept) < 2:
                kept.append(output[:, -1:] if last else output)

        return hook

    def _rotation(self, module: Any, args: Any, kwargs: Any) -> None:
        if len(self._rotations) < 2:
            self._rotations.append(kwargs["position_embeddings"])

    def rows(self, which: int) -> Tensor:
        """Rows [L, B, H, K] of pass `which`: 0 the prefill, 1 the first decode step."""
        rows = []
        for layer, queries, keys in zip(self._layers, self._queries, self._keys, strict=True):

            def split(states: Tensor, width: int = layer.head_dim) -> Tensor:
                return states.view(*states.shape[:2], -1, width).transpose(1, 2)

            rotated = []
            for key, (cos, sin) in zip(keys[: which + 1], self._rotations, strict=False):
                rotated.append(apply_rotary_pos_emb(split(key), split(key), cos, sin)[1])
            cos, sin = self._rotations[which]
            query = split(queries[which])
            query = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])[0]
            rows.append(attention.last_query_row(query, torch.cat(rotated, dim=2), None, layer.scaling)[:, :, 0])
        return torch.stack(rows)


class Stopwatch:
    """Context manager: time inside the capture's own functions (rows, at once or late, stacking, statistics with their transfer).

    On a GPU the device is waited for on both sides of every call: nothing overlaps. The hooks around a pass are not in it.
    """

    WATCHED = (("row", attention.last_query_row), ("settle", settle), ("stack", stack_rows), ("statistics", numbers_of))

    def __enter__(self) -> Stopwatch:
        self.seconds: dict[str, float] = {name: 0.0 for name, _ in self.WATCHED}
        self._replaced: list[tuple[Any, str, Any]] = []
        for name, function in self.WATCHED:
            timed = self._timed(name, function)
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith(("lmms_visual_heads", "lab", "__main__")):
                    for attribute, value in list(vars(module).items()):
                        if value is function:
                            self._replaced.append((module, attribute, value))
                            setattr(module, attribute, timed)
        return self

    def __exit__(self, *exception: Any) -> None:
        for module, attribute, value in self._replaced:
            setattr(module, attribute, value)

    @property
    def total(self) -> float:
        """Seconds of all together."""
        return sum(self.seconds.values())

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronise()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise()
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed
