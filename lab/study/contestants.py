"""Who is judged: the product as a user holds it, each of its methods alone, and the baselines that it has to beat.

A contestant has the product's interface and is given what a user has: measurements and scores of references, then measurements of
the asked checkpoints. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd

from lab.study.baselines import CarryForward, Constant, DirectScoring, ItemResponseScoring
from lab.study.settings import PROMPTS, Trial
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.methods import METHODS, DeclaredMethod

PRODUCT = "product"
WATCHED = ("probe_heads", "training", "probe_accuracy", "own_causal", "own_answers_trees")
"""Methods that are judged alone in a known training, too."""


class Estimator(Protocol):
    """The interface of the product, which every contestant has."""

    def fit(
        self, measurements: Any, scores: pd.DataFrame, *, groups: Any = None, items: pd.DataFrame | None = None
    ) -> Any:
        """Learn from references."""

    def predict(
        self, measurements: Any, *, known_scores: pd.DataFrame | None = None, items: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """`schema.PREDICTION_COLUMNS`."""


@dataclass(frozen=True)
class Contestant:
    """One who is judged.

    Attributes
    ----------
    name : str
        As the tables have it.
    make : callable
        Gives a fresh estimator.
    answers : callable
        Whether it takes part in a trial; where it would only repeat itself it does not.
    reference_items : bool
        Whether its fit is given the references' items.
    alone : bool
        Whether it is one method of the product; these are judged where `Fit.alone` says so.
    """

    name: str
    make: Callable[[], Estimator]
    answers: Callable[[Trial], bool]
    reference_items: bool = False
    alone: bool = False


def contestants(benchmarks: pd.DataFrame) -> tuple[Contestant, ...]:
    """Everyone, for a set of benchmarks (`schema.ZOO_BENCHMARK_COLUMNS`)."""
    chance = {str(row["benchmark"]): 100.0 * float(row["chance"]) for row in benchmarks.to_dict("records")}
    alone = (
        Contestant(
            method.name,
            partial(BenchmarkPredictor, methods=(method.name,)),
            partial(_alone, method),
            alone=True,
        )
        for method in METHODS
    )
    constants = (
        Contestant(strategy, partial(Constant, strategy, chance), _usual_prompts)
        for strategy in ("mean", "median", "chance")
    )
    return (
        Contestant(PRODUCT, BenchmarkPredictor, _always),
        *constants,
        Contestant("direct", DirectScoring, _labelled),
        Contestant("direct, shrunk", partial(DirectScoring, True), _labelled),
        Contestant("item response", ItemResponseScoring, _labelled, reference_items=True),
        Contestant("last score", partial(CarryForward, False), _known_training),
        Contestant("last score + gain", CarryForward, _known_training),
        *alone,
    )


def _always(trial: Trial) -> bool:
    return True


def _usual_prompts(trial: Trial) -> bool:
    return trial.prompts == PROMPTS and trial.labels == 0


def _alone(method: DeclaredMethod, trial: Trial) -> bool:
    if trial.setting == "known_training" and method.name not in WATCHED:
        return False
    # Knock-outs were measured under the clean condition only.
    measured = trial.condition == "clean" or not any(column.startswith("own_causal") for column in method.columns)
    return measured and _usual_prompts(trial)


def _labelled(trial: Trial) -> bool:
    return trial.labels > 0


def _known_training(trial: Trial) -> bool:
    return trial.setting == "known_training"


__all__ = ["PRODUCT", "Contestant", "Estimator", "contestants"]
