"""Copies of a checkpoint in several lineages: these are joined, and named in a sentence.

Shapes: M checkpoints, B benchmarks, n items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Items = Sequence[tuple[npt.NDArray[np.float32], ...]]

_CLOSE = 1e-3
"""Mean absolute difference of the items' confidences below which two checkpoints are copies; a training apart it is far more."""


def merged_lineages(
    lineages: npt.NDArray[np.str_], models: npt.NDArray[np.str_], points: Array, items: Items | None
) -> tuple[npt.NDArray[np.str_], tuple[str, ...]]:
    """Lineages in which copies stand together.

    Two checkpoints of different lineages are copies when all their scores are equal (at least three benchmarks, not all
    0 or 100), or when their items' answers and confidences are.

    Returns
    -------
    array [M], notes
        A joined lineage has the name that comes first.
    """
    joined = {str(name): str(name) for name in lineages}

    def root(name: str) -> str:
        while joined[name] != name:
            name = joined[name]
        return name

    notes = []
    confidences = None if items is None else np.concatenate([confidence for _, confidence, _ in items], axis=1)
    answers = None if items is None else np.concatenate([correct for correct, _, _ in items], axis=1)
    for i in range(len(models)):
        for j in range(i + 1, len(models)):
            first, second = root(str(lineages[i])), root(str(lineages[j]))
            if first == second:
                continue
            why = "all their scores are equal" if _equal_scores(points[i], points[j]) else ""
            if not why and confidences is not None and answers is not None:
                why = _equal_items(answers, confidences, i, j)
            if why:
                keep, drop = sorted((first, second))
                joined[drop] = keep
                notes.append(
                    f"{models[i]} and {models[j]} look like copies ({why}), so the lineages {keep} and {drop} count as one."
                )
    return np.array([root(str(name)) for name in lineages]), tuple(notes)


def _equal_scores(a: Array, b: Array) -> bool:
    there = np.isfinite(a) & np.isfinite(b)
    inner = there & (a > 0) & (a < 100)
    return bool(inner.sum() >= 3 and np.array_equal(a[there], b[there]) and np.ptp(a[inner]) > 0)


def _equal_items(answers: npt.NDArray[np.float32], confidences: npt.NDArray[np.float32], i: int, j: int) -> str:
    # A few items tell strangers apart; only then are all compared.
    step = max(1, answers.shape[1] // 64)
    if not np.abs(confidences[i, ::step] - confidences[j, ::step]).mean() < 5 * _CLOSE:
        return ""
    distance = float(np.nanmean(np.abs(confidences[i] - confidences[j])))
    agreement = float(np.mean(answers[i] == answers[j]))
    return "their items' answers and confidences are the same" if distance < _CLOSE and agreement > 0.998 else ""
