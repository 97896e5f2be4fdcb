"""Random tiny checkpoints of other vision-language families, with their own processors, built without a network.

`any_checkpoint(kind, folder)` writes one; `ANY_KINDS` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.builders.tiny import tiny_tokenizer

BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
ROPE_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def template(image: str, start: str = "USER: ") -> str:
    """A chat template whose images are written as `image`."""
    return (
        start
        + "{% for m in messages %}{% if m['role']=='assistant' %}ASSISTANT: {% endif %}"
        + "{% for c in m['content'] %}{% if c['type']=='image' %}"
        + image
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}"
        + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )


def tokenizer_with(named: dict[str, str], *more: str) -> Any:
    """The tiny tokenizer with further special tokens, the named ones as attributes."""
    from transformers import PreTrainedTokenizerFast

    base = tiny_tokenizer()
    base.add_special_tokens({"additional_special_tokens": [*named.values(), *more]})
    return PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>", **named},
    )


def text_settings(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**TEXT, **special, "vocab_size": len(tokenizer), **changes}


def builder(name: str) -> Callable[[Callable[[], tuple[Any, Any]]], Callable[[], tuple[Any, Any]]]:
    def register(function: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
        BUILDERS[name] = function
        return function

    return register


def _qwen_processor(processor_class: Any, patch: int) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = tokenizer_with(named)
    unit = (2 * patch) ** 2
    size = {"shortest_edge": unit, "longest_edge": 20 * unit}
    video_class = Qwen3VLVideoProcessor if "3" in processor_class.__name__ else Qwen2VLVideoProcessor
    chat = template("<|vision_start|><|image_pad|><|vision_end|>")
    return processor_class(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=patch, merge_size=2, temporal_patch_size=2),
        tokenizer=tokenizer,
        video_processor=video_class(size=size, patch_size=patch, merge_size=2, temporal_patch_size=2),
        chat_template=chat,
    )


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


@builder("qwen2-vl")
def _qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    processor = _qwen_processor(Qwen2VLProcessor, 14)
    text = text_settings(processor.tokenizer, rope_parameters=ROPE_SECTIONS)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **_qwen_ids(processor.tokenizer))
    return Qwen2VLForConditionalGeneration(config), processor


@builder("qwen2.5-vl")
def _qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    processor = _qwen_processor(Qwen2_5_VLProcessor, 14)
    text = text_settings(processor.tokenizer, rope_parameters=ROPE_SECTIONS)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_ids(processor.tokenizer))
    return Qwen2_5_VLForConditionalGeneration(config), processor


@builder("qwen3-vl")
def _qwen3_vl() -> tuple[Any, Any]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    processor = _qwen_processor(Qwen3VLProcessor, 16)
    sections = {**ROPE_SECTIONS, "mrope_interleaved": True}
    text = text_settings(processor.tokenizer, rope_parameters=sections, head_dim=16)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(processor.tokenizer))
    return Qwen3VLForConditionalGeneration(config), processor


@builder("internvl")
def _internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = tokenizer_with({**named, "video_token": "<video>"})
    size = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n"),
    )
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": [28, 28], "patch_size": [7, 7],
    }  # fmt: skip
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config), processor


@builder("llava-onevision")
def _llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = tokenizer_with({"video_token": "<video>"})
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    size = {"height": 28, "width": 28}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": 28, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _siglip(size: int, patch: int) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": size, "patch_size": patch, "vision_use_head": False,
    }  # fmt: skip


@builder("gemma3")
def _gemma3() -> tuple[Any, Any]:
    """Layers 0 and 1 see 12 positions only; layer 2 sees all."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tokenizer_with(named)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>", start="{{ bos_token }}USER: "),
    )
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    text = text_settings(
        tokenizer, head_dim=16, sliding_window=12, layer_types=kinds, query_pre_attn_scalar=16, use_cache=True
    )
    ids = {f"{name}_token_index": getattr(tokenizer, f"{name}_token_id") for name in ("boi", "eoi", "image")}
    config = Gemma3Config(text_config=text, vision_config=_siglip(28, 7), mm_tokens_per_image=4, **ids)
    return Gemma3ForConditionalGeneration(config), processor


@builder("idefics3")
def _idefics3() -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    tokenizer = tokenizer_with({}, "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places)
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": 28, "patch_size": 7,
    }  # fmt: skip
    config = Idefics3Config(
        text_config={"model_type": "llama", **text_settings(processor.tokenizer)},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config), processor


def _paligemma_with(text_type: str, **text_changes: Any) -> tuple[Any, Any]:
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    image_processor = SiglipImageProcessor(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer_with({}))
    tokenizer = processor.tokenizer
    config = PaliGemmaConfig(
        text_config={"model_type": text_type, **text_settings(tokenizer, head_dim=16, **text_changes)},
        vision_config={**_siglip(28, 14), "projection_dim": 64},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        hidden_size=64,
        vocab_size=len(tokenizer),
    )
    return PaliGemmaForConditionalGeneration(config), processor


@builder("paligemma")
def _paligemma() -> tuple[Any, Any]:
    return _paligemma_with("gemma")


@builder("paligemma2")
def _paligemma2() -> tuple[Any, Any]:
    """Soft-capped attention: to be refused."""
    return _paligemma_with("gemma2", query_pre_attn_scalar=16, attn_logit_softcapping=50.0)


@builder("mistral3")
def _mistral3() -> tuple[Any, Any]:
    """A family that nothing in the product names: dynamic resolution, separator tokens between rows."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    tokenizer = tokenizer_with({}, "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 112}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=template("[IMG]"),
    )
    vision = {
        "model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "image_size": 112, "patch_size": 14, "head_dim": 16,
    }  # fmt: skip
    config = Mistral3Config(
        text_config={"model_type": "mistral", **text_settings(tokenizer, sliding_window=None, head_dim=16)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return Mistral3ForConditionalGeneration(config), processor


@builder("lfm2-vl")
def _lfm2_vl() -> tuple[Any, Any]:
    """A hybrid: layer 1 is a convolution without attention."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlImageProcessor, Lfm2VlProcessor

    named = {"image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    tokenizer = tokenizer_with({**named, "image_thumbnail_token": "<|img_thumbnail|>"})
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            tile_size=56, encoder_patch_size=14, downsample_factor=2, min_image_tokens=2, max_image_tokens=8,
            max_num_patches=64, do_image_splitting=False,
        ),
        tokenizer=tokenizer,
        chat_template=template("<image>"),
    )  # fmt: skip
    kinds = ["full_attention", "conv", "full_attention"]
    text = text_settings(tokenizer, layer_types=kinds, block_ff_dim=96, block_multiple_of=8)
    vision = {
        "model_type": "siglip2_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "num_patches": 64, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = Lfm2VlConfig(
        text_config={"model_type": "lfm2", **text},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
        downsample_factor=2,
    )
    return Lfm2VlForConditionalGeneration(config), processor


def any_checkpoint(kind: str, folder: Path) -> Path:
    """Write a random checkpoint of `kind` in Hugging Face format, with its processor."""
    torch.manual_seed(0)
    model, processor = BUILDERS[kind]()
    for name, parameter in model.named_parameters():
        if "layer_norm" in name or "norm" in name:
            continue
        if parameter.dim() > 1 and parameter.std() < 0.1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
