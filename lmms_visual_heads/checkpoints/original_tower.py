"""The CLIP tower that an original checkpoint only names: where it is, its config, its image processor's settings.

Looked for in the checkpoint's folder, in its parent folders, in the working directory, then on the hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import CLIPVisionConfig

from lmms_visual_heads.checkpoints.original_config import OriginalConfig
from lmms_visual_heads.checkpoints.original_files import weight_files
from lmms_visual_heads.errors import VisualHeadsError

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_PUBLISHED = {
    "openai/clip-vit-large-patch14-336": {"image_size": 336},
    "openai/clip-vit-large-patch14": {"image_size": 224},
}
"""Sizes of published towers: with the weights inside the checkpoint, nothing else of them is needed."""
_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_HUB_ERRORS = (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError)


@dataclass(frozen=True, slots=True)
class Tower:
    """A found vision tower.

    Attributes
    ----------
    name : str
        As config.json says it.
    config : CLIPVisionConfig
    files : tuple of Path
        Weight files; empty where the checkpoint's own weights are used.
    image_settings : dict
        size, crop_size, image_mean, image_std, resample and rescale_factor of its image processor.
    place : str
        "checkpoint", a folder, or the hub id; recorded beside every measurement.
    """

    name: str
    config: CLIPVisionConfig
    files: tuple[Path, ...]
    image_settings: dict[str, Any]
    place: str


def find_tower(
    config: OriginalConfig, folder: Path, inside: bool, local: bool = True, base: Path | None = None
) -> Tower:
    """Find the tower of a checkpoint.

    Parameters
    ----------
    config : OriginalConfig
    folder : Path
        Of the checkpoint.
    inside : bool
        Whether the checkpoint's own weight files hold a tower. A trained one is always used; a frozen one equals the
        published tower, which is taken where it lies on this machine.
    local : bool
        Whether `folder` is the user's (its parents are searched) or the hub's cache.
    base : Path or None
        Folder of the base model, searched after `folder`.

    Raises
    ------
    VisualHeadsError
        When it is not found, with the places where it was looked for, or is no CLIP.
    """
    name = config.tower
    places = _places(name, folder, local, base)
    folder_of_tower = next((place for place in places if (place / "config.json").is_file()), None)
    from_hub = folder_of_tower is None and (inside is False or name not in _PUBLISHED)
    if folder_of_tower is None and from_hub:
        folder_of_tower = _from_hub(name, weights=not inside)
    if folder_of_tower is None and not (inside and name in _PUBLISHED):
        where = ", ".join(str(place) for place in places)
        raise VisualHeadsError(
            f"The vision tower {name!r} must lie in the checkpoint's folder, in a parent of it, in the working directory or on "
            f"the hub; it was not found (looked for {where}, and on the hub). Put its folder beside the checkpoint."
        )
    if folder_of_tower is None:
        vision = CLIPVisionConfig(**_LARGE, **_PUBLISHED[name])
        return Tower(name, vision, (), _image_settings({}, vision.image_size), "checkpoint")
    vision = _vision_config(folder_of_tower, name)
    stored = (
        _json(folder_of_tower / "preprocessor_config.json")
        if (folder_of_tower / "preprocessor_config.json").is_file()
        else {}
    )
    settings = _image_settings(stored, vision.image_size)
    if inside and (config.tower_was_trained or from_hub):
        return Tower(name, vision, (), settings, "checkpoint")
    if inside and not _has_weights(folder_of_tower):
        return Tower(name, vision, (), settings, "checkpoint")
    return Tower(
        name, vision, tuple(weight_files(folder_of_tower)), settings, name if from_hub else str(folder_of_tower)
    )


def _places(name: str, folder: Path, local: bool, base: Path | None) -> list[Path]:
    """Folders where the tower may lie, in order; each once."""
    named = Path(name).expanduser()
    if named.is_absolute():
        return [named, folder / named.name, *([folder.resolve().parent / named.name] if local else [])]
    roots = [folder, *(folder.resolve().parents if local else ())]
    roots += [base, *base.resolve().parents[:2]] if base is not None else []
    roots.append(Path.cwd())
    return list(dict.fromkeys(root / part for root in roots for part in dict.fromkeys((name, named.name))))


def _from_hub(name: str, weights: bool) -> Path | None:
    patterns = ["config.json", "preprocessor_config.json"]
    if weights:
        patterns += ["model.safetensors", "*.safetensors.index.json", "pytorch_model.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except _HUB_ERRORS:
        return None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _vision_config(folder: Path, name: str) -> CLIPVisionConfig:
    stored = _json(folder / "config.json")
    kind = stored.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise VisualHeadsError(
            f"The vision tower of an original llava checkpoint must be a CLIP; {name!r} in {folder} is {kind!r}. "
            "Give a checkpoint with a CLIP tower."
        )
    return CLIPVisionConfig.from_pretrained(folder)


def _image_settings(stored: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Settings of the CLIP image processor; older files hold plain numbers as sizes."""
    size, crop = stored.get("size", image_size), stored.get("crop_size", image_size)
    return {
        "size": {"shortest_edge": size} if isinstance(size, int) else dict(size),
        "crop_size": {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop),
        "image_mean": stored.get("image_mean", CLIP_MEAN),
        "image_std": stored.get("image_std", CLIP_STD),
        "resample": stored.get("resample", 3),
        "rescale_factor": stored.get("rescale_factor", 1 / 255),
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VisualHeadsError(f"{path} must be a JSON document; it is damaged. Copy it again.") from error
    if not isinstance(document, dict):
        raise VisualHeadsError(f"{path} must be a JSON object; it is not. Copy it again.")
    return document
