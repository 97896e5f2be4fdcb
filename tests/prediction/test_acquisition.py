"""`visual-heads plan`: greedy plans against brute force, known scores, both kinds of belief, the command."""

from __future__ import annotations

import io
import itertools
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from lmms_visual_heads.cli import app
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.acquisition import (
    Belief,
    belief_of_predictor,
    belief_of_scores,
    expected_error,
    item_variance,
    observe,
    plan_items,
)


def belief(seed: int, D: int = 4) -> Belief:
    random = np.random.default_rng(seed)
    root = random.normal(size=(D, D)) * 8
    return Belief(tuple("abcdefgh"[:D]), random.uniform(20, 90, D), root @ root.T + np.eye(D))


def error_of(start: Belief, items: tuple[int, ...]) -> float:
    """Slow twin: all observations at once, by the inverse of the sum of precisions."""
    precision = np.linalg.inv(start.covariance) + np.diag(np.array(items) / item_variance(start.mean))
    return float(np.sqrt(2 / np.pi) * np.sqrt(np.diag(np.linalg.inv(precision))).mean())


@pytest.mark.parametrize("seed", range(5))
def test_first_step_is_the_best_of_all(seed: int) -> None:
    start = belief(seed)
    steps = plan_items(start, budget=16, batch=16)
    errors = [error_of(start, tuple(16 * (d == b) for d in range(4))) for b in range(4)]
    assert steps["benchmark"].tolist() == [start.benchmarks[int(np.argmin(errors))]]
    assert steps["error_after"].iloc[0] == pytest.approx(min(errors))
    assert steps["error_before"].iloc[0] == pytest.approx(expected_error(start.covariance))


@pytest.mark.parametrize("seed", range(5))
def test_plan_is_close_to_the_best_split(seed: int) -> None:
    start = belief(seed)
    steps = plan_items(start, budget=64, batch=8)
    used = steps.groupby("benchmark")["items"].sum()
    assert steps["error_after"].iloc[-1] == pytest.approx(
        error_of(start, tuple(used.get(b, 0) for b in start.benchmarks))
    )
    splits = [s for s in itertools.product(range(0, 65, 8), repeat=4) if sum(s) == 64]
    best, worst = (f(error_of(start, s) for s in splits) for f in (min, max))
    assert best <= steps["error_after"].iloc[-1] + 1e-9
    assert steps["error_after"].iloc[-1] <= best + 0.1 * (worst - best)


def test_budget_limits_and_order() -> None:
    steps = plan_items(belief(1), budget=50, batch=16, largest=20)
    assert steps["items"].sum() == 50
    assert steps["forward_passes"].iloc[-1] == 50
    assert (steps.groupby("benchmark")["items"].sum() <= 20).all()
    assert (steps["error_after"] < steps["error_before"]).all()
    assert plan_items(belief(1), budget=500, largest=10)["items"].sum() == 40
    with pytest.raises(VisualHeadsError, match="at least 1"):
        plan_items(belief(1), budget=0)


def test_nothing_left_to_learn_is_an_empty_plan() -> None:
    assert plan_items(Belief(("a",), np.array([50.0]), np.zeros((1, 1)))).empty


def test_one_item_informs_a_benchmark_that_is_its_copy() -> None:
    after = observe(np.full((2, 2), 100.0), 0, 100.0)
    assert np.allclose(after, 50.0)


def reference_scores(models: int = 30) -> pd.DataFrame:
    random = np.random.default_rng(0)
    skill = random.normal(size=models)
    rows = [
        (f"m{i}", name, float(np.clip(50 + w * skill[i] + random.normal(), 0, 100)))
        for i in range(models)
        for name, w in (("hard", 12.0), ("easy", 10.0), ("own", 0.0))
    ]
    table = pd.DataFrame(rows, columns=["model", "benchmark", "score"])
    table.loc[table["benchmark"] == "own", "score"] = random.uniform(10, 90, models)
    return table


