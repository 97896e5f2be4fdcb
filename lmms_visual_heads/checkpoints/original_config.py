"""config.json of an original `llava` checkpoint: what it is, what is refused, and the Hugging Face config it becomes.

Pure functions on the JSON document; no weights, no network. Sizes of pinpoints are (width, height) in the original and
(height, width) in Hugging Face format.
"""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import dataclass
from typing import Any

from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    VipLlavaConfig,
)

from lmms_visual_heads.errors import VisualHeadsError

TEXT_CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llava": LlamaConfig,
    "llava_llama": LlamaConfig,
    "llava_mistral": MistralConfig,
    "llava_phi3": Phi3Config,
}
"""Original model type -> config class of its language model."""

SUPPORTED = "llava_llama, llava_mistral and llava_phi3 (LLaVA-1.5, LLaVA-1.6 and ViP-LLaVA)"
MULTILAYER_TOWER = "clip_4layers_336"
"""ViP-LLaVA's tower: five layers of one CLIP, concatenated."""
MULTILAYER_CLIP = "openai/clip-vit-large-patch14-336"
"""The CLIP that ViP-LLaVA's code names itself."""
MULTILAYER_LAYERS = (-2, -5, -8, -11, 6)

IMAGE_ASPECTS = ("pad", "crop")
"""What a user may choose for a model with one view: pad to a square, or cut out the middle square."""

_HUGGING_FACE_TYPES = ("llava_next", "llava_onevision")
_PROJECTOR = re.compile(r"mlp(\d+)x_gelu")
_NOT_OF_THE_TEXT_MODEL = frozenset(
    ("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path")
)


def is_original(stored: dict[str, Any]) -> bool:
    """Whether a config.json document describes an original `llava` checkpoint."""
    kind = str(stored.get("model_type"))
    return "mm_vision_tower" in stored or (kind.startswith("llava_") and not kind.startswith(_HUGGING_FACE_TYPES))


@dataclass(frozen=True, slots=True)
class OriginalConfig:
    """The facts of an original config.json that loading needs.

    Attributes
    ----------
    stored : dict
        The document itself.
    model_type : str
    tower : str
        Name or path of the CLIP tower.
    layers : int or tuple of int
        Tower layers whose hidden states are used.
    keeps_class_token : bool
    tower_was_trained : bool
        Whether the tower in the checkpoint differs from the published one.
    aspect : {"pad", "crop", "stretch", "anyres"}
        What happens to an image that is not square.
    pinpoints : tuple of (height, width)
        Anyres sizes; empty without anyres.
    """

    stored: dict[str, Any]
    model_type: str
    tower: str
    layers: int | tuple[int, ...]
    keeps_class_token: bool
    tower_was_trained: bool
    aspect: str
    pinpoints: tuple[tuple[int, int], ...]

    @property
    def has_layer_norm(self) -> bool:
        """Whether this is a ViP-LLaVA: several tower layers and a layer norm in front of the projector."""
        return isinstance(self.layers, tuple)

    @property
    def marks_images(self) -> bool:
        """Whether images stand between start and end tokens."""
        return bool(self.stored.get("mm_use_im_start_end", False))


def read_original_config(source: str, stored: dict[str, Any], image_aspect: str | None = None) -> OriginalConfig:
    """Check a config.json document and read the facts out of it.

    Parameters
    ----------
    source : str
        For the words of refusals.
    stored : dict
        The document.
    image_aspect : {"pad", "crop"} or None
        None: as the checkpoint says.

    Raises
    ------
    VisualHeadsError
        For a model type, tower, projector or way of merging patches that is not supported.
    """
    kind = str(stored.get("model_type"))
    if kind not in TEXT_CONFIGS:
        raise VisualHeadsError(
            f"Of the original llava format, the model types {SUPPORTED} are supported; {source} has {kind!r}. "
            "Give one of these, or a Hugging Face conversion of it."
        )
    tower = stored.get("mm_vision_tower") or stored.get("vision_tower")
    if not isinstance(tower, str) or not tower:
        raise VisualHeadsError(
            f"An original llava checkpoint names its vision tower as mm_vision_tower in config.json; {source} does not. "
            "Copy config.json again from where the checkpoint comes from."
        )
    several = tower == MULTILAYER_TOWER
    if stored.get("s2"):
        raise VisualHeadsError(
            f"The vision tower must be a CLIP that sees one scale; {source} uses S2 scaling (s2 in config.json). "
            "Give a checkpoint without it."
        )
    _check_projector(source, stored)
    aspect, pinpoints = _aspect(source, stored, image_aspect)
    feature = stored.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch") or (feature == "cls_patch" and (several or pinpoints)):
        raise VisualHeadsError(
            f"mm_vision_select_feature must be patch (or cls_patch for LLaVA-1.5); {source} says {feature!r}. "
            "Correct config.json."
        )
    return OriginalConfig(
        stored=stored,
        model_type=kind,
        tower=MULTILAYER_CLIP if several else tower,
        layers=MULTILAYER_LAYERS if several else int(stored.get("mm_vision_select_layer", -2)),
        keeps_class_token=feature == "cls_patch",
        # the multi-layer tower's code always takes the published weights
        tower_was_trained=bool(stored.get("unfreeze_mm_vision_tower", False)) and not several,
        aspect=aspect,
        pinpoints=pinpoints,
    )


