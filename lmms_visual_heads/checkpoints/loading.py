"""A folder or hub id -> VisualModel. Every way in which a checkpoint can be wrong ends in one sentence.

Hugging Face format of LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA, and the original `llava` format (original.py). Weights are
safetensors or `weights_only` pickles; nothing that is loaded runs code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    VipLlavaForConditionalGeneration,
)

from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.checkpoints.adapters import adapter_folder, base_of, is_adapter, merge_adapter
from lmms_visual_heads.checkpoints.encoding import PromptEncoder
from lmms_visual_heads.checkpoints.known_models import compared_with_study
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.checkpoints.original import load_weights, read_checkpoint
from lmms_visual_heads.checkpoints.original_config import IMAGE_ASPECTS, is_original
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
    stored_quantization,
)
from lmms_visual_heads.errors import VisualHeadsError, first_line
from lmms_visual_heads.names import model_name as name_of

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "vipllava": VipLlavaForConditionalGeneration,
}
"""Supported model types of config.json -> class."""

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose visual tokens are a plain grid of patches."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_SUPPORTED = (
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

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def load_model(
    pretrained: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    conversation: str | None = None,
    model_name: str | None = None,
    image_aspect: str | None = None,
    model_base: str | Path | None = None,
    peft: str | Path | None = None,
    quantization: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> VisualModel:
    """Load a checkpoint for reading its attention heads.

    Parameters
    ----------
    pretrained : str or Path
        Folder or hub id.
    device : str, torch.device or None
        None: "cuda" where there is one, else "cpu".
    dtype : {"float32", "float16", "bfloat16", "auto"}, torch.dtype or None
        None: bfloat16 on a GPU, float32 on the CPU; "auto": as stored.
    revision : str or None
        Branch, tag or commit on the hub.
    conversation : str or None
        A conversation template of the original format, under the original's name (`conversations.CONVERSATIONS`); None:
        the one that the checkpoint was trained with. Refused for the Hugging Face format, which has a chat template.
    model_name : str or None
        None: the hub id, or the last two parts of the path.
    image_aspect : {"pad", "crop"} or None
        What happens to an image that is not square, for models with one view: padded to a square with the mean colour (as
        the original code does) or cut to the middle square (as the processors published in Hugging Face format do).
        None: as the checkpoint's files say.
    model_base : str, Path or None
        Where the checkpoint's folder is not whole: the base model of an original LoRA or projector folder, or the
        checkpoint whose processor or tokenizer a `checkpoint-*` folder lacks.
    peft : str, Path or None
        A LoRA adapter (folder or hub id) that is merged into the model. A folder with nothing but an adapter may also
        be given as `pretrained`.
    quantization : {"4bit", "8bit"} or None
        Quantise the weights on loading; needs the package bitsandbytes and a checkpoint in Hugging Face format. A
        checkpoint that is stored quantised is loaded as it is.
    device_map : str, dict or None
        Spreads one model over several devices, as transformers and accelerate do: "auto", "balanced", "sequential" or a
        mapping of modules. Instead of `device`; for the Hugging Face format.

    Returns
    -------
    VisualModel

    Raises
    ------
    VisualHeadsError
        No such checkpoint; not a supported one; files missing, truncated or not fitting each other; unknown device or
        dtype.

    Examples
    --------
    >>> model = load_model("llava-hf/llava-1.5-7b-hf")  # doctest: +SKIP
    """
    folder = Path(str(pretrained).strip() or ".").expanduser()
    if peft is None and str(pretrained).strip() and is_adapter(folder):
        base = model_base or base_of(folder)
        if base is None:
            raise VisualHeadsError(
                f"An adapter needs its base model; {folder} does not name it. Give model_base=FOLDER_OR_HUB_ID."
            )
        return load_model(
            base,
            device=device,
            dtype=dtype,
            conversation=conversation,
            model_name=name_of(str(pretrained), model_name),
            image_aspect=image_aspect,
            peft=folder,
            quantization=quantization,
            device_map=device_map,
        )
    source = checked_source(pretrained)
    check_device_map(device_map, device)
    if image_aspect is not None and image_aspect not in IMAGE_ASPECTS:
        raise VisualHeadsError(f"image_aspect must be pad or crop; got {image_aspect!r}. Choose one, or leave it out.")
    stored = stored_config(source, revision)
    if is_original(stored):
        refuse_quantized_original(source, stored, quantization)
        if device_map is not None:
            raise VisualHeadsError(
                f"device_map= spreads checkpoints in Hugging Face format; {source} is in the original format. "
                "Convert it first: visual-heads convert SRC DST."
            )
        where = choose_device(device)
        wanted = _dtype(dtype, where)
        base_name = None if model_base is None else str(model_base)
        checkpoint = read_checkpoint(source, stored, revision, conversation, image_aspect, base_name)
        model = load_weights(checkpoint, wanted, where)
        adapted = _adapted(model, peft)
        attach(model)
        processor = checkpoint.processor()
        description = _describe(source, revision, model_name, model, processor) | checkpoint.description() | adapted
        encoder: PromptEncoder = checkpoint.encoder(processor, model.config)
        return VisualModel(name_of(str(pretrained), model_name), model, encoder, description)
    config = _config(source, revision, stored)
    if conversation is not None:
        raise VisualHeadsError(
            "conversation= names a template of the original llava format; "
            f"{source} is in Hugging Face format and has its own chat template. Leave conversation= out."
        )
    where = choose_device(device)
    wanted = _dtype(dtype, where)
    packed = quantization_settings(source, config.to_dict(), quantization, wanted, where, adapted=peft is not None)
    try:
        processor = _processor(source, config, revision, model_base)
        if image_aspect is not None:
            set_image_aspect(processor, config, image_aspect)
        encoder = PromptEncoder(processor, config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise VisualHeadsError(
            f"A checkpoint needs its processor and tokenizer files; those of {source} cannot be read "
            f"({first_line(error)}). Copy them from the repository that the checkpoint comes from, or give model_base=."
        ) from error
    quantized = describe_quantization(config.to_dict(), quantization)
    model = _weights(source, config, revision, wanted, where, quantization=packed, device_map=device_map)
    adapted = _adapted(model, peft)
    attach(model)
    description = _describe(source, revision, model_name, model, processor) | adapted | quantized
    if description["image_aspect"] == "crop":
        description["image_aspect_note"] = CROP_NOTE
    return VisualModel(name_of(str(pretrained), model_name), model, encoder, description)


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


def checked_source(pretrained: str | Path) -> str:
    """The folder or hub id as transformers wants it; refuses what is neither."""
    text = str(pretrained).strip()
    if not text:
        raise VisualHeadsError("A checkpoint is a folder or a hub id; pretrained= is empty. Give one of them.")
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise VisualHeadsError(
                f"A checkpoint's folder needs config.json; {folder} has none. "
                "Give the folder that holds the weights, or a hub id."
            )
        return str(folder)
    if folder.exists():
        raise VisualHeadsError(f"A checkpoint is a folder or a hub id; {folder} is a file. Give its folder.")
    if not _HUB_ID.match(text):
        raise VisualHeadsError(f"A checkpoint is a folder or a hub id; there is no folder {text}. Check the path.")
    return text


def stored_config(source: str, revision: str | None) -> dict[str, Any]:
    """The checkpoint's config.json as it stands."""
    folder = Path(source)
    if folder.is_dir():
        try:
            stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VisualHeadsError(
                f"config.json must be a JSON document; {folder / 'config.json'} cannot be read "
                f"({first_line(error)}). Copy it again from where the checkpoint comes from."
            ) from error
        if not isinstance(stored, dict):
            raise VisualHeadsError(
                f"config.json must be a JSON object; {folder / 'config.json'} is not. Copy it again."
            )
        return stored
    try:
        return PretrainedConfig.get_config_dict(source, revision=revision)[0]
    except (OSError, ValueError, KeyError) as error:
        raise _no_such_checkpoint(source, revision, error) from error


