"""Processors as the published repositories have them: the image backend pinned, missing fields filled from the model.

PIL is pinned because the torchvision backend differs by a grey level here and there. Older repositories lack the
fields that token counting needs; they follow from the model's config.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor

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


def image_backend(image_processor: Any) -> bool:
    """Whether `image_processor` runs on the pinned backend."""
    return type(image_processor).__name__.endswith("Pil")


def describe_image_processor(image_processor: Any) -> str:
    """Class and backend, as recorded beside every measurement."""
    return f"{type(image_processor).__name__} ({IMAGE_BACKEND})"
