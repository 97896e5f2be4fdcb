"""4- and 8-bit weights: bitsandbytes on loading, and checkpoints that are stored quantised. Never a dependency.

What is missing for it is found before any weight is read. The attention itself stays in full precision. 8-bit layers
(LLM.int8) treat a column as an outlier where any token of the pass is large there, so their numbers depend a little on what
else is in the batch; those of 4-bit layers do not.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from lmms_visual_heads.errors import VisualHeadsError

QUANTIZATIONS = ("4bit", "8bit")


def stored_quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """The quantisation that a config.json (or its text model's part) says its weights are stored in."""
    parts = (config, config.get("text_config"))
    return next((part["quantization_config"] for part in parts if part and part.get("quantization_config")), None)


def quantization_settings(
    source: str,
    config: dict[str, Any],
    quantization: str | None,
    dtype: torch.dtype | str,
    device: torch.device,
    *,
    adapted: bool = False,
) -> BitsAndBytesConfig | None:
    """What `from_pretrained` is told about quantisation; None: nothing, the weights are loaded as they are stored.

    Parameters
    ----------
    source : str
        Folder or hub id, for words.
    config : dict
        config.json.
    quantization : {"4bit", "8bit"} or None
        "4bit" is NF4 with double quantisation, as in the original `llava` code. The output layer is left as it is.
    dtype : torch.dtype or "auto"
        In which 4-bit weights are multiplied; "auto": float16.
    device : torch.device
    adapted : bool
        Whether an adapter is to be merged.

    Raises
    ------
    VisualHeadsError
        For another value, an already quantised checkpoint, an adapter, a missing or unfitting package.
    """
    check_quantization(quantization)
    stored = stored_quantization(config)
    if stored is None and quantization is None:
        return None
    if stored is not None and quantization is not None:
        raise VisualHeadsError(
            f"quantization= is for weights in full precision; {source} is stored quantised "
            f"({method_of(stored)}). Leave quantization= out."
        )
    if adapted:
        raise VisualHeadsError(
            "An adapter is merged into weights in full precision; those of this model would be quantised. "
            "Leave quantization= out, or merge the adapter into an unquantised checkpoint first."
        )
    name = f"quantization={quantization}" if stored is None else f"A checkpoint stored in {method_of(stored)}"
    needs_bitsandbytes = stored is None or method_of(stored) in QUANTIZATIONS
    if needs_bitsandbytes and find_spec("bitsandbytes") is None:
        raise VisualHeadsError(
            f"{name} needs the package bitsandbytes, which is not installed. "
            f"Run `pip install bitsandbytes`{'' if stored else ', or leave quantization= out'}."
        )
    try:
        settings = None
        if stored is None:
            settings = BitsAndBytesConfig(
                load_in_8bit=quantization == "8bit",
                load_in_4bit=quantization == "4bit",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float16 if isinstance(dtype, str) else dtype,
            )
        quantizer = AutoHfQuantizer.from_config(stored or settings, pre_quantized=stored is not None)
        quantizer.validate_environment(device_map={"": str(device)}, weights_only=True)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise VisualHeadsError(
            f"{name} cannot be loaded on {device} here ({reason[0].strip().rstrip('.')}). "
            f"Install what is missing, take another device, or load a checkpoint {'that is not' if stored else 'without'} "
            f"{'quantised' if stored else 'quantization='}."
        ) from error
    return settings


def check_quantization(quantization: str | None) -> None:
    """Refuse what is neither "4bit" nor "8bit" nor None."""
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise VisualHeadsError(f"quantization must be 4bit or 8bit; got {quantization!r}. Choose one, or leave it out.")


def refuse_quantized_original(source: str, config: dict[str, Any], quantization: str | None) -> None:
    """Original checkpoints are filled tensor by tensor, in full precision only."""
    check_quantization(quantization)
    stored = stored_quantization(config)
    if stored is not None:
        raise VisualHeadsError(
            f"A checkpoint in the original llava format must hold plain weights; {source} is stored quantised "
            f"({method_of(stored)}). Give the unquantised checkpoint."
        )
    if quantization is not None:
        raise VisualHeadsError(
            f"quantization= is for checkpoints in Hugging Face format; {source} is in the original llava format. "
            "Run `visual-heads convert SRC DST` first and give DST."
        )


def method_of(stored: dict[str, Any]) -> str:
    """ "4bit" or "8bit" for bitsandbytes, else the method's name."""
    if stored.get("load_in_4bit"):
        return "4bit"
    return "8bit" if stored.get("load_in_8bit") else str(stored.get("quant_method", "an unnamed method"))


def describe_quantization(config: dict[str, Any], quantization: str | None) -> dict[str, str]:
    """{"quantization": …} where the weights in memory are quantised."""
    stored = stored_quantization(config)
    method = quantization if stored is None else method_of(stored)
    return {} if method is None else {"quantization": method}


def countable(model: PreTrainedModel) -> Any:
    """`model`, or an empty twin in full precision where its weights are packed and their sizes say nothing."""
    if getattr(model, "hf_quantizer", None) is None:
        return model
    with init_empty_weights(include_buffers=False):
        return type(model)(model.config)
