"""Fitted regression trees as plain arrays: small in a file, safe to read from one, quick for a single row.

scikit-learn keeps a tree in a compiled structure that trusts the numbers it is built from; a file must not reach it.
Shapes: n rows, F features, T trees, N nodes of all trees together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_LEAF = -1


class TreeArrays:
    """The trees of a fitted scikit-learn forest, and their mean.

    Parameters
    ----------
    roots : array [T]
        Node that a tree begins with.
    feature : array [N]
        Column that a node asks about; -1 at a leaf.
    left, right : array [N]
        Next node where the column is at most the node's number, and where it is more; a node comes before both. -1 at a leaf.
    number : array [N]
        Threshold of a node, prediction of a leaf.
    """

    def __init__(
        self,
        roots: npt.NDArray[np.int32],
        feature: npt.NDArray[np.int32],
        left: npt.NDArray[np.int32],
        right: npt.NDArray[np.int32],
        number: Array,
    ) -> None:
        self.roots = roots
        self.feature = feature
        self.left = left
        self.right = right
        self.number = number

    @classmethod
    def of(cls, forest: Any) -> TreeArrays:
        """The trees of a fitted forest of scikit-learn with one target."""
        trees = [estimator.tree_ for estimator in forest.estimators_]
        roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        inner = [tree.children_left >= 0 for tree in trees]

        def joined(name: str) -> npt.NDArray[np.int32]:
            parts = zip(trees, inner, roots, strict=True)
            return np.concatenate([np.where(own, getattr(t, name) + r, _LEAF) for t, own, r in parts]).astype(np.int32)

        feature = np.concatenate([np.where(own, t.feature, _LEAF) for t, own in zip(trees, inner, strict=True)])
        number = [np.where(own, t.threshold, t.value[:, 0, 0]) for t, own in zip(trees, inner, strict=True)]
        return cls(
            roots.astype(np.int32),
            feature.astype(np.int32),
            joined("children_left"),
            joined("children_right"),
            np.concatenate(number),
        )

    def predict(self, rows: npt.ArrayLike) -> Array:
        """Mean over the trees at finite rows [n, F], shape [n]."""
        # scikit-learn compares single precision with its thresholds.
        values = np.asarray(rows, dtype=np.float32)
        node = np.broadcast_to(self.roots, (len(values), len(self.roots))).copy()
        while (asks := self.feature[node] != _LEAF).any():
            at, tree = np.nonzero(asks)
            here = node[at, tree]
            smaller = values[at, self.feature[here]] <= self.number[here]
            node[at, tree] = np.where(smaller, self.left[here], self.right[here])
        return np.asarray(self.number[node].mean(axis=1), dtype=np.float64)

    def check(self, n_features: int) -> None:
        """Every walk from a root ends at a leaf and asks about one of `n_features` columns.

        Raises
        ------
        ValueError
        """
        n = len(self.feature)
        if not n == len(self.left) == len(self.right) == len(self.number) or not len(self.roots):
            raise ValueError("the trees' arrays differ in length")
        inner = self.feature != _LEAF
        ends = np.stack([self.left, self.right])[:, inner]
        if ((self.roots < 0) | (self.roots >= n)).any() or (ends <= np.flatnonzero(inner)).any() or (ends >= n).any():
            raise ValueError("the trees' nodes are out of order")
        if ((self.feature[inner] < 0) | (self.feature[inner] >= n_features)).any() or not np.isfinite(
            self.number
        ).all():
            raise ValueError("the trees ask for other columns")


__all__ = ["TreeArrays"]
