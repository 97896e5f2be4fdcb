"""Attention rows out of one `generate` call.

The answers are those of the same call without us, token for token. `first_generated` reads the first decode step
(K = prompt + 1); where generation ended after one token, that step is run from the cache, or by a second `generate`
call that is given the token (models with dynamic resolution and others). With beams and other decoding loops, rows and
logits come from separate passes over prompt + first answer token.
Shapes: L layers, B batch, H heads, K key positions, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from lmms_visual_heads.capture.forced import forced_generation
from lmms_visual_heads.capture.layers import attention_layers, steps_from_cache
from lmms_visual_heads.capture.reader import ForwardReader
from lmms_visual_heads.capture.rows import stack_rows
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import QUERIES

_OTHER_LOOPS = ("assistant_model", "prompt_lookup_num_tokens", "custom_generate", "prefill_chunk_size", "dola_layers")


@dataclass(frozen=True, slots=True)
class CapturedGeneration:
    """What one `generate` call gave.

    Attributes
    ----------
    tokens : Tensor [B, T]
        Generated tokens, padded after a row's end.
    rows : Tensor [L, B, H, K] float32, or None
        Rows of the wanted query, on the model's device.
    first_logits : Tensor [B, V] float32
        Raw logits that token 0 was drawn from.
    second_logits : Tensor [B, V] float32, or None
        Raw logits after token 0, where that step was run.
    log_probabilities : Tensor [B, T], or None
        Of every generated token under the raw logits; None with beams.
    """

    tokens: Tensor
    rows: Tensor | None
    first_logits: Tensor
    second_logits: Tensor | None
    log_probabilities: Tensor | None


def check_query(query: str | None) -> None:
    """Refuse a query that is not one of schema.QUERIES (None: no rows)."""
    if query is not None and query not in QUERIES:
        raise VisualHeadsError(f"query must be one of {', '.join(QUERIES)}; got {query!r}. Choose one of them.")


@torch.inference_mode()
def generate_with_rows(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    query: str | None,
    settings: Mapping[str, Any],
    cache: Cache | None = None,
) -> CapturedGeneration:
    """Run `model.generate(**inputs, **settings)` and read the rows of `query`.

    Parameters
    ----------
    model : PreTrainedModel
        A model after `attach`.
    inputs : mapping of Tensor
        `input_ids` [B, prompt], `attention_mask`, pixels; prompts of one length, without padding.
    query : {"first_generated", "last_prompt"} or None
        None reads no rows.
    settings : mapping
        Keyword arguments of `generate`.
    cache : Cache or None
        A branch of a prefix (`capture.prefix`) that these prompts begin with: `inputs` then holds the whole prompts, but no
        pixels, and `prefix.can_reuse_prefix` holds for the settings. It is used up.

    Raises
    ------
    VisualHeadsError
        When `query` is none of the two.
    """
    check_query(query)
    length = inputs["input_ids"].shape[1]
    if needs_passes_of_our_own(model, settings):
        return _generate_then_read(model, inputs, query, settings)
    row_pass = {None: None, "last_prompt": 0, "first_generated": 1}[query]
    wanted = dict(settings)
    one_token = settings.get("max_new_tokens") == 1 and not settings.get("do_sample")
    if query == "first_generated" and one_token and not steps_from_cache(model):
        wanted["max_new_tokens"] = 2  # the second token is dropped; its step gives the rows
    if cache is not None:
        wanted["past_key_values"] = cache
    with ForwardReader(model, row_pass) as reader:
        output = model.generate(**inputs, **wanted, return_dict_in_generate=True)
    if not reader.first_logits:
        raise VisualHeadsError(
            f"Reading attention rows needs a model whose `generate` calls its own forward; that of "
            f"{type(model).__name__} calls another model's. Run it with lmms-eval's own wrapper."
        )
    tokens = output.sequences[:, length:][:, : settings.get("max_new_tokens")]
    step_cache = getattr(output, "past_key_values", None) if reader.n_passes == 1 else None
    del output, cache  # it holds the cache of the whole answer
    second_logits = reader.first_logits[1] if len(reader.first_logits) > 1 else None
    attentions = reader.attentions
    if query == "first_generated" and reader.n_passes == 1:
        attentions, second_logits = _step_after(model, inputs, tokens[:, :1], step_cache, settings, read_rows=True)
    rows = rows_of_pass(model, attentions, length, query)
    return CapturedGeneration(
        tokens, rows, reader.first_logits[0], second_logits, reader.token_log_probabilities(tokens)
    )


def needs_passes_of_our_own(model: PreTrainedModel, settings: Mapping[str, Any]) -> bool:
    """Whether `generate` will not run one prefill and then one step per token of each answer."""
    for name in ("num_beams", "num_return_sequences"):
        wanted = settings.get(name, getattr(model.generation_config, name, None))
        if wanted is not None and wanted > 1:
            return True
    return any(settings.get(name) is not None for name in _OTHER_LOOPS)


def rows_of_pass(
    model: PreTrainedModel, attentions: tuple[Tensor, ...] | None, length: int, query: str | None
) -> Tensor | None:
    """Stacked rows [L, B, H, K] of the wanted pass, NaN in layers without attention; None without a query.

    Raises
    ------
    VisualHeadsError
        When a layer with attention gave no row.
    """
    if query is None:
        return None
    layer_rows = [row for row in attentions or () if row is not None]
    text_config = model.config.get_text_config(decoder=True)
    n_layers = int(text_config.num_hidden_layers)
    layers = list(range(n_layers)) if len(layer_rows) == n_layers else attention_layers(text_config)
    if len(layer_rows) != len(layers):
        raise VisualHeadsError(
            f"Every one of the {len(layers)} layers must return its attention row; {len(layer_rows)} did (attention "
            f"implementation {text_config._attn_implementation!r}). Load the model with load_model."
        )
    rows = stack_rows(layer_rows, length + (query == "first_generated"))
    if len(layers) == n_layers:
        return rows
    every = rows.new_full((n_layers, *rows.shape[1:]), float("nan"))
    every[layers] = rows  # layers without attention (convolution, linear attention) have no row
    return every


def _generate_then_read(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], query: str | None, settings: Mapping[str, Any]
) -> CapturedGeneration:
    batch, length = inputs["input_ids"].shape
    sequences = model.generate(**inputs, **{**settings, "return_dict_in_generate": False})
    tokens = sequences.view(batch, -1, sequences.shape[1])[:, 0, length:]
    with ForwardReader(model, 0 if query == "last_prompt" else None) as reader:
        output = model.generate(**inputs, **_one_token(settings), return_dict_in_generate=True)
    cache = getattr(output, "past_key_values", None)
    attentions, second_logits = _step_after(
        model, inputs, tokens[:, :1], cache, settings, read_rows=query == "first_generated"
    )
    attentions = reader.attentions if query == "last_prompt" else attentions
    rows = rows_of_pass(model, attentions, length, query)
    return CapturedGeneration(tokens, rows, reader.first_logits[0], second_logits, None)


def _step_after(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    token: Tensor,
    cache: Any,
    settings: Mapping[str, Any],
    *,
    read_rows: bool,
) -> tuple[tuple[Tensor, ...] | None, Tensor]:
    """The decode step on `token` [B, 1] after the prompt: (rows per layer or None, raw logits [B, V])."""
    if not steps_from_cache(model):
        pad = settings.get("pad_token_id") or 0
        tokens = torch.cat([token, token], dim=1)
        forced = forced_generation(model, inputs, tokens, 1 if read_rows else None, int(pad))
        return forced.attentions, forced.logits[1]
    ids = torch.cat([inputs["input_ids"], token.to(inputs["input_ids"])], dim=1)
    rest = {} if cache is not None else {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with ForwardReader(model, 0 if read_rows else None) as reader:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            **rest,
            **_one_token(settings),
        )
    return reader.attentions, reader.first_logits[0]


def _one_token(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a greedy `generate` call of one token, in which nothing is drawn at random."""
    special = {name: settings[name] for name in ("eos_token_id", "pad_token_id") if name in settings}
    return {**special, "max_new_tokens": 1, "do_sample": False, "num_beams": 1, "num_return_sequences": 1}
