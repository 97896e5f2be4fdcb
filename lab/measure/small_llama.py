"""Passes of a small Llama over many documents: what stands before a question runs once per picture, then only what is asked.

The arithmetic is that of transformers' Llama, with the attention written out, so that rows and cuts cost next to nothing.
Shapes: N pictures, V variants (questions, cuts) of each, P tokens before, T tokens asked, L layers, H query heads, G key heads,
D width, E width of a head, K = P + T keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaModel

from lmms_visual_heads.errors import VisualHeadsError


@dataclass(frozen=True, slots=True)
class Past:
    """Keys and values of what was read so far.

    Attributes
    ----------
    layers : tuple of (Tensor, Tensor)
        Keys and values [N, G, K, E] of each layer, keys already rotated.
    length : int
        Position of the next token.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    length: int

    def of(self, rows: Tensor | slice) -> Past:
        """Those of some pictures; a slice copies nothing."""
        return Past(tuple((keys[rows], values[rows]) for keys, values in self.layers), self.length)

    def only(self, places: Tensor) -> Past:
        """As if only the keys at `places` could be seen; positions stay."""
        return Past(tuple((keys[:, :, places], values[:, :, places]) for keys, values in self.layers), self.length)

    def then(self, own: Past) -> Past:
        """This, and behind it what `own` read after it."""
        pairs = zip(self.layers, own.layers, strict=True)
        joined = tuple((torch.cat([k, k2], 2), torch.cat([v, v2], 2)) for (k, v), (k2, v2) in pairs)
        return Past(joined, own.length)


@dataclass(frozen=True, slots=True)
class Heads:
    """What the heads of one layer give.

    Attributes
    ----------
    states : Tensor [V, N, Q, D]
        The residual stream at the queries, before the layer.
    outputs : Tensor [V, N, Q, H * E]
        What each head copied, side by side.
    row : Tensor [V, N, H, K]
        Softmax row of the last query.
    keys, values : Tensor [V * N, G, T, E]
    """

    states: Tensor
    outputs: Tensor
    row: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Asked:
    """One pass over N questions.

    Attributes
    ----------
    logits : Tensor [N, Q, vocabulary]
        At the last Q tokens.
    rows : Tensor [L, N, H, K] or None
        Of the last token.
    own : Past
        Keys and values of the question alone.
    entered : tuple of Tensor [1, N, T, D]
        The residual stream before each layer; empty unless asked for.
    """

    logits: Tensor
    rows: Tensor | None
    own: Past
    entered: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Tensor
    projections: Tensor
    output: Tensor
    between: Tensor
    gate_and_up: Tensor
    down: Tensor
    epsilon: float


