"""Answers of a small checkpoint to many questions: what greedy decoding would say, whether it is right, and how sure it is.

The answer's first token is the one behind a blank, as everywhere (`answer_token_index`). Greedy decoding goes on only as long
as the verdict is open. Shapes: N documents, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import entr

from lab.measure.small_llama import Asked, Past, SmallLanguageModel
from lab.tables.schema import PROMPT_COUNTS
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.probe.scoring import is_correct
from lmms_visual_heads.statistics.causal import answer_kl_or_nan

MAX_NEW_TOKENS = 16
"""As the tasks' YAML files say."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to N documents.

    Attributes
    ----------
    ids : Tensor [N, T]
        The question behind the picture, with the first generated token.
    index : Tensor [N]
        Which generated token is the first answer token, 0 or 1.
    logits : Tensor [N, V]
        Of that token.
    correct : Tensor [N], bool
    rows : Tensor [L, N, H, K] or None
        Of the query `first_generated`.
    """

    ids: Tensor
    index: Tensor
    logits: Tensor
    correct: Tensor
    rows: Tensor | None


class Judge:
    """Knows the words of one tokenizer: which tokens are blank, and whether an answer is right.

    Parameters
    ----------
    model : VisualModel
    """

    def __init__(self, model: VisualModel) -> None:
        self._tokenizer = model.tokenizer
        self.ends = frozenset(model.end_token_ids)
        special = set(model.tokenizer.all_special_ids)
        size = model.model.get_input_embeddings().num_embeddings
        self.blank = torch.tensor(
            [token not in special and not self._tokenizer.decode([token]).strip() for token in range(size)]
        )
        self._known: dict[tuple[tuple[int, ...], str], bool | None] = {}

    @property
    def usual_blank(self) -> int:
        """The blank that is tried first; any token where there is no blank."""
        found = self.blank.nonzero()
        return int(found[0]) if len(found) else 0

    def verdict(self, tokens: Sequence[int], target: str) -> bool | None:
        """Whether an answer that begins with `tokens` is right; None where that depends on how it goes on."""
        key = (tuple(tokens), target)
        if key not in self._known:
            self._known[key] = self._judge(*key)
        return self._known[key]

    def _judge(self, tokens: tuple[int, ...], target: str) -> bool | None:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        if end is not None or len(tokens) >= MAX_NEW_TOKENS:
            return is_correct(text, target)
        begun = text.strip().splitlines()
        words = re.findall(r"[a-z]+|\d+", begun[0].lower()) if begun else []
        if len(begun) > 1 or (words and not target.isdigit()):
            return is_correct(text, target)  # a new token begins a new word, and only the first word counts
        if any(is_correct(word, word) and word.isdigit() and not is_correct(word, target) for word in words):
            return False  # a wrong number stays
        return None


def answers(
    model: SmallLanguageModel, judge: Judge, past: Past, prompts: Tensor, targets: Sequence[str], *, rows: bool = False
) -> Answers:
    """Answer `prompts` int64 [N, T - 1] about the pictures of `past`, one each."""
    blank = judge.usual_blank
    ids = torch.cat([prompts, torch.full_like(prompts[:, :1], blank)], dim=1)
    asked = model.ask(past, ids, rows=rows)
    first = asked.logits[:, 0].argmax(-1)
    other = (first != blank).nonzero()[:, 0]
    ids[:, -1] = first
    logits, read, own = asked.logits, asked.rows, asked.own
    if len(other):
        again = model.ask(past.of(other), ids[other], rows=rows)
        logits[other] = again.logits
        if read is not None and again.rows is not None:
            read[:, other] = again.rows
        for (keys, values), (keys2, values2) in zip(own.layers, again.own.layers, strict=True):
            keys[other], values[other] = keys2, values2
    index = judge.blank[first].long()
    at = logits[torch.arange(len(ids)), index]
    correct = _correct(model, judge, past, own, torch.stack([first, logits[:, 1].argmax(-1)], dim=1), targets)
    return Answers(ids, index, at, correct, read)


def _correct(
    model: SmallLanguageModel, judge: Judge, past: Past, own: Past, tokens: Tensor, targets: Sequence[str]
) -> Tensor:
    """Whether each greedy answer is right, from its first two tokens [N, 2]; decodes on where that is open."""
    said = tokens.tolist()
    verdicts = [judge.verdict(one, target) for one, target in zip(said, targets, strict=True)]
    open_ = [number for number, verdict in enumerate(verdicts) if verdict is None]
    behind: Past | None = None
    while open_:
        rows = torch.tensor(open_)
        behind = past.of(rows).then(own.of(rows)) if behind is None else behind
        newest = torch.tensor([[said[number][-1]] for number in open_])
        asked: Asked = model.ask(behind, newest, last=1)
        behind = behind.then(asked.own)
        kept = []
        for place, (number, token) in enumerate(zip(open_, asked.logits[:, 0].argmax(-1).tolist(), strict=True)):
            said[number].append(token)
            verdicts[number] = judge.verdict(said[number], targets[number])
            if verdicts[number] is None:
                kept.append(place)
        open_ = [open_[place] for place in kept]
        behind = behind.of(torch.tensor(kept)) if kept else behind
    return torch.tensor([bool(verdict) for verdict in verdicts])


def answer_logits(model: SmallLanguageModel, past: Past, given: Answers, rows: slice = slice(None)) -> Tensor:
    """Logits [n, V] of the answer's first token when documents `rows` look at the pictures of `past` instead."""
    index = given.index[rows]
    return model.ask(past, given.ids[rows]).logits[torch.arange(len(index)), index]


def certainty(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and entropy (nats) of the answer's first token, float32 [N] each."""
    p = logits.float().softmax(-1)
    return p.max(-1).values, entr(p).sum(-1).clamp_min(0.0)


def over_prefixes(logits: Tensor, swapped: Tensor | None, blanked: Tensor | None) -> dict[str, list[float | None]]:
    """Answer statistics over the first 16, 32, 64, 128, 256 documents; missing where there are fewer.

    Parameters
    ----------
    logits : Tensor [N, V]
        Of the answer's first token.
    swapped, blanked : Tensor [N, V] or None
        With another picture, with a blank one.

    Returns
    -------
    dict
        `confidence` 0..1, `entropy`, `information` (H(mean p) - mean H(p)), `swap_kl`, `blank_kl`, in nats: a number per prefix.
    """
    p = logits.double().softmax(-1)
    confidence, entropy = p.max(-1).values, entr(p).sum(-1)
    kls = {
        name: None if other is None else answer_kl_or_nan(logits, other)
        for name, other in (("swap_kl", swapped), ("blank_kl", blanked))
    }
    found: dict[str, list[float | None]] = {
        name: [] for name in ("confidence", "entropy", "information", "swap_kl", "blank_kl")
    }
    for n in PROMPT_COUNTS:
        enough = n <= len(p)
        mean = float(entropy[:n].mean())
        found["confidence"].append(float(confidence[:n].mean()) if enough else None)
        found["entropy"].append(mean if enough else None)
        found["information"].append(float((entr(p[:n].mean(0)).sum() - mean).clamp_min(0.0)) if enough else None)
        for name, kl in kls.items():
            found[name].append(float(kl[:n].mean()) if enough and kl is not None else None)
    return found
