"""Causal visual-head scores of a small checkpoint: how far its answers move when heads may not see the picture.

For every head, for whole layers and for all heads: the visual tokens are hidden from all text queries and attention is
renormalised (`capture.knockout` is the slow twin). What a cut does not change, the layers before it and all other heads, is
not run again. Shapes: N documents, V variants, T tokens, L layers, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.measure.answers import Answers
from lab.measure.small_llama import Past, SmallLanguageModel
from lmms_visual_heads.statistics.causal import answer_kl_or_nan
from lmms_visual_heads.tables import EVERY


def cut_logits(model: SmallLanguageModel, past: Past, ids: Tensor, visual: Tensor) -> dict[tuple[int, int], Tensor]:
    """Logits [N, 2, vocabulary] at the last two tokens under every cut.

    Parameters
    ----------
    past : Past
        Of N pictures.
    ids : Tensor [N, T], int64
        What stands behind the pictures.
    visual : Tensor [n_visual], int64
        Places of the visual tokens in `past`.

    Returns
    -------
    dict
        (layer, head) -> logits; (layer, -1) the whole layer, (-1, -1) all heads.
    """
    n_before = past.layers[0][0].shape[2]
    hidden = torch.zeros(n_before, dtype=torch.bool)
    hidden[visual] = True
    found = {(EVERY, EVERY): model.ask(past.only((~hidden).nonzero()[:, 0]), ids).logits}
    entered = model.ask(past, ids, entered=True).entered
    heads = torch.arange(model.n_heads)
    for layer, x in enumerate(entered):
        n_queries = 2 if layer + 1 == model.n_layers else x.shape[2]
        seeing, blind = (model.heads(layer, x, past, n_queries, without) for without in (None, hidden))
        outputs = seeing.outputs.expand(model.n_heads + 1, -1, -1, -1).clone().unflatten(-1, (model.n_heads, -1))
        one = blind.outputs[0].unflatten(-1, (model.n_heads, -1))
        outputs[heads, :, :, heads] = one.movedim(-2, 0)
        outputs[-1] = one
        states = model.after(layer, seeing.states, outputs.flatten(-2))
        logits = model.finish(layer + 1, states, past, 2)
        found |= {(layer, head): logits[head] for head in range(model.n_heads)} | {(layer, EVERY): logits[-1]}
    return found


def cut_kl(
    model: SmallLanguageModel, past: Past, given: Answers, rows: slice, visual: Tensor
) -> dict[tuple[int, int], Tensor]:
    """KL [n] of the answer's first token under every cut, nats, float64; documents `rows`, about the pictures of `past`."""
    index = given.index[rows]
    place = torch.arange(len(index))
    found = cut_logits(model, past, given.ids[rows], visual)
    return {cut: answer_kl_or_nan(given.logits[rows], logits[place, index]) for cut, logits in found.items()}
