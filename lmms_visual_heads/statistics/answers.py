"""Answer statistics, from the logits that a run computes anyway; no labels. Pure functions.

Units: probability 0..1, entropy and log-probability in nats. Shapes: B batch, V vocabulary, T tokens.
All distributions are softmaxes of the raw logits, before temperature, penalties or sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.special import entr

N_TOP_TOKENS = 20
N_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class AnswerStatistics:
    """Answer statistics of one document; None is missing.

    Attributes
    ----------
    n_answer_tokens : int
        Generated tokens, the end token included; 0 for a scored continuation.
    answer_token_index : int
        Which generated token is the first answer token: 0, or 1 where token 0 is a blank.
    confidence : float or None
        Largest probability of the first answer token.
    answer_entropy : float or None
        Entropy of its distribution, nats.
    answer_log_probability : float or None
        Mean log-probability of the generated tokens, nats.
    top_tokens : tuple of int
        The 20 most probable first answer tokens, most probable first.
    top_probabilities : tuple of float
        Their probabilities.
    """

    n_answer_tokens: int
    answer_token_index: int
    confidence: float | None
    answer_entropy: float | None
    answer_log_probability: float | None
    top_tokens: tuple[int, ...]
    top_probabilities: tuple[float, ...]


def answer_statistics(
    logits: Tensor, *, answer_token_index: int, n_answer_tokens: int, log_probabilities: Tensor | None
) -> AnswerStatistics:
    """Statistics of one answer.

    Parameters
    ----------
    logits : Tensor [V]
        Raw logits of the first answer token.
    answer_token_index : int
        Index of that token among the generated ones.
    n_answer_tokens : int
        Generated tokens that count, the end token included.
    log_probabilities : Tensor [n_answer_tokens] or None
        Log-probability of each; None leaves `answer_log_probability` missing.

    Returns
    -------
    AnswerStatistics
        Everything from `logits` is missing where a logit is NaN or plus infinity.
    """
    mean_log_probability = None
    if log_probabilities is not None and len(log_probabilities):
        mean_log_probability = _finite(float(log_probabilities.double().mean()))
    probabilities = logits.float().softmax(-1)
    if not bool(probabilities.isfinite().all()):
        return AnswerStatistics(n_answer_tokens, answer_token_index, None, None, mean_log_probability, (), ())
    top = probabilities.topk(min(N_TOP_TOKENS, len(probabilities)))
    values = tuple(top.values.tolist())
    return AnswerStatistics(
        n_answer_tokens=n_answer_tokens,
        answer_token_index=answer_token_index,
        confidence=values[0],
        answer_entropy=max(0.0, float(entr(probabilities).sum())),
        answer_log_probability=mean_log_probability,
        top_tokens=tuple(top.indices.tolist()),
        top_probabilities=values,
    )


def answer_text(text: str) -> str:
    """What is kept of a generated text to compare it with other models': the first line that says something, 64 characters."""
    return text.strip().partition("\n")[0].strip()[:N_CHARACTERS]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
