"""Log-likelihood of a given continuation, in the convention of lmms-eval's llava_hf: (mean token loss, is it greedy).

The continuation is the assistant's message of the chat template; what counts are the tokens after the prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmms_visual_heads.capture.prefix import Prefix
from lmms_visual_heads.capture.reader import ForwardReader
from lmms_visual_heads.capture.rows import stack_rows
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.statistics.answers import AnswerStatistics, answer_statistics

if TYPE_CHECKING:
    from lmms_visual_heads.checkpoints.encoding import Encoded
    from lmms_visual_heads.checkpoints.model import VisualModel


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
    model: VisualModel, encoded: Encoded, continuation: str, query: str | None, prefix: Prefix | None = None
) -> ScoredContinuation:
    """Score `continuation` as the answer to an encoded question.

    Parameters
    ----------
    model : VisualModel
    encoded : Encoded
        From `VisualModel.encode`.
    continuation : str
    query : {"first_generated", "last_prompt"} or None
        Which rows are read, in a pass of their own; None reads none.
    prefix : Prefix or None
        One prefilled prompt that the question and its continuation begin with; unused where they do not.

    Raises
    ------
    VisualHeadsError
        When the continuation is empty, or does not fit the model's context together with the prompt.
    """
    n_prompt = len(encoded)
    ids = _with_continuation(model, encoded, continuation)
    n_tokens = len(ids) - n_prompt
    if n_tokens < 1:
        raise VisualHeadsError(
            f"A continuation to be scored needs at least one token; {continuation!r} has none. Leave it out of the task."
        )
    if len(ids) > model.max_positions:
        raise VisualHeadsError(
            f"A prompt and its continuation must fit the model's {model.max_positions} positions; they have {len(ids)} "
            "tokens, visual tokens included. Shorten them; they are never truncated."
        )
    pixels = {name: value for name, value in encoded.inputs.items() if name not in ("input_ids", "attention_mask")}
    shared = prefix is not None and bool((ids[: prefix.length] == encoded.input_ids[: prefix.length]).all())
    prefix = prefix if shared else None
    logits = _forward(model, ids, pixels, keep=n_tokens + 1, prefix=prefix).float()
    targets = ids[n_prompt:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits[:-1], targets)
    rows = None
    if query is not None:
        length = n_prompt + (query == "first_generated")
        with ForwardReader(model.model, 0) as reader:
            _forward(model, ids[:length], pixels, keep=1, prefix=prefix)
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


def _forward(model: VisualModel, ids: Tensor, pixels: dict[str, Tensor], keep: int, prefix: Prefix | None) -> Tensor:
    """Logits [keep, V] of the last positions of one sequence; what the prefix holds is not run again."""
    tokens = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if prefix is not None:
        inputs = model.move({**tokens, "input_ids": ids[None, prefix.length :]})
        return model.model(**inputs, past_key_values=prefix.branch([0]), use_cache=True, logits_to_keep=keep).logits[0]
    inputs = model.move({**tokens, **pixels})
    return model.model(**inputs, logits_to_keep=keep, use_cache=False).logits[0]


def _with_continuation(model: VisualModel, encoded: Encoded, continuation: str) -> Tensor:
    """Tokens [K] of the prompt with its answer; placeholders expanded without touching the pixels again."""
    encoder = model.encoder
    if encoded.text is None:
        whole = f"{encoded.prompt} {continuation}"
    else:
        whole = encoder.prompt(encoded.text, encoded.n_images, answer=continuation)
    counts = [encoder.layout((height, width)).n_tokens for width, height in encoded.image_sizes]
    return torch.tensor(encoder.expand(encoder.text_ids(whole), counts))