def _no_such_checkpoint(source: str, revision: str | None, error: BaseException) -> VisualHeadsError:
    return VisualHeadsError(
        f"No such checkpoint: {source} is no folder here, and the hub did not give it"
        f"{f' at revision {revision}' if revision else ''} ({first_line(error)}). "
        "Check the spelling, the network (HF_HUB_OFFLINE) and your access."
    )


def _config(source: str, revision: str | None, stored: dict[str, Any]) -> Any:
    """The checkpoint's config, of a supported model type."""
    folder = Path(source)
    if folder.is_dir():
        _check_type(source, stored)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if folder.is_dir():
            raise VisualHeadsError(
                f"config.json must describe a model that transformers knows; that of {source} does not "
                f"({first_line(error)}). Supported: {_SUPPORTED}."
            ) from error
        raise _no_such_checkpoint(source, revision, error) from error
    _check_type(source, {"model_type": config.model_type})
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        raise VisualHeadsError(
            f"The vision tower must be one of {', '.join(TOWERS)}; that of {source} is {tower!r}. "
            "Give a checkpoint with one of these towers."
        )
    return config


def _check_type(source: str, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in MODEL_CLASSES:
        raise VisualHeadsError(
            f"Supported are {_SUPPORTED}; {source} has model_type {kind!r}. "
            "Give one of these, or read it with --model visual_heads_hf (load_any_model), without regions."
        )


DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(device_map: str | dict[str, Any] | None, device: str | torch.device | None) -> None:
    """Refuse an unknown device map, and one beside a device."""
    if device_map is None:
        return
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise VisualHeadsError(
            f"device_map must be one of {', '.join(DEVICE_MAPS)}; {device_map!r} came. Write device_map=auto."
        )
    if device is not None:
        raise VisualHeadsError(
            f"device_map= chooses the devices itself; device={device} came beside it. Leave one of them out."
        )


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None: a GPU where torch sees one. A name that is none, or a GPU that is not there, is refused."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise VisualHeadsError(
            f"device must be a torch device such as cpu, cuda or cuda:1; got {device!r}. Choose one of these."
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise VisualHeadsError(
            f"device {str(device)!r} needs {(found.index or 0) + 1} GPU(s); torch sees {torch.cuda.device_count()}. "
            "Use device=cpu, or install a torch build for your GPU."
        )
    return found


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise VisualHeadsError(f"dtype must be one of {', '.join(DTYPES)} or auto; got {dtype!r}. Choose one of these.")
    return DTYPES[dtype]


def _weights(
    source: str,
    config: Any,
    revision: str | None,
    dtype: torch.dtype | str,
    device: torch.device,
    model_class: Any = None,
    quantization: Any = None,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode on `device` or spread by `device_map`; every weight must come from the checkpoint."""
    model_class = model_class or MODEL_CLASSES[config.model_type]
    packed = quantization is not None or stored_quantization(config.to_dict()) is not None
    placement: dict[str, Any] = {"device_map": {"": device}} if device.type != "cpu" or packed else {}
    if device_map is not None:
        placement["device_map"] = device_map
    if quantization is not None:
        placement["quantization_config"] = quantization
    try:
        model, report = model_class.from_pretrained(
            source, config=config, revision=revision, dtype=dtype, output_loading_info=True, **placement
        )
    except UnpicklingError as error:
        raise VisualHeadsError(
            f"A checkpoint's .bin files must hold nothing but tensors; one of {source} is damaged or wants to run code, "
            "and was not read further. Convert it to safetensors where you trust it, or copy it again."
        ) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise VisualHeadsError(
            f"A checkpoint's weight files must be whole and fit its config.json; those of {source} do not "
            f"({first_line(error)}). Copy the missing or truncated file again."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise VisualHeadsError(
            f"A checkpoint must hold every weight of its model; {source} lacks {len(missing)}, such as {missing[0]}. "
            "Copy the missing files again."
        )
    # every call says max_new_tokens; a stored max_length would only make transformers warn at each of them
    model.generation_config.max_length = None
    return model.eval()


def _describe(
    source: str, revision: str | None, model_name: str | None, model: PreTrainedModel, processor: Any
) -> dict[str, Any]:
    text_config = model.config.get_text_config(decoder=True)
    counted = countable(model)
    language = [*counted.model.language_model.parameters(), *counted.lm_head.parameters()]
    # rows of the embedding for the placeholder only (original format) are no parameters of the language model
    embedding = counted.get_input_embeddings().weight
    extra = embedding[counted.lm_head.weight.shape[0] :].numel()
    name = name_of(source, model_name)
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
