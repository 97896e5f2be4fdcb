"""A `generate` call whose tokens are given beforehand: the model runs exactly as if it had written them itself.

For models whose position numbers or masks depend on more than the token ids (dynamic resolution, bidirectional image
blocks), a step cannot be repeated from a cache by hand; `generate` itself has to run it. Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lmms_visual_heads.capture.reader import ForwardReader


@dataclass(frozen=True, slots=True)
class ForcedGeneration:
    """What a forced `generate` call gave.

    Attributes
    ----------
    logits : tuple of Tensor [B, V] float32
        Raw logits that each token was compared with; one per forward pass.
    attentions : tuple of Tensor [B, H, 1, k], or None
        Rows of the wanted pass, one per attention layer.
    """

    logits: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] | None


class _Force(LogitsProcessor):
    """Leaves one token to choose from: the given one; the last one is repeated."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self._tokens = tokens
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = min(input_ids.shape[1] - self._start, self._tokens.shape[1] - 1)
        wanted = self._tokens[:, step].to(scores.device)[:, None]
        return torch.full_like(scores, float("-inf")).scatter(1, wanted, 0.0)


@torch.inference_mode()
def forced_generation(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: Tensor, row_pass: int | None, pad_token_id: int
) -> ForcedGeneration:
    """Let `model` answer with `tokens`.

    Parameters
    ----------
    model : PreTrainedModel
        A model after `attach`.
    inputs : mapping of Tensor
        `input_ids` [B, prompt] and what belongs to them.
    tokens : Tensor [B, T]
        The answer, end tokens allowed.
    row_pass : int or None
        Forward pass whose rows are read: 0 the prefill, 1 the first decode step (run even where T is 1); None: none.
    pad_token_id : int
        What `generate` fills finished answers with; none is finished here.
    """
    length = inputs["input_ids"].shape[1]
    n_passes = max(tokens.shape[1], (row_pass or 0) + 1)
    beyond_vocabulary = 2**31 - 1  # no token ends the answer early
    with ForwardReader(model, row_pass) as reader:
        output = model.generate(
            **inputs,
            logits_processor=LogitsProcessorList([_Force(tokens, length)]),
            max_new_tokens=n_passes,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            eos_token_id=beyond_vocabulary,
            pad_token_id=pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return ForcedGeneration(tuple(step.float() for step in output.logits), reader.attentions)
