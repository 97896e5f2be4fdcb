"""Processors as the published repositories have them: the image backend pinned, missing fields filled from the model.

PIL is pinned because the torchvision backend differs by a grey level here and there. Older repositories lack the
fields that token counting needs; they follow from the model's config.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from lmms_visual_heads.errors import VisualHeadsError

IMAGE_BACKEND = "pil"


def load_processor(source: str, config: Any, revision: str | None) -> Any:
    """The processor of checkpoint `source`, ready for a model with `config`.

    Raises
    ------
    OSError, ValueError
        As transformers raises them, when processor files are missing or wrong.
    """
    processor = AutoProcessor.from_pretrained(source, revision=revision, backend=IMAGE_BACKEND)
    if not image_backend(processor.image_processor):
        processor.image_processor = AutoImageProcessor.from_pretrained(source, revision=revision, backend=IMAGE_BACKEND)
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
