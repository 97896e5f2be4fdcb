"""Lineages, the groups of checkpoints that come from one training: weights, means and groups. Shapes: n rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def lineage_weights(groups: npt.ArrayLike) -> Array:
    """Weight 1 / (size of its lineage) for every row, shape [n]: lineages count the same, duplicates add nothing."""
    _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / counts[index], dtype=np.float64)


def lineage_mean(y: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Mean over lineages of the mean over their rows: the baseline."""
    return float(np.average(np.asarray(y, dtype=np.float64), weights=lineage_weights(groups)))


def row_groups(groups: npt.ArrayLike | None, n_rows: int) -> npt.NDArray[np.int64]:
    """Lineage of every row as a number, shape [n]; None makes every row its own.

    Raises
    ------
    ValueError
        When there is not one entry per row.
    """
    if groups is None:
        return np.arange(n_rows)
    named = np.asarray(groups)
    if len(named) != n_rows:
        raise ValueError(f"groups must have one entry per row; got {len(named)} for {n_rows} rows")
    return np.asarray(np.unique(named, return_inverse=True)[1], dtype=np.int64).reshape(-1)


def lineage_blocks(groups: npt.ArrayLike) -> list[npt.NDArray[np.intp]]:
    """Row numbers of the lineages, one array [lineages, size] per size of lineage."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    return [np.array([m for m in members if len(m) == size]) for size in sorted({len(m) for m in members})]


__all__ = ["lineage_blocks", "lineage_mean", "lineage_weights", "row_groups"]
