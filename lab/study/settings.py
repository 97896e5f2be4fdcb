"""What a study tries: which checkpoints are references, which are asked about, and what is shown of them.

| setting | references | what is shown of the asked final checkpoints |
|---|---|---|
| new_training | all other trainings | 256 answered prompts of each benchmark, some of them labelled |
| equal_cost | all other trainings | as many prompts as are paid for, none or all of them labelled |
| known_training | also the earlier checkpoints of the same training | 256 answered prompts |
| temperature, corrupted | all other trainings, as they are | prompts answered at another temperature, or to corrupted images |
| stronger | the weaker half of the trainings | 256 answered prompts of the best quarter |

The unit that is left out is the training. Units: points, prompts of each benchmark. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lab.tables.zoo import ZooTables

PROMPTS = 256
"""Prompts of each benchmark that every reference has answered; labelled items are some of them."""
LABELS = (0, 16, 32, 128)
PAID = (16, 64, 128, 256)
"""Answered prompts where nothing else is answered; labelled, they are the equal cost of direct scoring."""
SETTINGS = ("new_training", "equal_cost", "known_training", "temperature", "corrupted", "stronger")
OWN = "development"
"""Name of the set that is judged by leaving its trainings out."""
REPEAT_SUFFIX = "-repeat"
"""Ending of the name of a training that repeats another one from scratch."""
_SEED_OF_DRAWS = 7


@dataclass(frozen=True, order=True)
class Trial:
    """What is shown of the asked checkpoints.

    Attributes
    ----------
    setting : str
        One of `SETTINGS`.
    prompts, labels : int
        Answered prompts of each benchmark, and how many of them have a label.
    draw : int
        Which random draw of the labelled items.
    condition : str
        One of `schema.ZOO_CONDITIONS`.
    """

    setting: str
    prompts: int = PROMPTS
    labels: int = 0
    draw: int = 0
    condition: str = "clean"

    @property
    def doc_ids(self) -> np.ndarray:
        """The labelled items, the same of every benchmark and checkpoint: all that are answered, or a draw from them."""
        if self.labels == self.prompts:
            return np.arange(self.prompts)
        return np.random.default_rng(_SEED_OF_DRAWS + self.draw).permutation(self.prompts)[: self.labels]


@dataclass(frozen=True)
class Subjects:
    """Checkpoints of one set of tables, and the trials about them."""

    tables: str
    models: tuple[str, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Fit:
    """One fit: the references, always of the studied set, and who is asked about after it.

    `alone` says whether the product's methods are judged one by one after it, too: each is a fit of its own.
    """

    name: str
    references: tuple[str, ...]
    asked: tuple[Subjects, ...]
    alone: bool = True


def trials(draws: int = 1, whole: bool = True) -> tuple[Trial, ...]:
    """The trials about a new training; `whole` False: the setting new_training only."""
    new = [Trial("new_training", labels=count, draw=draw) for count in LABELS for draw in range(draws if count else 1)]
    if not whole:
        return tuple(new)
    equal = [Trial("equal_cost", count, some) for count in PAID for some in (0, count) if (count, some) != (PROMPTS, 0)]
    shifted = [Trial(name, labels=n, condition=name) for name in ("temperature", "corrupted") for n in (0, 32)]
    return (*new, *equal, *shifted)


def training_folds(trainings: Sequence[str], n: int, seed: int = 0) -> list[list[str]]:
    """Trainings in `n` groups, shuffled."""
    names = sorted(set(trainings))
    order = np.random.default_rng(seed).permutation(len(names))
    return [sorted(names[i] for i in order[start::n]) for start in range(min(n, len(names)))]


def plan(
    zoo: ZooTables,
    held_out: dict[str, ZooTables],
    folds: int = 4,
    draws: int = 1,
    seed: int = 0,
    groups: pd.Series | None = None,
) -> list[Fit]:
    """Every fit of a study, in the order in which results are put together.

    Parameters
    ----------
    zoo : ZooTables
        The studied set, without repeats.
    held_out : dict
        Name -> further trainings; they are asked about after one fit on all of `zoo`. Where there are any, methods alone are
        judged on them, and equal cost and shifts on the first of them.
    folds, draws, seed : int
        Groups of trainings that are left out in turn; draws of the labelled items; seed of the groups.
    groups : Series or None
        Training of every checkpoint where copies were joined; None: as the tables say.
    """
    models = zoo.checkpoints["model"]
    training = zoo.checkpoints["lineage"] if groups is None else models.map(groups)
    final = zoo.checkpoints["final"].astype(bool)
    fits = []
    if held_out:
        asked = tuple(
            Subjects(name, finals(tables), trials(draws, whole=number == 0))
            for number, (name, tables) in enumerate(held_out.items())
        )
        fits.append(Fit("all", tuple(models), asked))
    for number, out in enumerate(training_folds(list(training), folds, seed)):
        left = training.isin(out)
        asked = (Subjects(OWN, tuple(models[left & final]), trials(draws, whole=not held_out)),)
        fits.append(Fit(f"fold {number}", tuple(models[~left]), asked, alone=not held_out))
    several = training.map(training.value_counts()) > 1
    # Half the final checkpoints at once: a fit costs minutes, and their trainings stay among the references.
    for number, out in enumerate(training_folds(list(training), 2, seed)):
        left = training.isin(out) & final
        asked = (Subjects(OWN, tuple(models[left & several]), (Trial("known_training"),)),)
        fits.append(Fit(f"known, half {number}", tuple(models[~left]), asked))
    rank = strength(zoo, training)
    weaker, best = models[rank < 0.5], models[(rank >= 0.75) & final]
    if len(best) and training[rank < 0.5].nunique() >= 3:
        stronger = tuple(Trial("stronger", labels=count) for count in (0, 16, 32))
        fits.append(Fit("weaker half", tuple(weaker), (Subjects(OWN, tuple(best), stronger),), alone=False))
    return fits


def finals(zoo: ZooTables) -> tuple[str, ...]:
    """Final checkpoints."""
    return tuple(zoo.checkpoints["model"][zoo.checkpoints["final"].astype(bool)])


def strength(zoo: ZooTables, training: pd.Series) -> pd.Series:
    """Rank of every checkpoint's training by the mean score of its best final checkpoint, 0 the weakest to 1 the best."""
    mean = zoo.scores.assign(share=zoo.scores["score"] / zoo.scores["scale"]).groupby("model")["share"].mean()
    own = zoo.checkpoints["model"].map(mean)
    final = zoo.checkpoints["final"].astype(bool)
    best = own[final].groupby(training[final]).max()
    return training.map((best.rank(method="first") - 1) / max(len(best) - 1, 1))


def without_repeats(zoo: ZooTables) -> ZooTables:
    """The tables without trainings repeated from scratch."""
    return zoo.only(zoo.checkpoints["model"][~zoo.checkpoints["lineage"].str.endswith(REPEAT_SUFFIX)])


__all__ = [
    "LABELS",
    "OWN",
    "PAID",
    "PROMPTS",
    "SETTINGS",
    "Fit",
    "Subjects",
    "Trial",
    "finals",
    "plan",
    "strength",
    "training_folds",
    "trials",
    "without_repeats",
]  # fmt: skip
