"""Checkpoints of the LLaVA families -> VisualModel: LLaVA-1.5, LLaVA-NeXT, ViP-LLaVA in Hugging Face format, and `llava`'s own.

Their processors' geometry is known, so that regions are; every way in which a checkpoint can be wrong ends in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    VipLlavaForConditionalGeneration,
)

from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.support import check_config, check_decoder
from lmms_visual_heads.checkpoints.adapters import adapter_folder, merge_adapter
from lmms_visual_heads.checkpoints.encoding import PromptEncoder
from lmms_visual_heads.checkpoints.known_models import compared_with_study
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.checkpoints.original import load_weights, read_checkpoint
from lmms_visual_heads.checkpoints.original_config import is_original
from lmms_visual_heads.checkpoints.processors import (
    describe_image_processor,
    image_aspect_of,
    load_processor,
    set_image_aspect,
)
from lmms_visual_heads.checkpoints.quantization import (
    countable,
    describe_quantization,
    quantization_settings,
    refuse_quantized_original,
)
from lmms_visual_heads.checkpoints.settings import LoadSettings
from lmms_visual_heads.checkpoints.sources import checked_source, no_such_checkpoint
from lmms_visual_heads.checkpoints.weights import hugging_face_weights
from lmms_visual_heads.errors import VisualHeadsError, first_line

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "vipllava": VipLlavaForConditionalGeneration,
}
"""Model types of config.json in Hugging Face format -> class."""

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose visual tokens are a plain grid of patches."""

_FORMATS = (
    "LLaVA-1.5 (llava), LLaVA-NeXT (llava_next) and ViP-LLaVA (vipllava) in Hugging Face format, and "
    "llava_llama, llava_mistral and llava_phi3 in the original format"
)
CROP_NOTE = (
    "images that are not square are cut to their middle square, as this processor says; the original LLaVA-1.5 and "
    "ViP-LLaVA code pads them to a square: image_aspect=pad"
)
"""Recorded where the two published formats of a model differ."""

_PROCESSOR_FILES = (
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "tokenizer.model", "vocab.json"),
)
"""A folder with one of each has a processor and a tokenizer."""