def test_known_score_leaves_the_unrelated_benchmark_to_be_measured() -> None:
    table = reference_scores()
    known = pd.DataFrame({"model": ["new"], "benchmark": ["hard"], "score": [70.0]})
    before, after = belief_of_scores(table), belief_of_scores(table, known)
    assert expected_error(after.covariance) < 0.8 * expected_error(before.covariance)
    assert after.mean[after.benchmarks.index("easy")] > before.mean[before.benchmarks.index("easy")] + 5
    assert plan_items(after, budget=16)["benchmark"].tolist() == ["own"]


def test_known_score_over_few_items_says_less() -> None:
    table = reference_scores()
    spreads = []
    for n in (4, 4000):
        known = pd.DataFrame({"model": ["new"], "benchmark": ["hard"], "score": [70.0], "n_items": [n]})
        spreads.append(expected_error(belief_of_scores(table, known).covariance))
    assert spreads[0] > spreads[1] + 0.5


def test_known_scores_in_other_units_and_of_several_models_are_refused() -> None:
    table = reference_scores()
    with pytest.raises(VisualHeadsError, match="scale"):
        belief_of_scores(table, pd.DataFrame({"model": ["n"], "benchmark": ["hard"], "score": [0.7], "scale": [1.0]}))
    with pytest.raises(VisualHeadsError, match="one model"):
        belief_of_scores(table, pd.DataFrame({"model": ["a", "b"], "benchmark": ["hard"] * 2, "score": [7.0, 8.0]}))


def test_predictor_gives_the_covariance_of_left_out_errors() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(size=40) * 8
    errors = {"x": shared + random.normal(size=40), "y": shared + random.normal(size=40), "z": random.normal(size=40)}
    evaluation = pd.concat(
        pd.DataFrame({"model": [f"m{i}" for i in range(40)], "benchmark": name, "actual": 50 + e, "predicted": 50.0})
        for name, e in errors.items()
    )
    benchmarks = pd.DataFrame({"benchmark": list("xyz"), "metric": "score", "scale": 100.0})
    fitted = cast(Any, SimpleNamespace(evaluation_=evaluation, lineages_={}, benchmarks_=benchmarks))
    start = belief_of_predictor(fitted)
    assert np.allclose(np.sqrt(np.diag(start.covariance)), [np.sqrt((e**2).mean()) for e in errors.values()])
    known = pd.DataFrame({"model": ["new"], "benchmark": ["x"], "score": [62.0]})
    after = belief_of_predictor(fitted, known)
    assert after.covariance[1, 1] < 0.7 * start.covariance[1, 1]
    assert after.mean[1] > 55
    assert plan_items(start, budget=8)["benchmark"].iloc[0] in ("x", "y")


def test_command(tmp_path: Any) -> None:
    path = tmp_path / "scores.csv"
    reference_scores().to_csv(path, index=False)
    runner = CliRunner()
    result = runner.invoke(app, ["plan", "--scores", str(path), "--budget", "64", "--format", "csv"])
    assert result.exit_code == 0, result.output
    steps = pd.read_csv(io.StringIO(result.output))
    assert steps["items"].sum() == 64
    assert (steps["error_after"] < steps["error_before"]).all()
    table = runner.invoke(app, ["plan", "--scores", str(path), "--budget", "64"])
    assert "points now" in " ".join(table.output.split())
    assert isinstance(runner.invoke(app, ["plan"]).exception, VisualHeadsError)


def test_command_with_a_predictor_file(tmp_path: Any) -> None:
    from lmms_visual_heads.features import HeadProfiles, Measurements
    from lmms_visual_heads.prediction import BenchmarkPredictor
    from tests.builders import synthetic

    made = synthetic.world(8, 2, seed=9)
    fitted = BenchmarkPredictor().fit(
        Measurements(heads=HeadProfiles.from_tables(made.tables)), made.scores, groups=made.lineages
    )
    path = fitted.save(tmp_path / "a.predictor")
    start, again = belief_of_predictor(fitted), belief_of_predictor(BenchmarkPredictor.load(path))
    assert start.benchmarks == again.benchmarks
    assert np.allclose(start.covariance, again.covariance)
    result = CliRunner().invoke(app, ["plan", "--predictor", str(path), "--budget", "32", "--format", "json"])
    assert result.exit_code == 0, result.output
    assert sum(step["items"] for step in json.loads(result.output)) == 32
