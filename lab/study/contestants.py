"""Who is judged: the product as a user holds it, each of its methods alone, and the baselines that it has to beat.

A contestant has the product's interface and is given what a user has: measurements and scores of references, then measurements of
the asked checkpoints. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd

from lab.study.baselines import CarryForward, Constant, DirectScoring, ItemResponseScoring
from lab.study.settings import PROMPTS, Trial
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.evaluation import EVALUATION_COLUMNS
from lmms_visual_heads.prediction.methods import METHODS

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


class UnexaminedPredictor(BenchmarkPredictor):
    """The product without its evaluation of its own references, which is most of a fit and is done by the judge here.

    What it predicts for models that it was not fitted on is what `BenchmarkPredictor` predicts, bit for bit (a test compares);
    only flags differ.
    """

    def _evaluated(self, data_without: Any, scored: Mapping[str, Any]) -> pd.DataFrame:
        rows = [
            (model, str(lineage), benchmark, actual, actual, actual, actual, actual, "")
            for benchmark, of in scored.items()
            for model, lineage, actual in zip(of.models, of.lineages, of.points, strict=True)
        ]
        return pd.DataFrame(rows, columns=[*EVALUATION_COLUMNS, "method"])


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
            partial(UnexaminedPredictor, methods=(method.name,)),
            partial(_alone, method.name),
            alone=True,
        )
        for method in METHODS
    )
    constants = (
        Contestant(strategy, partial(Constant, strategy, chance), _usual_prompts)
        for strategy in ("mean", "median", "chance")
    )
    return (
        Contestant(PRODUCT, UnexaminedPredictor, _always),
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


def _alone(name: str, trial: Trial) -> bool:
    settings = ("new_training", "known_training") if name in WATCHED else ("new_training",)
    return trial.setting in settings and _usual_prompts(trial)


def _labelled(trial: Trial) -> bool:
    return trial.labels > 0


def _known_training(trial: Trial) -> bool:
    return trial.setting == "known_training"


__all__ = ["PRODUCT", "Contestant", "Estimator", "contestants"]
