"""Processors as the published repositories have them: the image backend pinned, missing fields filled from the model.

PIL is pinned because the torchvision backend differs by a grey level here and there. Older repositories lack the
fields that token counting needs; they follow from the model's config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from lmms_visual_heads.errors import VisualHeadsError

IMAGE_BACKEND = "pil"
_TEXT_FILES = (".json", ".jinja", ".model", "vocab.txt", "merges.txt")
_POINTER = b"version https://git-lfs"


def check_files(source: str) -> None:
    """Refuse a folder in which a file of text or tokenizer is empty, or any file is a Git LFS pointer in the place of its content.

    Such a file is read as if it were not there, and the prompt becomes another one without a word.

    Raises
    ------
    VisualHeadsError
        Naming the file. Nothing is checked where `source` is no folder.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        text = path.name.endswith(_TEXT_FILES)
        if text and not path.stat().st_size:
            raise VisualHeadsError(f"Every file of a checkpoint must be whole; {path} is empty. Copy it again.")
        if text or path.suffix in (".safetensors", ".bin"):
            with path.open("rb") as file:
                pointer = file.read(len(_POINTER)) == _POINTER
            if pointer:
                raise VisualHeadsError(
                    f"Every file of a checkpoint must be whole; {path} is a Git LFS pointer, not the file itself. "
                    "Fetch the content with: git lfs pull."
                )


def load_processor(source: str, config: Any, revision: str | None) -> Any:
    """The processor of checkpoint `source`, ready for a model with `config`.

    Raises
    ------
    OSError, ValueError
        As transformers raises them, when processor files are missing or wrong.
    VisualHeadsError
        A file that is empty or a Git LFS pointer; no chat template.
    """
    check_files(source)
    processor = AutoProcessor.from_pretrained(source, revision=revision, backend=IMAGE_BACKEND, trust_remote_code=False)
    if not image_backend(processor.image_processor):
        processor.image_processor = AutoImageProcessor.from_pretrained(
            source, revision=revision, backend=IMAGE_BACKEND, trust_remote_code=False
        )
    fill_missing_fields(processor, config)
    processor.tokenizer.padding_side = "left"
    return processor


def fill_missing_fields(processor: Any, config: Any) -> None:
    """Set patch_size, vision_feature_select_strategy and num_additional_image_tokens where the files lack them."""
    if getattr(processor, "patch_size", None) is None:
        processor.patch_size = config.vision_config.patch_size
    if getattr(processor, "vision_feature_select_strategy", None) is None:
        # ViP-LLaVA's config has no such field: its tower's class token is always dropped
        processor.vision_feature_select_strategy = getattr(config, "vision_feature_select_strategy", "default")
    if not getattr(processor, "num_additional_image_tokens", None):
        has_class_token = config.vision_config.model_type == "clip_vision_model"
        processor.num_additional_image_tokens = 1 if has_class_token else 0


def image_aspect_of(image_processor: Any, config: Any) -> str:
    """What happens to an image that is not square: "anyres", "pad", "crop" or "stretch"."""
    if config.model_type == "llava_next":
        return "anyres"
    if getattr(image_processor, "do_pad", False):
        return "pad"
    return "crop" if getattr(image_processor, "do_center_crop", False) else "stretch"


def set_image_aspect(processor: Any, config: Any, aspect: str) -> None:
    """Make the processor pad images to a square, or cut out their middle.

    Raises
    ------
    VisualHeadsError
        For a model that sees tiles.
    """
    images = processor.image_processor
    if image_aspect_of(images, config) == "anyres":
        raise VisualHeadsError(
            "image_aspect= is for models that see one square view; this checkpoint sees tiles (anyres). Leave it out."
        )
    if image_aspect_of(images, config) == aspect:
        return
    edge = config.vision_config.image_size
    names = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
    stored = {name: value for name, value in images.to_dict().items() if name in names and value is not None}
    sizes = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
    processor.image_processor = LlavaImageProcessorPil(
        **{**stored, **sizes}, do_center_crop=True, do_pad=aspect == "pad"
    )


def image_backend(image_processor: Any) -> bool:
    """Whether `image_processor` runs on the pinned backend."""
    return type(image_processor).__name__.endswith("Pil")


def describe_image_processor(image_processor: Any) -> str:
    """Class and backend, as recorded beside every measurement."""
    return f"{type(image_processor).__name__} ({IMAGE_BACKEND})"
