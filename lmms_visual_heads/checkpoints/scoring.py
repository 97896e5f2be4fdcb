"""Log-likelihood of a given continuation, in the convention of lmms-eval's llava_hf: (mean token loss, is it greedy).

The continuation is the assistant's message of the chat template; what counts are the tokens after the prompt's.
Shapes: K tokens, V vocabulary, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmms_visual_heads.capture.prefix import Prefix
from lmms_visual_heads.capture.reader import ForwardReader
from lmms_visual_heads.capture.rows import stack_rows
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.passes import TOKENS, on_device
from lmms_visual_heads.statistics.answers import AnswerStatistics, answer_statistics


@dataclass(frozen=True, slots=True)
class ScoredContinuation:
    """A scored continuation.

    Attributes
    ----------
    loss : float
        Mean negative log-likelihood of the continuation's tokens, nats.
    is_greedy : bool
        Whether greedy decoding would have written it.
    n_tokens : int
        Tokens of the continuation.
    rows : Tensor [L, H, K] float32 on the model's device, or None
        Rows of the last prompt position, or of the first continuation token.
    answer : AnswerStatistics
        Of the first token after the prompt; no generated tokens, so no answer log-probability.
    """

    loss: float
    is_greedy: bool
    n_tokens: int
    rows: Tensor | None
    answer: AnswerStatistics


@torch.inference_mode()
def score_continuation(
    model: PreTrainedModel, encoded: Encoded, ids: Tensor, query: str | None, prefix: Prefix | None = None
) -> ScoredContinuation:
    """Score the end of `ids` as the answer to an encoded question.

    Parameters
    ----------
    model : PreTrainedModel
        After `attach`.
    encoded : Encoded
        The question.
    ids : Tensor [K], int64
        The finished exchange, question and answer (`PromptEncoder.finished`).
    query : {"first_generated", "last_prompt"} or None
        Which rows are read, in a pass of their own; None reads none.
    prefix : Prefix or None
        One prefilled prompt that the question and its continuation begin with; unused where they do not.
    """
    n_prompt = len(encoded)
    n_tokens = len(ids) - n_prompt
    pixels = {name: value for name, value in encoded.inputs.items() if name not in TOKENS}
    shared = prefix is not None and bool((ids[: prefix.length] == encoded.input_ids[: prefix.length]).all())
    prefix = prefix if shared else None
    logits = _last_logits(model, ids, pixels, keep=n_tokens + 1, prefix=prefix).float()
    targets = ids[n_prompt:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits[:-1], targets)
    rows = None
    if query is not None:
        length = n_prompt + (query == "first_generated")
        with ForwardReader(model, 0) as reader:
            _last_logits(model, ids[:length], pixels, keep=1, prefix=prefix)
        if reader.attentions is None:
            raise AssertionError("the pass was run, so rows were read")
        rows = stack_rows(reader.attentions, length)[:, 0]
    return ScoredContinuation(
        loss=float(loss),
        is_greedy=bool((logits[:-1].argmax(-1) == targets).all()),
        n_tokens=n_tokens,
        rows=rows,
        answer=answer_statistics(logits[0], answer_token_index=0, n_answer_tokens=0, log_probabilities=None),
    )


def _last_logits(
    model: PreTrainedModel, ids: Tensor, pixels: Mapping[str, Tensor], keep: int, prefix: Prefix | None
) -> Tensor:
    """Logits [keep, V] of the last positions of one sequence; what the prefix holds is not run again."""
    tokens = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if prefix is not None:
        inputs = on_device(model, {**tokens, "input_ids": ids[None, prefix.length :]})
        return model(**inputs, past_key_values=prefix.branch([0]), use_cache=True, logits_to_keep=keep).logits[0]
    inputs = on_device(model, {**tokens, **pixels})
    return model(**inputs, logits_to_keep=keep, use_cache=False).logits[0]