def is_llava(stored: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with this config.json is one of the LLaVA families with a tower that this module knows."""
    return is_original(dict(stored)) or (stored.get("model_type") in MODEL_CLASSES and _tower(stored) in TOWERS)


def check_llava(source: str, stored: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that `is_llava` denies, by its model type or its tower.

    Raises
    ------
    VisualHeadsError
        Says what is supported.
    """
    if is_llava(stored):
        return
    kind = stored.get("model_type")
    if kind not in MODEL_CLASSES:
        raise VisualHeadsError(
            f"Supported are {_FORMATS}; {source} has model_type {kind!r}. "
            "Give one of these, or read it with --model visual_heads_hf, without regions."
        )
    raise VisualHeadsError(
        f"The vision tower must be one of {', '.join(TOWERS)}; that of {source} is {_tower(stored)!r}. "
        "Give a checkpoint with one of these towers, or read it with --model visual_heads_hf, without regions."
    )


def _tower(stored: Mapping[str, Any]) -> str:
    """The tower's model type; a config.json that names none means CLIP, as for transformers."""
    vision = stored.get("vision_config")
    return str(vision.get("model_type", TOWERS[0])) if isinstance(vision, Mapping) else TOWERS[0]


def load_original(source: str, stored: dict[str, Any], name: str, settings: LoadSettings) -> VisualModel:
    """Load a checkpoint in the original format.

    Parameters
    ----------
    source : str
        Folder or hub id.
    stored : dict
        Its config.json.
    name : str
        Joins heads and scores.
    settings : LoadSettings

    Raises
    ------
    VisualHeadsError
        For whatever is missing, unsupported or damaged, and for a text model whose rows would be wrong.
    """
    refuse_quantized_original(source, stored, settings.quantization)
    if settings.device_map is not None:
        raise VisualHeadsError(
            f"device_map= spreads checkpoints in Hugging Face format; {source} is in the original format. "
            "Convert it first: visual-heads convert SRC DST."
        )
    device, dtype = settings.placement()
    base = None if settings.model_base is None else str(settings.model_base)
    checkpoint = read_checkpoint(source, stored, settings.revision, settings.conversation, settings.image_aspect, base)
    check_config(checkpoint.hugging_face_config())
    model = load_weights(checkpoint, dtype, device)
    check_decoder(model)
    adapted = _adapted(model, settings.peft)
    attach(model)
    processor = checkpoint.processor()
    description = _describe(name, settings.revision, model, processor) | checkpoint.description() | adapted
    return VisualModel(name, model, checkpoint.encoder(processor, model.config), description)


def load_hugging_face(source: str, stored: dict[str, Any], name: str, settings: LoadSettings) -> VisualModel:
    """Load a LLaVA checkpoint in Hugging Face format; parameters and errors as for `load_original`."""
    config = _config(source, settings.revision, stored)
    check_config(config)
    if settings.conversation is not None:
        raise VisualHeadsError(
            "conversation= names a template of the original llava format; "
            f"{source} is in Hugging Face format and has its own chat template. Leave conversation= out."
        )
    device, dtype = settings.placement()
    packed = quantization_settings(
        source, config.to_dict(), settings.quantization, dtype, device, adapted=settings.peft is not None
    )
    try:
        processor = _processor(source, config, settings.revision, settings.model_base)
        if settings.image_aspect is not None:
            set_image_aspect(processor, config, settings.image_aspect)
        encoder = PromptEncoder(processor, config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise VisualHeadsError(
            f"A checkpoint needs its processor and tokenizer files; those of {source} cannot be read "
            f"({first_line(error)}). Copy them from the repository that the checkpoint comes from, or give model_base=."
        ) from error
    quantized = describe_quantization(config.to_dict(), settings.quantization)
    model_class = MODEL_CLASSES[config.model_type]
    model = hugging_face_weights(
        source, config, settings.revision, dtype, device, model_class, packed, settings.device_map
    )
    check_decoder(model)
    adapted = _adapted(model, settings.peft)
    attach(model)
    description = _describe(name, settings.revision, model, processor) | adapted | quantized
    if description["image_aspect"] == "crop":
        description["image_aspect_note"] = CROP_NOTE
    return VisualModel(name, model, encoder, description)


def _config(source: str, revision: str | None, stored: dict[str, Any]) -> Any:
    """The checkpoint's config, of a supported model type and tower."""
    folder = Path(source)
    if folder.is_dir():
        check_llava(source, stored)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if folder.is_dir():
            raise VisualHeadsError(
                f"config.json must describe a model that transformers knows; that of {source} does not "
                f"({first_line(error)}). Supported: {_FORMATS}."
            ) from error
        raise no_such_checkpoint(source, revision, error) from error
    check_llava(source, config.to_dict())
    return config


def _processor(source: str, config: Any, revision: str | None, model_base: str | Path | None) -> Any:
    """The checkpoint's processor, or its base's where its folder lacks the processor or the tokenizer."""
    folder = Path(source)
    if model_base is not None and folder.is_dir():
        whole = all(any((folder / name).is_file() for name in names) for names in _PROCESSOR_FILES)
        if not whole:
            return load_processor(checked_source(model_base), config, None)
    return load_processor(source, config, revision)


def _adapted(model: PreTrainedModel, peft: str | Path | None) -> dict[str, Any]:
    """Merge the adapter `peft`, if any, and say so."""
    if peft is None:
        return {}
    return {"peft": str(peft), "peft_layers": merge_adapter(model, adapter_folder(peft))}


def _describe(name: str, revision: str | None, model: PreTrainedModel, processor: Any) -> dict[str, Any]:
    text_config = model.config.get_text_config(decoder=True)
    counted = countable(model)
    language = [*counted.model.language_model.parameters(), *counted.lm_head.parameters()]
    # rows of the embedding for the placeholder only (original format) are no parameters of the language model
    embedding = counted.get_input_embeddings().weight
    extra = embedding[counted.lm_head.weight.shape[0] :].numel()
    layers, heads = int(text_config.num_hidden_layers), int(text_config.num_attention_heads)
    return {
        "name": name,
        "revision": revision or getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "format": "huggingface",
        "layers": layers,
        "heads": heads,
        "language_model_parameters": sum({id(p): p.numel() for p in language}.values()) - extra,
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_processor": describe_image_processor(processor.image_processor),
        "image_aspect": image_aspect_of(processor.image_processor, model.config),
        **compared_with_study(name, layers, heads),
    }
