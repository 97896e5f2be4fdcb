"""LoRA adapters merged into a loaded model: W + scale * B A, layer by layer. The peft package is not needed.

Adapters trained on original checkpoints and on Hugging Face ones name the same layers differently; both are understood.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from lmms_visual_heads.checkpoints.original_files import hugging_face_name, opened, plain_name
from lmms_visual_heads.errors import VisualHeadsError

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MATRIX = re.compile(r".+\.lora_[AB]\.(?:default\.)?weight")
_RENAMED = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
"""Names in adapters of older transformers -> names now."""

_SAYS_NOTHING = frozenset((
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size",
    "r", "revision", "runtime_config", "target_modules", "task_type",
))  # fmt: skip
"""Fields of peft's config that do not change what is merged: how it was trained, and which layers, which the tensors say, too."""

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (True, False),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""Fields with the values that a merge by W + scale * B A is right for. Other initialisations (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA)
change the base's weights, too. Every other field must be empty: what is not known may change anything."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str | None:
    """The base model that an adapter's config names."""
    name = _config(folder).get("base_model_name_or_path")
    return str(name) if name else None


def adapter_folder(adapter: str | Path) -> Path:
    """The adapter's folder on this machine.

    Raises
    ------
    VisualHeadsError
        When it is neither a folder nor on the hub.
    """
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(adapter), allow_patterns=[CONFIG, *_WEIGHTS]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError) as error:
        raise VisualHeadsError(
            f"peft= must name a folder or a hub id with {CONFIG}; {adapter} is no folder here, and the hub did not give it. "
            "Check the spelling, the network (HF_HUB_OFFLINE) and your access."
        ) from error


@torch.no_grad()
def merge_adapter(model: Any, folder: Path) -> int:
    """Merge the LoRA adapter in `folder` into `model` and return the number of layers that changed.

    Raises
    ------
    VisualHeadsError
        When it is no plain LoRA, is damaged, or names layers that the model does not have.
    """
    config = _config(folder)
    factor, default_rank = _scale(folder, config)
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder / _WEIGHTS[0])
    places = dict(model.named_parameters())
    with opened(path) as weights:
        pairs = {name for name in weights.names if _MATRIX.fullmatch(name) and ".lora_A." in name}
        strangers = [name for name in weights.names if not _MATRIX.fullmatch(name)]
        strangers += sorted(
            {name.replace(".lora_A.", ".lora_B.") for name in pairs} ^ (set(weights.names) - pairs - {*strangers})
        )
        if not pairs or strangers:
            raise VisualHeadsError(
                f"A LoRA adapter holds pairs of lora_A and lora_B matrices and nothing else; {path} is not so: "
                f"{strangers[0] if strangers else 'it has none'}. Merge it with the tool that made it, and give the merged "
                "checkpoint."
            )
        for name in sorted(pairs):
            layer = _layer(name, places)
            if layer is None:
                raise VisualHeadsError(
                    f"Every layer of an adapter must be in its base model; {path} changes {name.split('.lora_A.')[0]}, which "
                    f"{type(model).__name__} does not have. Give the base model that the adapter was trained on."
                )
            down, up = weights.tensor(name).float(), weights.tensor(name.replace(".lora_A.", ".lora_B.")).float()
            weight = places[layer]
            if (up.shape[0], down.shape[1]) != tuple(weight.shape) or down.shape[0] != default_rank:
                raise VisualHeadsError(
                    f"An adapter's matrices must fit its config and its base model; {name} in {path} does not. "
                    "Give the base model that the adapter was trained on."
                )
            change: Tensor = (up.to(weight.device) @ down.to(weight.device)) * factor
            weight.copy_((weight.float() + change).to(weight.dtype))
    return len(pairs)


def _layer(name: str, places: dict[str, Any]) -> str | None:
    """The model's weight that an adapter's matrix changes."""
    stored = name.split(".lora_A.")[0].removeprefix("base_model.model.") + ".weight"
    candidates = [stored, hugging_face_name(plain_name(stored))]
    candidates += [new + stored.removeprefix(old) for old, new in _RENAMED if stored.startswith(old)]
    return next((one for one in candidates if one in places), None)


def _scale(folder: Path, config: dict[str, Any]) -> tuple[float, int]:
    """Factor on B A, and the rank.

    Raises
    ------
    VisualHeadsError
        When a field that is not known, or known to change what the adapter is, is not at its default.
    """
    for field, value in config.items():
        if field in _SAYS_NOTHING:
            continue
        if field in _ALLOWED:
            plain = value is None or value in _ALLOWED[field]
        else:
            plain = value is None or value is False or (isinstance(value, str | list | dict) and not value)
        if not plain:
            raise VisualHeadsError(
                f"An adapter must be a plain LoRA; {folder / CONFIG} has {field} {value!r}. Merge it with the tool that made it "
                "(peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()), and give the merged checkpoint."
            )
    if config.get("peft_type") is None:
        raise VisualHeadsError(
            f"An adapter's config must say its peft_type; {folder / CONFIG} does not. Copy it again."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise VisualHeadsError(
            f"An adapter's config must have a rank r of at least 1 and a number lora_alpha; {folder / CONFIG} has {rank!r} and "
            f"{alpha!r}. Copy it again."
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank), rank


def _config(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VisualHeadsError(
            f"An adapter needs {CONFIG}; {folder} has none that can be read. Copy it again."
        ) from error
    if not isinstance(document, dict):
        raise VisualHeadsError(f"{CONFIG} must be a JSON object; that of {folder} is not. Copy it again.")
    return document
