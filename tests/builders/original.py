"""Tiny random checkpoints in the original `llava` format, each with its Hugging Face twin: the same weights in a model
that transformers built itself. No network.

`original_checkpoint(folder, …)` writes one and returns the twin. Towers, shards and file formats can be chosen.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
"""(width, height), as the original has them."""
TOWER = "tower-56"
_CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. USER: What is this? ASSISTANT: a circle",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "How many of these are there? Answer with a number. How many people are pictured? 0 1 2 3 4 5 6 7 8 9",
    "[INST] Is there a red box in the image? [/INST] yes no blue green left right above below square triangle",
    "You are a helpful language and vision assistant.",
]


def sentencepiece_tokenizer(folder: Path, extra: tuple[str, ...] = ()) -> int:
    """Write tokenizer.model and its config; returns the number of tokens."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 20),
        model_writer=model,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
    )
    folder.joinpath("tokenizer.model").write_bytes(model.getvalue())
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = dict(enumerate(("<unk>", "<s>", "</s>"))) | {360 + i: token for i, token in enumerate(extra)}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": extra[0] if extra else "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "added_tokens_decoder": {
            str(i): {"content": token, **special, "rstrip": token.startswith("<|")} for i, token in added.items()
        },
    }
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(config))
    return 360 + len(extra)


def llama_3_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer with Llama-3's special tokens, which puts BOS in front and has no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(special)
    bos = tokenizer.token_to_id(special[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], bos)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1]).save_pretrained(
        folder
    )
    return tokenizer.get_vocab_size()


def original_checkpoint(
    folder: Path,
    *,
    model_type: str = "llava_llama",
    style: str = "pad",
    kv_heads: int = 4,
    llama_3: bool = False,
    weights: str = "safetensors",
    shards: int = 2,
    projector_beside: bool = False,
    tower: str = "beside",
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    extra_rows: int = 0,
    dtype: torch.dtype = torch.float32,
    **config_changes: Any,
) -> Any:
    """Write a random original checkpoint and return its Hugging Face twin, whose vocabulary has one row more.

    Parameters
    ----------
    folder : Path
    model_type : {"llava_llama", "llava", "llava_mistral", "llava_phi3"}
    style : {"pad", "square", "resize", "anyres", "vip"}
        image_aspect_ratio; "vip" is a ViP-LLaVA.
    kv_heads : int
    llama_3 : bool
        A Llama-3 tokenizer.
    weights : {"safetensors", "bin", "old bin"}
    shards : int
        1: one file without an index.
    projector_beside : bool
        Whether the projector lies in mm_projector.bin only.
    tower : {"inside", "beside", "parent", "in checkpoint", "nowhere"}
        Where the vision tower lies; "inside" the weights it is a trained one.
    extra_rows : int
        Rows of embedding and output beyond the tokenizer's length.
    dtype : torch.dtype
        Of the stored weights.
    **config_changes
        Fields of config.json; None removes one.
    """
    from transformers import CLIPVisionConfig

    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    phi_tokens = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    vocabulary = (
        llama_3_tokenizer(folder)
        if llama_3
        else sentencepiece_tokenizer(folder, phi_tokens if model_type == "llava_phi3" else ())
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=12 if style == "vip" else 3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=16,
    )
    twin = _twin(model_type, style, vision, vocabulary, kv_heads, hidden, layers, seed).to(dtype)
    name = "clip_4layers_336" if style == "vip" else TOWER
    text = twin.config.text_config
    config = {
        "model_type": model_type,
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": 5e5 if llama_3 else 1e4,
        "vocab_size": vocabulary + extra_rows,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "mm_vision_tower": name,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad" if style == "vip" else style,
        "unfreeze_mm_vision_tower": tower == "inside",
        **({"sliding_window": 2047, "original_max_position_embeddings": 2048} if model_type == "llava_phi3" else {}),
        **({"sliding_window": None} if model_type == "llava_mistral" else {}),
        **({"image_grid_pinpoints": PINPOINTS, "mm_patch_merge_type": "spatial_unpad"} if style == "anyres" else {}),
    }
    config = {
        key: value
        for key, value in {**config, **config_changes}.items()
        if value is not None or key == "sliding_window"
    }
    folder.joinpath("config.json").write_text(json.dumps(config))
    state = _original_names(twin.state_dict(), style, vocabulary, extra_rows)
    own = {key: value for key, value in state.items() if not key.startswith("vision_model.")}
    clip = {key: value for key, value in state.items() if key.startswith("vision_model.")}
    published = "openai/clip-vit-large-patch14-336" if style == "vip" else TOWER
    places = {"beside": folder.parent, "parent": folder.parent.parent, "in checkpoint": folder, "inside": folder.parent}
    if tower in places:
        where = places[tower] / published
        where.mkdir(parents=True, exist_ok=True)
        vision.save_pretrained(where)
        _preprocessor(where)
        if tower == "inside":
            own |= {f"model.vision_tower.vision_tower.{key}": value for key, value in clip.items()}
            # the published tower differs from the trained one inside
            clip = {key: torch.randn_like(value) for key, value in clip.items()}
        save_file(clip, where / "model.safetensors", metadata={"format": "pt"})
    if projector_beside:
        projector = {key: own.pop(key) for key in list(own) if "mm_projector" in key}
        torch.save(projector, folder / "mm_projector.bin")
    _save(folder, own, weights, shards)
    return twin


