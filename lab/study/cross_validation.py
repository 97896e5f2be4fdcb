"""The protocol's trials: every method in every setting, on lineages that were left out of everything.

Settings: `new_lineage` (nothing of the lineage is known), `known_training` (its earlier checkpoints are scored), `new_benchmark`
(lineage and benchmark left out), `shift_temperature` and `shift_corrupted` (fitted on clean, tested on the changed),
`shift_stronger` (fitted on the weaker half of the lineages, tested on the best quarter).
The unit is the lineage; folds are groups of lineages. Units: points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed

from lab.study.dataset import ZooData
from lab.study.methods.base import Budget, Indices, Method, Test, Training

SETTINGS = ("new_lineage", "known_training", "new_benchmark", "shift_temperature", "shift_corrupted", "shift_stronger")

TRIAL_COLUMNS = (
    "setting", "method", "passes", "cost", "draw", "model", "lineage", "stratum", "benchmark", "counting",
    "actual", "predicted", "low", "high",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """How the trials are run.

    Attributes
    ----------
    settings : tuple of str
    n_folds : int
        Groups of lineages; no more than there are lineages.
    draws : int
        Random draws of the labelled items.
    seed : int
    every_checkpoint : bool
        Test intermediate checkpoints, too; False: final ones only.
    """

    settings: tuple[str, ...] = SETTINGS
    n_folds: int = 8
    draws: int = 3
    seed: int = 0
    every_checkpoint: bool = False


class Situation(NamedTuple):
    """One setting of one fold: what may be fitted on, and what is tested."""

    setting: str
    training: Training
    test: Test


def lineage_folds(data: ZooData, n_folds: int, seed: int) -> list[list[str]]:
    """Lineages in `n_folds` groups, shuffled; strata are spread over the folds."""
    random = np.random.default_rng(seed)
    stratum = {name: data.strata[data.lineages == name][0] for name in data.groups}
    order = [data.groups[i] for i in random.permutation(len(data.groups))]
    order.sort(key=lambda name: str(stratum[name]))
    n = min(n_folds, len(order))
    return [order[start::n] for start in range(n)]


def draw_items(data: ZooData, draws: int, seed: int) -> list[list[Indices]]:
    """Per draw and benchmark all items in random order."""
    random = np.random.default_rng(seed + 1)
    sizes = [int(n) for n in data.n_items]
    return [[random.permutation(size) for size in sizes] for _ in range(draws)]


def situations(data: ZooData, protocol: Protocol, out: Sequence[str]) -> Iterator[Situation]:
    """The situations of the fold that leaves the lineages `out` out."""
    left = np.isin(data.lineages, list(out))
    tested = left if protocol.every_checkpoint else left & data.final
    every = np.arange(len(data.benchmarks))
    scored = np.ones(len(every), dtype=bool)
    clean = Training(data, np.flatnonzero(~left), scored)
    for setting in protocol.settings:
        if setting == "new_lineage":
            yield Situation(setting, clean, Test(np.flatnonzero(tested), every))
        elif setting == "shift_stronger":
            rank = strength(data)
            there = left & data.primary & (rank >= 0.75)
            weaker = Training(data, np.flatnonzero(~left & (rank < 0.5)), scored)
            if there.any() and weaker.n_lineages >= 3:
                yield Situation(setting, weaker, Test(np.flatnonzero(there), every))
        elif setting.startswith("shift_"):
            condition = setting.removeprefix("shift_")
            there = left & data.final & np.isfinite(data.points[condition]).any(axis=1)
            if there.any() and condition in data.items:
                yield Situation(setting, clean, Test(np.flatnonzero(there), every, condition))
        elif setting == "known_training":
            # A training with a single checkpoint has no earlier one that could be known.
            watched = left & data.final & np.isin(data.lineages, data.lineages[~data.final])
            known = np.flatnonzero(~(left & data.final))
            if watched.any():
                yield Situation(setting, Training(data, known, scored), Test(np.flatnonzero(watched), every))
        elif setting == "new_benchmark":
            for group in np.unique(data.twins):
                hidden = data.twins == group
                training = Training(data, np.flatnonzero(~left), ~hidden)
                yield Situation(setting, training, Test(np.flatnonzero(left & data.final), np.flatnonzero(hidden)))


def strength(data: ZooData) -> npt.NDArray[np.float64]:
    """Rank of each checkpoint's lineage by the mean score of its final checkpoint, 0 the weakest to 1 the best, [M]."""
    mean = np.nanmean(data.points["clean"], axis=1)
    best = np.array([mean[(data.lineages == name) & data.final].max(initial=0.0) for name in data.groups])
    rank = best.argsort().argsort() / max(len(best) - 1, 1)
    return np.asarray(rank[np.searchsorted(data.groups, data.lineages)])