def _check_projector(source: str, stored: dict[str, Any]) -> None:
    projector = stored.get("mm_projector_type", "linear")
    match = _PROJECTOR.fullmatch(str(projector))
    if match is None or int(match.group(1)) != 2:
        raise VisualHeadsError(
            f"The projector must be mlp2x_gelu; {source} has mm_projector_type {projector!r}. "
            "Give a checkpoint with this projector (LLaVA-1.5 or later)."
        )


def _aspect(source: str, stored: dict[str, Any], wanted: str | None) -> tuple[str, tuple[tuple[int, int], ...]]:
    stated = stored.get("image_aspect_ratio") or "square"
    if stated == "anyres":
        if wanted is not None:
            raise VisualHeadsError(
                f"image_aspect= is for models that see one square view; {source} sees tiles (anyres). Leave it out."
            )
        merge = stored.get("mm_patch_merge_type", "flat")
        if merge != "spatial_unpad":
            raise VisualHeadsError(
                f"Tiles must be merged as spatial_unpad; {source} has mm_patch_merge_type {merge!r}. "
                "Give a LLaVA-1.6 checkpoint as published."
            )
        return "anyres", _pinpoints(source, stored.get("image_grid_pinpoints"))
    if wanted is not None:
        return wanted, ()
    aspects = {"pad": "pad", "square": "crop", "resize": "stretch"}
    if stated not in aspects:
        raise VisualHeadsError(
            f"image_aspect_ratio must be pad, square, resize or anyres; {source} has {stated!r}. "
            "Give a LLaVA-1.5, LLaVA-1.6 or ViP-LLaVA checkpoint."
        )
    return aspects[stated], ()


def _pinpoints(source: str, stored: Any) -> tuple[tuple[int, int], ...]:
    """(height, width) from the original's (width, height), in the same order; some configs hold them as text."""
    try:
        pairs = ast.literal_eval(stored) if isinstance(stored, str) else stored
        sizes = tuple((int(height), int(width)) for width, height in pairs)
    except (TypeError, ValueError, SyntaxError):
        sizes = ()
    if not sizes or any(edge < 1 for size in sizes for edge in size):
        raise VisualHeadsError(
            f"An anyres checkpoint lists its sizes as image_grid_pinpoints [[width, height], …]; {source} has {stored!r}. "
            "Copy config.json again from where the checkpoint comes from."
        )
    return sizes


def text_config(config: OriginalConfig, vocabulary: int) -> PretrainedConfig:
    """Config of the language model; what the document does not say is the class's default.

    Parameters
    ----------
    config : OriginalConfig
    vocabulary : int
        Rows of the output layer: the tokenizer's length.
    """
    config_class = TEXT_CONFIGS[config.model_type]
    known = set(config_class().to_dict()) | {"rope_theta", "rope_scaling", "sliding_window", "head_dim"}
    settings = {
        name: value
        for name, value in config.stored.items()
        if name in known and name not in _NOT_OF_THE_TEXT_MODEL and (value is not None or name == "sliding_window")
    }
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = settings.get(name)
        settings[name] = token if isinstance(token, int) and 0 <= token < vocabulary else None
    settings["tie_word_embeddings"] = bool(config.stored.get("tie_word_embeddings", False))
    return config_class(**{**settings, "vocab_size": vocabulary})


def whole_config(config: OriginalConfig, text: PretrainedConfig, vision: PretrainedConfig, image_token: int) -> Any:
    """The Hugging Face config of the whole model: LlavaConfig, LlavaNextConfig or VipLlavaConfig."""
    side = vision.image_size // vision.patch_size
    common = {
        # a copy: composite configs write into their parts
        "vision_config": copy.deepcopy(vision),
        "text_config": text,
        "image_token_index": image_token,
        "projector_hidden_act": "gelu",
        "image_seq_length": side * side,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    if isinstance(config.layers, tuple):
        return VipLlavaConfig(**common, vision_feature_layer=list(config.layers))
    strategy = "full" if config.keeps_class_token else "default"
    common |= {"vision_feature_layer": config.layers, "vision_feature_select_strategy": strategy}
    if config.pinpoints:
        return LlavaNextConfig(**common, image_grid_pinpoints=[list(size) for size in config.pinpoints])
    return LlavaConfig(**common)
