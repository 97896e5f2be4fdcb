"""Random tiny LLaVA-family checkpoints with a working processor, built in seconds without a network.

`tiny_checkpoint(kind, folder)` writes one; the fixture `tiny` gives the folder of any kind, built once per session.
`real_shapes(...)` writes one with the shapes of a published model (336 pixels, 24 x 24 patches, 32 x 32 heads) and a
tiny hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints.model import VisualModel

KINDS = (
    "llava-llama",
    "llava-llama3",
    "llava-mistral",
    "llava-mistral-window",
    "llava-phi3",
    "llavanext-llama",
    "llavanext-mistral",
    "vipllava-llama",
)
QUESTION = "How many of these are there? Answer with a number."
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]

_CORPUS = [
    "USER: What color is the circle at the point? Answer the question using a single word or phrase. ASSISTANT: red",
    "Is there a dog in the image? yes no blue green left right above below square triangle supercategory object",
    "How many of these are there? Answer with a number. How many people are pictured? 0 1 2 3 4 5 6 7 8 9",
    "A chat between a curious user and an assistant. The assistant gives helpful answers. What shape is this?",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role']=='user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type']=='image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type']=='text' %}{{ c['text'] }}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tiny_tokenizer(double_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer trained on a few lines; puts BOS in front (twice on request)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A" if double_bos else "<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def _text_config(kind: str, tokenizer: Any, **changes: Any) -> Any:
    from transformers import Gemma2Config, GptOssConfig, LlamaConfig, MistralConfig, Phi3Config

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        **changes,
    }
    if kind == "llama":
        return LlamaConfig(**settings)
    if kind == "llama3":
        return LlamaConfig(**{**settings, "num_key_value_heads": 2, "rope_theta": 500000.0})
    if kind == "mistral":
        return MistralConfig(**{"sliding_window": None, **settings, "num_key_value_heads": 2})
    if kind == "phi3":
        return Phi3Config(**settings, original_max_position_embeddings=2048)
    if kind == "gemma2":  # its scores are soft-capped
        return Gemma2Config(**settings, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=0.5)
    if kind == "gptoss":  # it has learned attention sinks
        return GptOssConfig(**settings, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
    raise KeyError(kind)


def tiny_checkpoint(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    image_size: int = 56,
    patch_size: int = 14,
    pinpoints: list[list[int]] | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    double_bos: bool = False,
    **text_changes: Any,
) -> Path:
    """Write a random checkpoint in Hugging Face format.

    Parameters
    ----------
    kind : str
        One of `KINDS`, or "llava-gemma2", "llava-gptoss", which are refused.
    folder : Path
        Written to, with config.json, weights, tokenizer and processor files.
    seed : int
        Of the weights.
    image_size, patch_size : int
        Of the vision tower, pixels.
    pinpoints : list of (height, width) or None
        Of llavanext kinds; None: `PINPOINTS`.
    chat_template : str or None
        None: the checkpoint has none.
    double_bos : bool
        Whether prompts start with two BOS tokens, as Llama-3's do.
    **text_changes
        Fields of the text model's config.
    """
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaProcessor,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    tokenizer = tiny_tokenizer(double_bos)
    family, text_kind = kind.split("-")[:2]
    if kind == "llava-mistral-window":
        text_changes = {"sliding_window": 24, **text_changes}
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6 if family == "vipllava" else 3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=32,
    )
    common: dict[str, Any] = {
        "vision_config": vision,
        "text_config": _text_config(text_kind, tokenizer, **text_changes),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "projector_hidden_act": "gelu",
        "image_seq_length": (image_size // patch_size) ** 2,
    }
    square = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": chat_template,
    }
    torch.manual_seed(seed)
    if family == "llavanext":
        sizes = pinpoints or PINPOINTS
        config = LlavaNextConfig(
            **common, vision_feature_layer=-2, vision_feature_select_strategy="default", image_grid_pinpoints=sizes
        )
        model = LlavaNextForConditionalGeneration(config)
        image_processor = LlavaNextImageProcessor(size=square[0], crop_size=square[1], image_grid_pinpoints=sizes)
        processor = LlavaNextProcessor(image_processor=image_processor, **settings)
    else:
        if family == "vipllava":
            model = VipLlavaForConditionalGeneration(
                VipLlavaConfig(**common, vision_feature_layers=[-2, -3, -4, -5, 2])
            )
        else:
            config = LlavaConfig(**common, vision_feature_layer=-2, vision_feature_select_strategy="default")
            model = LlavaForConditionalGeneration(config)
        image_processor = CLIPImageProcessor(size=square[0], crop_size=square[1])
        processor = LlavaProcessor(image_processor=image_processor, **settings)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def real_shapes(kind: str, folder: Path, **text_changes: Any) -> Path:
    """A random checkpoint with published shapes: 336 pixels, 24 x 24 patches, 32 x 32 heads, hidden size 64."""
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    shapes = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 64}
    return tiny_checkpoint(
        kind,
        folder,
        image_size=336,
        pinpoints=pinpoints,
        **{**shapes, "max_position_embeddings": 4096, "initializer_range": 0.05, **text_changes},
    )


def noise_image(width: int = 56, height: int = 56, seed: int = 0) -> Image.Image:
    """A reproducible random image."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def loaded(tiny: Callable[[str], Path]) -> Callable[[str], VisualModel]:
    """`loaded(kind)`: the tiny checkpoint of a kind as a model in float32, loaded once per module."""
    return cache(lambda kind: load_model(tiny(kind), device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny(kind)`: folder of a tiny checkpoint, built on first use and shared by the session."""
    torch.set_num_threads(1)
    built: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in built:
            built[kind] = tiny_checkpoint(kind, tmp_path_factory.mktemp("tiny") / kind)
        return built[kind]

    return get
