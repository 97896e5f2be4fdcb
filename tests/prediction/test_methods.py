"""Every declared method finds a relation that is planted in what it reads, and none where the scores are another lineage's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from lab.tables import as_product
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.methods import ESTIMATORS, METHODS
from lmms_visual_heads.prediction.regressors.extra_trees import PooledTrees
from tests.builders.zoo import PROGRESS, make_zoo


def shares(lineages_apart: int, monkeypatch: pytest.MonkeyPatch) -> pd.Series:
    """Method -> its left-out error as a share of the mean's, in a made-up zoo where everything that is read tells of the skill.

    Every lineage gets the scores of the one that stands so many places on: its own with 0.
    """
    for name, more in (("trees", {}), ("checked_trees", {"check": (-1,)})):
        monkeypatch.setitem(ESTIMATORS, name, partial(PooledTrees, n_trees=12, **more))  # type: ignore[arg-type]
    zoo = make_zoo(lineages=14, benchmarks=2, items=120, seed=3, heads_follow_skill=1.5)
    models = zoo.checkpoints["model"].to_numpy()
    of = dict(zip(models, np.roll(models, lineages_apart * len(PROGRESS)), strict=True))
    scores = zoo.scores.assign(model=zoo.scores["model"].map(of))
    predictor = BenchmarkPredictor().fit(
        as_product.measurements(zoo), scores, groups=zoo.checkpoints[["model", "lineage"]]
    )
    errors = predictor.methods_.groupby("method")[["error", "baseline_error"]].mean()
    return errors["error"] / errors["baseline_error"]


def test_every_declared_method_finds_what_is_planted_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares(0, monkeypatch)
    assert set(found.index) == {method.name for method in METHODS}
    assert (found < 0.8).all(), found.to_dict()


def test_no_method_finds_anything_in_the_scores_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares(5, monkeypatch)
    assert (found > 0.9).all(), found.to_dict()