def _twin(
    model_type: str, style: str, vision: Any, vocabulary: int, kv_heads: int, hidden: int, layers: int, seed: int
) -> Any:
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        MistralConfig,
        Phi3Config,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    settings: dict[str, Any] = {
        "vocab_size": vocabulary + 1,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "rope_theta": 1e4,
    }
    if model_type == "llava_phi3":
        text: Any = Phi3Config(**settings, original_max_position_embeddings=2048, sliding_window=2047)
    elif model_type == "llava_mistral":
        text = MistralConfig(**settings, sliding_window=None)
    else:
        text = LlamaConfig(**settings)
    common = {"text_config": text, "vision_config": vision, "image_token_index": vocabulary, "image_seq_length": 16}
    torch.manual_seed(seed)
    if style == "vip":
        config = VipLlavaConfig(**common, vision_feature_layer=[-2, -5, -8, -11, 6])
        return VipLlavaForConditionalGeneration(config).eval()
    common |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    if style == "anyres":
        swapped = [[height, width] for width, height in PINPOINTS]
        return LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_grid_pinpoints=swapped)).eval()
    return LlavaForConditionalGeneration(LlavaConfig(**common)).eval()


def _original_names(state: dict[str, Any], style: str, vocabulary: int, extra_rows: int) -> dict[str, Any]:
    """The twin's weights under the original's names; tower weights under those of a CLIP file."""
    modules = {"linear_1": "0", "linear_2": "2"}
    if style == "vip":
        modules = {"linear_1": "final_linear.0", "linear_2": "final_linear.2", "projector_layernorm": "clip_layernorm"}
    renamed = {}
    for name, tensor in state.items():
        value = tensor.detach().clone()
        if name.endswith("embed_tokens.weight") or name == "lm_head.weight":
            value = torch.cat([value[:vocabulary], torch.randn(extra_rows, value.shape[1]).to(value)])
        inner = name.removeprefix("model.")
        if inner.startswith("multi_modal_projector."):
            _, module, leaf = inner.split(".")
            renamed[f"model.mm_projector.{modules[module]}.{leaf}"] = value
        elif inner.startswith("vision_tower."):
            renamed["vision_model." + inner.removeprefix("vision_tower.").removeprefix("vision_model.")] = value
        elif inner.startswith("language_model."):
            renamed["model." + inner.removeprefix("language_model.")] = value
        else:
            renamed[name] = value
    return renamed


def _preprocessor(folder: Path) -> None:
    """As published: sizes as plain numbers."""
    document = {
        "crop_size": 56,
        "size": 56,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    }
    folder.joinpath("preprocessor_config.json").write_text(json.dumps(document))


def _save(folder: Path, state: dict[str, Any], weights: str, shards: int) -> None:
    stem, ending = ("model", "safetensors") if weights == "safetensors" else ("pytorch_model", "bin")
    names = list(state)
    parts = [names[i::shards] for i in range(shards)]
    files = (
        [f"{stem}.{ending}"] if shards == 1 else [f"{stem}-{i + 1:05d}-of-{shards:05d}.{ending}" for i in range(shards)]
    )
    for file, part in zip(files, parts, strict=True):
        tensors = {name: state[name].contiguous() for name in part}
        if weights == "safetensors":
            save_file(tensors, folder / file, metadata={"format": "pt"})
        else:
            torch.save(tensors, folder / file, _use_new_zipfile_serialization=weights == "bin")
    if shards > 1:
        places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {}, "weight_map": places}
        folder.joinpath(f"{stem}.{ending}.index.json").write_text(json.dumps(index))
