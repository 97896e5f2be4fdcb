"""A checkpoint's weight files in Hugging Face format -> a model in evaluation mode. Nothing that is loaded runs code.

Weights are safetensors or `weights_only` pickles; none is made up.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from lmms_visual_heads.checkpoints.quantization import stored_quantization
from lmms_visual_heads.errors import VisualHeadsError, first_line


def hugging_face_weights(
    source: str,
    config: Any,
    revision: str | None,
    dtype: torch.dtype | str,
    device: torch.device,
    model_class: Any,
    quantization: Any = None,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode on `device` or spread by `device_map`; every weight must come from the checkpoint.

    Raises
    ------
    VisualHeadsError
        For weights that are missing, damaged, want to run code, or do not fit the config.
    """
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