def run_trials(
    data: ZooData,
    methods: Callable[[str], Iterable[Method]],
    protocol: Protocol,
    progress: Callable[[int, int], None] | None = None,
    folds: list[list[str]] | None = None,
    jobs: int = 1,
) -> pd.DataFrame:
    """Every method in every setting.

    Parameters
    ----------
    methods : callable
        Setting -> the methods that are judged in it.
    progress : callable or None
        Called with (folds done, folds in all).
    folds : list of lists of lineages, or None
        What is left out together; None: as the protocol says.
    jobs : int
        Folds that are judged at once, each in a process of its own; the result does not depend on it.

    Returns
    -------
    DataFrame
        `TRIAL_COLUMNS`, one row per prediction. `passes` is the budget, `cost` what was used of it.
    """
    if folds is None:
        folds = lineage_folds(data, protocol.n_folds, protocol.seed)
    draws = draw_items(data, protocol.draws, protocol.seed)
    work = (delayed(_fold)(data, methods, protocol, out, draws) for out in folds)
    pieces: list[pd.DataFrame] = []
    for done, found in enumerate(Parallel(n_jobs=max(min(jobs, len(folds)), 1), return_as="generator")(work)):
        pieces += found
        if progress is not None:
            progress(done + 1, len(folds))
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=list(TRIAL_COLUMNS))


def _fold(
    data: ZooData,
    methods: Callable[[str], Iterable[Method]],
    protocol: Protocol,
    out: Sequence[str],
    draws: list[list[Indices]],
) -> list[pd.DataFrame]:
    """The trials of the fold that leaves the lineages `out` out."""
    return [
        piece
        for situation in situations(data, protocol, out)
        for method in methods(situation.setting)
        for piece in _judge(situation, method, draws)
    ]


def _judge(situation: Situation, method: Method, draws: list[list[Indices]]) -> list[pd.DataFrame]:
    data, test = situation.training.data, situation.test
    pieces = []
    for passes in method.budgets(data):
        for number, items in enumerate(draws if method.uses_items else draws[:1]):
            forecast = method.predict(situation.training, test, Budget(passes, items, number))
            if forecast is None:
                continue
            rows, columns = np.meshgrid(test.models, test.targets, indexing="ij")
            piece = {
                "setting": situation.setting,
                "method": method.name,
                "passes": float(passes),
                "cost": float(forecast.passes),
                "draw": number,
                "model": data.models[rows].ravel(),
                "lineage": data.lineages[rows].ravel(),
                "stratum": data.strata[rows].ravel(),
                "benchmark": np.array(data.benchmarks)[columns].ravel(),
                "counting": data.counting[columns].ravel(),
                "actual": data.points[test.condition][rows, columns].ravel(),
                "predicted": forecast.mean.ravel(),
                "low": forecast.low.ravel(),
                "high": forecast.high.ravel(),
            }
            frame = pd.DataFrame(piece)
            pieces.append(frame[np.isfinite(frame["actual"]) & np.isfinite(frame["predicted"])])
    return pieces


def matrix(frame: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    """Values of one method's trials as a matrix [G, B], means over draws and a lineage's checkpoints; NaN where there is none."""
    lineages, row = np.unique(frame["lineage"].to_numpy(dtype=str), return_inverse=True)
    benchmarks, place = np.unique(frame["benchmark"].to_numpy(dtype=str), return_inverse=True)
    cell = row * len(benchmarks) + place
    size = len(lineages) * len(benchmarks)
    total = np.bincount(cell, frame[column].to_numpy(dtype=np.float64), minlength=size)
    count = np.bincount(cell, minlength=size)
    means = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return np.asarray(means.reshape(len(lineages), len(benchmarks)))
