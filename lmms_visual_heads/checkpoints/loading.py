"""A folder or hub id -> VisualModel, of whichever family: the one door. Every way in which a checkpoint can be wrong ends in one
sentence.

The LLaVA families are loaded by llava.py, all others by any_model.py. Nothing that is loaded runs code.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmms_visual_heads.checkpoints.adapters import base_of, is_adapter
from lmms_visual_heads.checkpoints.any_model import AnyVisualModel, load_any, refuse_llava_settings
from lmms_visual_heads.checkpoints.llava import check_llava, is_llava, load_hugging_face, load_original
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.checkpoints.original_config import is_original
from lmms_visual_heads.checkpoints.settings import LoadSettings
from lmms_visual_heads.checkpoints.sources import checked_source, stored_config
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.names import model_name as name_of


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
    """Load a checkpoint of any vision-language family for reading its attention heads: the one door.

    LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA, in Hugging Face format and in the original `llava` format, come with regions (which
    patch tokens a box covers). Every other family that transformers loads as image-text-to-text comes without, and is tried
    out on a drawn picture first. In both, a text model whose rows or answers would not be its own is refused.

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
        the one that the checkpoint was trained with. Refused for the Hugging Face format, which has a chat template. This and
        `image_aspect`, `model_base` and `peft` are for the LLaVA families, and refused for others.
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
        Of L layers x H heads; `attention_rows`, `generate`, `score` and `knockout` are its ways in.

    Raises
    ------
    VisualHeadsError
        No such checkpoint; files missing, truncated or not fitting each other; unknown device or dtype; a setting that this
        family does not take. An encoder-decoder, cross-attention to the image, soft-capped attention scores, learned attention
        sinks, chosen keys, a text model off transformers' attention interface, visual tokens that `input_ids` does not mark.

    Examples
    --------
    A checkpoint that ships with the package, and a picture that the probe draws:

    >>> from lmms_visual_heads import load_model
    >>> from lmms_visual_heads.demo.manifest import checkpoints_folder
    >>> from lmms_visual_heads.probe.documents import documents, draw
    >>> model = load_model(checkpoints_folder() / "w80-d3-t16-s4000", device="cpu", dtype="float32")
    >>> model
    VisualModel('checkpoints/w80-d3-t16-s4000': LlavaForConditionalGeneration, 3 layers x 5 heads, float32 on cpu)
    >>> document = documents("super")[0]
    >>> question = document["question"] + " Answer the question using a single word or phrase."
    >>> rows = model.attention_rows(draw(document), question, boxes=document["pointed_box"], max_new_tokens=2)
    >>> rows
    AttentionRows(3 layers x 5 heads x 29 keys, query first_generated, answer ' 2')
    >>> rows.values.shape  # [L, H, K]: a row per head, over the prompt and the first generated token
    torch.Size([3, 5, 29])
    >>> len(rows.visual_positions), rows.region_positions.tolist()  # the patch tokens that the pointed box covers
    (16, [9])
    >>> numbers = rows.statistics()  # a row per head, in the columns of the head table
    >>> numbers.nlargest(2, "image_attention")[["layer", "head", "image_attention", "region_attention"]].round(2)
        layer  head  image_attention  region_attention
    3       0     3             0.55              0.04
    12      2     2             0.41              0.01
    """
    named = pretrained
    base = _base_of_adapter(pretrained, model_base) if peft is None else None
    if base is not None:
        peft, pretrained, model_base, revision = Path(pretrained).expanduser(), base, None, None
    settings = LoadSettings(
        device, dtype, revision, conversation, image_aspect, model_base, peft, quantization, device_map
    )
    source = checked_source(pretrained)
    name = name_of(str(named), model_name)
    stored = stored_config(source, revision)
    if is_original(stored):
        return load_original(source, stored, name, settings)
    if is_llava(stored):
        return load_hugging_face(source, stored, name, settings)
    refuse_llava_settings(asdict(settings))
    return load_any(
        source,
        device=device,
        dtype=dtype,
        revision=revision,
        model_name=name,
        quantization=quantization,
        device_map=device_map,
    )


def check_is_llava(pretrained: str | Path, revision: str | None = None, model_base: str | Path | None = None) -> None:
    """Refuse, before anything is loaded, a checkpoint (or an adapter's base) that is not of the LLaVA families.

    Raises
    ------
    VisualHeadsError
        Says which are.
    """
    base = _base_of_adapter(pretrained, model_base)
    source = checked_source(pretrained if base is None else base)
    check_llava(source, stored_config(source, revision if base is None else None))


def load_any_model(pretrained: str | Path, **settings: Any) -> AnyVisualModel:
    """Load a checkpoint without regions, whatever its family.

    .. deprecated:: 0.2
        `load_model` loads every family.
    """
    warnings.warn("load_any_model is deprecated: load_model loads every family.", DeprecationWarning, stacklevel=2)
    return load_any(pretrained, **settings)


def _base_of_adapter(pretrained: str | Path, model_base: str | Path | None) -> str | Path | None:
    """The base model of a folder with nothing but an adapter; None for anything else."""
    text = str(pretrained).strip()
    folder = Path(text or ".").expanduser()
    if not text or not is_adapter(folder):
        return None
    base = model_base or base_of(folder)
    if base is None:
        raise VisualHeadsError(
            f"An adapter needs its base model; {folder} does not name it. Give model_base=FOLDER_OR_HUB_ID."
        )
    return base