class SmallLanguageModel:
    """The language model of a loaded small checkpoint.

    Parameters
    ----------
    model : PreTrainedModel
        LLaVA or LLaVA-NeXT around a Llama, float32.

    Raises
    ------
    VisualHeadsError
        For another language model, or one with settings that these passes do not know.
    """

    def __init__(self, model: Any) -> None:
        language = model.model.language_model
        config = language.config
        if (
            not isinstance(language, LlamaModel)
            or config.attention_bias
            or config.mlp_bias
            or config.hidden_act != "silu"
        ):
            raise VisualHeadsError(
                f"The fast passes need a plain Llama as language model; {type(language).__name__} came. Measure this "
                "checkpoint with lmms-eval --model visual_heads_llava."
            )
        self.n_layers, self.n_heads = len(language.layers), int(config.num_attention_heads)
        self._groups = int(config.num_key_value_heads)
        self._width = int(getattr(config, "head_dim", None) or config.hidden_size // self.n_heads)
        self._rotary = language.rotary_emb
        self._embed = language.embed_tokens.weight
        self._head = model.lm_head.weight
        self._norm, self._epsilon = language.norm.weight, float(config.rms_norm_eps)
        self._layers = [
            _Layer(
                layer.input_layernorm.weight,
                torch.cat([getattr(layer.self_attn, name).weight for name in ("q_proj", "k_proj", "v_proj")]),
                layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight,
                torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
                layer.mlp.down_proj.weight,
                self._epsilon,
            )
            for layer in language.layers
        ]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., D] of token ids."""
        return F.embedding(ids, self._embed)

    def read(self, embeddings: Tensor) -> Past:
        """Read N beginnings, [N, P, D]; the last layer's states behind them are never needed."""
        length = embeddings.shape[1]
        x, kept = embeddings, []
        cosine, sine = self._angles(0, length)
        for number, layer in enumerate(self._layers):
            query, keys, values = self._projected(layer, x, cosine, sine)
            kept.append((keys, values))
            if number + 1 < self.n_layers:
                grouped = self.n_heads != self._groups
                out = F.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=grouped)
                x = self.after(number, x, out.transpose(1, 2).flatten(2))
        return Past(tuple(kept), length)

    def ask(self, past: Past, ids: Tensor, *, last: int = 2, rows: bool = False, entered: bool = False) -> Asked:
        """Run `ids` int64 [N, T] behind `past`, pictures row by row; logits at the `last` tokens."""
        x = self.embed(ids)[None]
        seen, own, before = [], [], []
        for number in range(self.n_layers):
            if entered:
                before.append(x)
            given = self.heads(number, x, past, last if number + 1 == self.n_layers else ids.shape[1])
            own.append((given.keys, given.values))
            if rows:
                seen.append(given.row[0])
            x = self.after(number, given.states, given.outputs)
        stacked = torch.stack(seen) if rows else None
        return Asked(self.logits(x)[0], stacked, Past(tuple(own), past.length + ids.shape[1]), tuple(before))

    def ask_each(self, past: Past, ids: Tensor, *, last: int = 2) -> Tensor:
        """Logits [V, last, vocabulary] of V questions, int64 [V, T], about the one picture of `past`."""
        x = self.embed(ids)[:, None]
        return self.finish(0, x, past, last)[:, 0]

    def finish(self, first: int, x: Tensor, past: Past, last: int) -> Tensor:
        """Logits [V, N, last, vocabulary] of states [V, N, T, D] that enter layer `first`."""
        for number in range(first, self.n_layers):
            given = self.heads(number, x, past, last if number + 1 == self.n_layers else x.shape[2])
            x = self.after(number, given.states, given.outputs)
        return self.logits(x)

    def heads(self, number: int, x: Tensor, past: Past, n_queries: int, hidden: Tensor | None = None) -> Heads:
        """The heads of one layer on states [V, N, T, D], at the last `n_queries` tokens.

        `hidden`, bool [P]: keys of `past` that no query may see.
        """
        variants, n, length, _ = x.shape
        keys_before, values_before = past.layers[number]
        n_before = keys_before.shape[2]
        cosine, sine = self._angles(past.length, length)
        query, keys, values = self._projected(self._layers[number], x.flatten(0, 1), cosine, sine)
        query = query[:, :, length - n_queries :]
        groups, repeats, width = self._groups, self.n_heads // self._groups, self._width
        query = query.reshape(variants, n, groups, repeats * n_queries, width)
        far = query.permute(1, 2, 0, 3, 4).reshape(n * groups, -1, width)
        scores_before = torch.bmm(far, keys_before.reshape(n * groups, n_before, width).mT)
        scores_before = scores_before.view(n, groups, variants, -1, n_before).permute(2, 0, 1, 3, 4)
        near = query.reshape(-1, repeats * n_queries, width)
        scores_own = torch.bmm(near, keys.reshape(-1, length, width).mT)
        scores_own = scores_own.view(variants, n, groups, repeats, n_queries, length)
        if length > 1:
            later = torch.ones(length, length, dtype=torch.bool).triu(1)[length - n_queries :]
            scores_own = scores_own.masked_fill(later, float("-inf"))
        if hidden is not None:
            scores_before = scores_before.masked_fill(hidden, float("-inf"))
        scores = torch.cat([scores_before, scores_own.flatten(3, 4)], dim=-1)
        weights = scores.mul_(width**-0.5).softmax(-1)
        row = weights.unflatten(3, (repeats, n_queries))[..., -1, :].flatten(2, 3)
        far_weights = weights[..., :n_before].permute(1, 2, 0, 3, 4).reshape(n * groups, -1, n_before)
        out = torch.bmm(far_weights, values_before.reshape(n * groups, n_before, width))
        out = out.view(n, groups, variants, -1, width).permute(2, 0, 1, 3, 4)
        near_weights = weights[..., n_before:].reshape(-1, repeats * n_queries, length)
        out = out + torch.bmm(near_weights, values.reshape(-1, length, width)).view(out.shape)
        out = out.reshape(variants, n, self.n_heads, n_queries, width).transpose(2, 3).flatten(3)
        return Heads(x[:, :, length - n_queries :], out, row, keys, values)

    def after(self, number: int, states: Tensor, outputs: Tensor) -> Tensor:
        """States behind a layer, from those before it and what its heads gave."""
        layer = self._layers[number]
        states = states + F.linear(outputs, layer.output)
        normed = F.rms_norm(states, layer.between.shape, layer.between, layer.epsilon)
        gate, up = F.linear(normed, layer.gate_and_up).chunk(2, dim=-1)
        return states + F.linear(F.silu(gate).mul_(up), layer.down)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., vocabulary] of last states [..., D]."""
        return F.linear(F.rms_norm(states, self._norm.shape, self._norm, self._epsilon), self._head)

    def _angles(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + length)[None]
        cosine, sine = self._rotary(self._embed, positions)
        return cosine[0], sine[0]

    def _projected(self, layer: _Layer, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [M, H, T, E], rotated keys and values [M, G, T, E] of states [M, T, D]."""
        normed = F.rms_norm(x, layer.before.shape, layer.before, layer.epsilon)
        projected = F.linear(normed, layer.projections).unflatten(-1, (-1, self._width)).transpose(1, 2)
        turning = projected[:, : self.n_heads + self._groups]
        first, second = turning.chunk(2, dim=-1)
        turned = turning * cosine + torch.cat([-second, first], dim=-1) * sine
        return turned[:, : self.n_heads], turned[:, self.n_heads :], projected[:, self.n_heads + self._groups :]
