"""Builds a small LLaVA: CLIP tower, projector and Llama language model, with an initialisation that learns quickly."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaProcessor,
)

from lab.zoo.settings import Training
from lab.zoo.vocabulary import IMAGE, MAX_POSITIONS
from lmms_visual_heads.probe.layout import KINDS, SUPERCATEGORIES

SmallLlava: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration

EMBEDDING_NORM = 0.8
"""Norm that a token's embedding starts with; the default deviation of 0.02 learns nothing at this size."""


def tower_config(training: Training) -> CLIPVisionConfig:
    """Configuration of the vision tower."""
    return CLIPVisionConfig(
        hidden_size=training.tower_hidden,
        intermediate_size=4 * training.tower_hidden,
        num_hidden_layers=training.tower_layers,
        num_attention_heads=training.tower_heads,
        image_size=training.image_size,
        patch_size=training.patch_size,
        projection_dim=training.tower_hidden,
    )


def build_model(training: Training, processor: LlavaProcessor) -> SmallLlava:
    """The untrained model in float32, deterministic in `training.seed`."""
    torch.manual_seed(training.seed)
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=training.hidden,
        intermediate_size=training.feed_forward * training.hidden,
        num_hidden_layers=training.layers,
        num_attention_heads=training.heads,
        num_key_value_heads=training.key_value_heads or training.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=EMBEDDING_NORM / training.hidden**0.5,
        **ids,
    )
    common: dict[str, Any] = {
        "vision_config": tower_config(training),
        "text_config": text_config,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": (training.image_size // training.patch_size) ** 2,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        **ids,
    }
    if training.anyres:
        pinpoints = [[2 * training.image_size, 2 * training.image_size]]
        model: SmallLlava = LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_grid_pinpoints=pinpoints))
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**common))
    model.generation_config = GenerationConfig(**ids)
    _match_and_copy(model)
    _relate_words(model, processor)
    return model


@torch.no_grad()
def _match_and_copy(model: SmallLlava, gain: float = 1.5) -> None:
    """Mimetic initialisation (Trockman and Kolter 2023): attention starts as "look for what is like me and copy it"."""
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.mul_(gain)
        groups, width = attention.num_key_value_groups, attention.head_dim
        # Grouped-query heads share keys and values: a key head starts like the first query head of its group.
        queries = attention.q_proj.weight.unflatten(0, (-1, groups, width))
        attention.k_proj.weight.mul_(0.7 * gain).add_(queries[:, 0].flatten(0, 1), alpha=0.7)
        values = attention.v_proj.weight.unflatten(0, (-1, width)).repeat_interleave(groups, dim=0).flatten(0, 1)
        attention.o_proj.weight.mul_(0.5).add_(values.T, alpha=0.7 / groups**0.5)


@torch.no_grad()
def _relate_words(model: SmallLlava, processor: LlavaProcessor) -> None:
    """Let a plural start near its singular, and the word of a supercategory near its kinds."""
    weight = model.get_input_embeddings().weight
    index = processor.tokenizer.convert_tokens_to_ids
    for kind in KINDS:
        if kind.plural != kind.name:
            weight[index(kind.plural)] = 0.7 * weight[index(kind.plural)] + 0.7 * weight[index(kind.name)]
    for supercategory in SUPERCATEGORIES:
        members = [index(kind.name) for kind in KINDS if kind.supercategory == supercategory]
        weight[index(supercategory)] = 0.5 * weight[index(supercategory)] + 0.5 * weight[members].sum(0)
