"""How often a checkpoint answers what scored reference checkpoints answer together, on the same unlabelled prompts.

The references vote on every prompt, each with the weight that its own score earns (Nitzan and Paroush 1982:
ln(p (k - 1) / (1 - p)), 0 at chance). No label of a prompt is used, but scores of the references are: where one reference
masters a benchmark, its answers are nearly the key. Agreement between models is a known way to estimate accuracy without labels
(arXiv 2206.13089). Nobody votes on a checkpoint of its own lineage. What agreement cannot see: where a model is right and all
references are wrong.
Shapes: M checkpoints, B benchmarks, n prompts, K different answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Replies = npt.NDArray[np.integer]

NO_REPLY = -1
"""Stands where a checkpoint was not asked."""


def vote_weights(points: Array, chance: Array, n_items: Array) -> Array:
    """Weights of the votes, [M, B]: log-odds of scores beside guessing, at least 0.

    Parameters
    ----------
    points : array [M, B]
        NaN where a reference has no score: it votes there with its mean weight on the benchmarks that it has scores for.
    chance : array [B]
        Score of the best constant answer, 0..1.
    n_items : array [B]
        A score counts as at least half an item away from perfect.
    """
    share = np.clip(points / 100.0, chance, 1.0 - 0.5 / n_items)
    weights = np.log(share * (1.0 / chance - 1.0) / (1.0 - share))
    there = np.isfinite(weights)
    usual = np.where(there, weights, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return np.maximum(np.where(there, weights, usual[:, None]), 0.0)


def agreement(replies: Replies, weights: Array, lineages: npt.NDArray[np.str_], prompts: Indices | slice) -> Array:
    """Share of prompts on which each checkpoint says what the others' weighted vote says, [M]; a tie is shared.

    Parameters
    ----------
    replies : int array [M, N]
        Answers to all prompts of a benchmark; `NO_REPLY` where not asked.
    weights : array [M]
        0 for whoever does not vote.
    lineages : array [M]
    prompts : int array or slice
        Which prompts count.

    Returns
    -------
    array [M]
        NaN for a checkpoint that was not asked, or that nobody outside its lineage can judge.
    """
    said = replies[:, prompts]
    voters = np.flatnonzero((weights > 0) & (said != NO_REPLY).all(axis=1))
    out = np.full(len(said), np.nan)
    if not len(voters) or not said.shape[1]:
        return out
    answers = np.unique(said[voters])
    hits = said[None] == answers[:, None, None]  # [K, M, n]

    def votes(of: Indices) -> Array:
        return np.tensordot(weights[of], hits[:, of].astype(np.float32), axes=(0, 1))

    total = votes(voters)
    for name in np.unique(lineages):
        own = np.flatnonzero(lineages == name)
        inside = np.intersect1d(own, voters)
        if len(inside) == len(voters):
            continue
        rest = total - votes(inside) if len(inside) else total
        # What is left of a subtraction is rounding: a vote within it counts as a tie.
        best = rest >= rest.max(axis=0) - 1e-4
        shared = best / best.sum(axis=0)
        asked = own[(said[own] != NO_REPLY).all(axis=1)]
        out[asked] = (shared[:, None] * hits[:, asked]).sum(axis=0).mean(axis=1)
    return out


def agreement_table(
    replies: Sequence[Replies],
    voters: Indices,
    points: Array,
    chance: Array,
    n_items: Array,
    lineages: npt.NDArray[np.str_],
    prompts: Sequence[Indices | slice],
    as_if_new: bool = False,
) -> Array:
    """`agreement` of all checkpoints on all benchmarks, [M, B].

    Parameters
    ----------
    replies : sequence of int array [M, N]
        Per benchmark.
    voters : int array
        The references.
    points : array [len(voters), B]
        Their known scores; NaN where not known.
    prompts : sequence of int array or slice
        Per benchmark.
    as_if_new : bool
        Vote on every benchmark as if it had no scores: with the mean weight on the others.
    """
    votes = np.zeros((len(lineages), len(replies)))
    if as_if_new:
        for b in range(len(replies)):
            hidden = points.copy()
            hidden[:, b] = np.nan
            votes[voters, b] = vote_weights(hidden, chance, n_items)[:, b]
    else:
        votes[voters] = vote_weights(points, chance, n_items)
    columns = [
        agreement(said, votes[:, b], lineages, chosen)
        for b, (said, chosen) in enumerate(zip(replies, prompts, strict=True))
    ]
    return np.stack(columns, axis=1)
