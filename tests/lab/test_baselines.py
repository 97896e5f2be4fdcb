"""Baselines against short, obviously right twins, in a made-up zoo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import special

from lab.study.baselines import CarryForward, Constant, DirectScoring, ItemResponseScoring
from lab.study.settings import finals
from lab.tables import as_product
from lab.tables.zoo import ZooTables
from lmms_visual_heads.schema import PREDICTION_COLUMNS
from tests.builders.zoo import make_zoo


@pytest.fixture(scope="module")
def zoo() -> ZooTables:
    return make_zoo(lineages=20, benchmarks=3, items=300)


@pytest.fixture(scope="module")
def known(zoo: ZooTables) -> ZooTables:
    return zoo.only(name for name, run in zoo.lineages.items() if run < "run-15")


@pytest.fixture(scope="module")
def fresh(zoo: ZooTables) -> ZooTables:
    return zoo.only(name for name in finals(zoo) if name >= "run-15")


def points(zoo: ZooTables) -> pd.DataFrame:
    return 100 * zoo.scores.pivot(index="model", columns="benchmark", values="score")


def fitted(estimator, known: ZooTables, items: bool = False):
    labels = as_product.labels(known) if items else None
    return estimator.fit(as_product.measurements(known), known.scores, groups=known.lineages, items=labels)


def predicted(estimator, fresh: ZooTables, doc_ids=None) -> pd.DataFrame:
    items = None if doc_ids is None else as_product.labels(fresh, doc_ids)
    frame = estimator.predict(as_product.measurements(fresh), items=items)
    assert tuple(frame.columns) == PREDICTION_COLUMNS
    assert (frame["low"] <= frame["predicted"]).all()
    assert (frame["predicted"] <= frame["high"]).all()
    return frame.set_index(["model", "benchmark"])


@pytest.mark.parametrize("strategy", ["mean", "median", "chance"])
def test_constants_are_those_of_final_checkpoints(known: ZooTables, fresh: ZooTables, strategy: str) -> None:
    """Against sorting: one final checkpoint a training, so every score has the same weight."""
    chance = dict(zip(known.benchmarks["benchmark"], 100 * known.benchmarks["chance"], strict=True))
    found = predicted(fitted(Constant(strategy, chance), known), fresh)
    final = points(known).loc[list(finals(known))]
    for benchmark, column in final.items():
        expected = {"mean": column.mean(), "median": column.median(), "chance": chance[str(benchmark)]}[strategy]
        rows = found.xs(benchmark, level="benchmark")
        np.testing.assert_allclose(rows["predicted"], expected)
        off = np.sort(np.abs(column - expected))
        rank = int(np.ceil(0.9 * (len(column) + 1) - 1e-9)) - 1  # one training more, infinitely far off
        np.testing.assert_allclose(rows["high"], min(expected + off[min(rank, len(off) - 1)], 100))


def test_direct_scoring_is_the_share_of_right_answers(known: ZooTables, fresh: ZooTables) -> None:
    chosen = [5, 1, 100, 42, 7, 9, 250, 33]
    found = predicted(fitted(DirectScoring(), known), fresh, chosen)
    items = fresh.items[fresh.items["condition"] == "clean"]
    for row in items.to_dict("records"):
        hits = int(row["correct"][chosen].sum())
        cell = found.loc[(row["model"], row["benchmark"])]
        assert cell["predicted"] == pytest.approx(100 * hits / 8)
        high = 100 * special.betaincinv(hits + 0.5, 8 - hits + 0.5, 0.95)
        expected = cell["predicted"] + np.sqrt(1 - 8 / 300) * (high - cell["predicted"])
        assert cell["high"] == pytest.approx(max(expected, cell["predicted"]))
    assert predicted(fitted(DirectScoring(), known), fresh).empty


def test_shrunk_scoring_weighs_by_precision(known: ZooTables, fresh: ZooTables) -> None:
    found = predicted(fitted(DirectScoring(shrunk=True), known), fresh, range(16))
    means = points(known).groupby(pd.Series(known.lineages)).mean()
    for row in fresh.items[fresh.items["condition"] == "clean"].to_dict("records"):
        own = means[row["benchmark"]]
        hits = row["correct"][:16].sum()
        p = (hits + 1) / 18
        noise = 1e4 * p * (1 - p) / 16
        expected = (100 * hits / 16 / noise + own.mean() / own.var()) / (1 / noise + 1 / own.var())
        assert found.loc[(row["model"], row["benchmark"]), "predicted"] == pytest.approx(expected)


def test_an_item_response_model_beats_the_share_where_items_differ(known: ZooTables, fresh: ZooTables) -> None:
    actual = points(fresh).stack()
    errors = {}
    for name, estimator in (("share", DirectScoring()), ("model", ItemResponseScoring())):
        found = predicted(fitted(estimator, known, items=True), fresh, range(24))
        errors[name] = (found["predicted"] - actual).abs().mean()
        if name == "model":
            assert ((found["low"] <= actual) & (actual <= found["high"])).mean() > 0.7
    assert errors["model"] < 0.9 * errors["share"]
    # Where the model is of no use the share is taken: items that have nothing to do with an ability.
    random = np.random.default_rng(0)
    noise = known.items.assign(correct=[random.permutation(cell) for cell in known.items["correct"]])
    estimator = ItemResponseScoring()
    measurements, scores = as_product.measurements(known), known.scores
    estimator.fit(measurements, scores, groups=known.lineages, items=as_product.labels(replace(known, items=noise)))
    useless, share = (
        predicted(estimator, fresh, range(128)),
        predicted(fitted(DirectScoring(), known), fresh, range(128)),
    )
    assert (useless["predicted"] - share["predicted"]).abs().mean() < 0.5 * (share["predicted"] - actual).abs().mean()
    every = predicted(fitted(ItemResponseScoring(), known, items=True), fresh, range(300))
    assert (every["predicted"] - actual).abs().max() < 1e-6


@pytest.mark.parametrize("gain", [True, False])
def test_the_last_score_is_carried_forward(zoo: ZooTables, gain: bool) -> None:
    asked = zoo.only(finals(zoo)[:4])
    known = zoo.only(set(zoo.checkpoints["model"]) - set(asked.checkpoints["model"]))
    found = predicted(fitted(CarryForward(gain), known), asked)
    wide = points(zoo)
    others = [name.rpartition("-")[0] for name in finals(zoo)[4:]]
    for (model, benchmark), row in found.iterrows():
        run = str(model).rpartition("-")[0]
        gains = [wide.loc[f"{other}-s2", benchmark] - wide.loc[f"{other}-s1", benchmark] for other in others]
        usual = np.mean(gains) if gain else 0.0
        assert row["predicted"] == pytest.approx(np.clip(wide.loc[f"{run}-s1", benchmark] + usual, 0, 100))
    assert len(found) == 12
    # A training that nobody scored before has no last score.
    strangers = zoo.only(name for name in zoo.checkpoints["model"] if name < "run-10")
    assert predicted(fitted(CarryForward(gain), strangers), zoo.only(["run-15-s2"])).empty
