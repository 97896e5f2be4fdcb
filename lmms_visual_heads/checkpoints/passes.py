"""Encoded documents through a transformers model: their tensors as one batch, on its device, and single forward passes.

Below `VisualModel`, which adds prompts and answers; scoring.py and knockout.py stand on this, too. Nothing is padded but tiles.
Shapes: B batch, K tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from lmms_visual_heads.capture.prefix import Prefix, prefill
from lmms_visual_heads.checkpoints.encoding import Encoded

TOKENS = ("input_ids", "attention_mask")
"""Inputs that are no pixels, or facts about them."""


def on_device(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`inputs` on the model's device, pixels in its dtype."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }


def stacked(model: PreTrainedModel, inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch on the model's device from the inputs of several documents; tiles are padded to the largest number of tiles."""
    batch: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for of_one in inputs for name in of_one):
        tensors = [of_one[name] for of_one in inputs if name in of_one]
        if name == "pixel_values" and tensors[0].dim() == 5:
            most = max(tensor.shape[1] for tensor in tensors)
            tensors = [
                torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 0, 0, most - tensor.shape[1])) for tensor in tensors
            ]
        batch[name] = torch.cat(tensors)
    return on_device(model, batch)


def batch_inputs(model: PreTrainedModel, batch: Sequence[Encoded], cache: Cache | None = None) -> dict[str, Tensor]:
    """The inputs of documents of equal prompt length, on the model's device; without pixels where a cache holds them.

    Raises
    ------
    ValueError
        When prompt lengths differ.
    """
    lengths = {len(encoded) for encoded in batch}
    if len(lengths) > 1:
        raise ValueError(f"a batch needs documents of equal prompt length; got lengths {sorted(lengths)}")
    inputs = [encoded.inputs for encoded in batch]
    if cache is not None:
        inputs = [{name: of_one[name] for name in TOKENS} for of_one in inputs]
    return stacked(model, inputs)


def prefill_documents(model: PreTrainedModel, batch: Sequence[Encoded], length: int) -> Prefix:
    """Run the first `length` tokens of every document, all its visual tokens among them, once."""
    starts = [{**encoded.inputs, **{name: encoded.inputs[name][:, :length] for name in TOKENS}} for encoded in batch]
    return prefill(model, stacked(model, starts), length)


@torch.inference_mode()
def answer_logits(model: PreTrainedModel, batch: Sequence[Encoded], blanks: Sequence[int] | None = None) -> Tensor:
    """Logits [B, V] float32 of each document's first answer token, in one pass.

    Parameters
    ----------
    model : PreTrainedModel
    batch : sequence of Encoded
        Of equal prompt length.
    blanks : sequence of int, or None
        Per document the blank token that its answer is made to begin with; the logits are those after it.
    """
    inputs = batch_inputs(model, batch)
    if blanks is not None:
        first = torch.tensor(blanks, device=inputs["input_ids"].device)[:, None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], first], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
