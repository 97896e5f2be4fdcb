"""Frames about scores and the sentences on trust: numbers against slow twins, one test per verdict."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.evaluation import errors_of
from lmms_visual_heads.report import score_frames
from lmms_visual_heads.report.trust import is_small, trust
from tests.builders.report import evaluation, predictions, scores_of


def judged(frame: pd.DataFrame, **options: object):
    return trust(score_frames.evaluation_frame(frame), **options)  # type: ignore[arg-type]


def test_errors_equal_a_slow_twin_and_the_predictors_own_table():
    frame = score_frames.evaluation_frame(evaluation(n_models=11, n_lineages=4))
    errors = score_frames.error_frame(frame).set_index("benchmark")
    own = errors_of(frame).set_index("benchmark")
    for benchmark, part in frame.groupby("benchmark"):
        lineages: dict[str, list[tuple[float, float]]] = {}
        for row in part.itertuples():
            lineages.setdefault(row.lineage, []).append(
                (abs(row.predicted - row.actual), abs(row.baseline - row.actual))
            )
        means = [[sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1)] for pairs in lineages.values()]
        ours, base = (sum(mean[i] for mean in means) / len(means) for i in (0, 1))
        found = errors.loc[benchmark]
        assert found["error"] == pytest.approx(ours)
        assert found["baseline_error"] == pytest.approx(base)
        assert found["difference"] == pytest.approx(ours - base)
        assert found["error"] == pytest.approx(own.loc[benchmark, "error"])
        assert found["covered"] == sum(row.low <= row.actual <= row.high for row in part.itertuples())
        assert found["difference_low"] < found["difference"] < found["difference_high"]


def test_the_interval_of_a_difference_covers_about_as_often_as_it_says():
    held = 0
    for seed in range(60):
        frame = score_frames.evaluation_frame(
            evaluation(20, 20, noise=9, baseline_noise=9, benchmarks=("a",), seed=seed)
        )
        paired = score_frames.paired_difference(frame)
        held += paired["difference_low"] <= 0.3 and paired["difference_high"] >= -0.3
    assert 50 <= held <= 60


def test_one_lineage_has_no_interval_of_the_difference():
    paired = score_frames.paired_difference(score_frames.evaluation_frame(evaluation(3, 1)))
    assert math.isnan(paired["difference_low"])
    assert math.isnan(paired["difference_high"])


def test_direct_scoring_error_equals_a_simulation_and_is_inverted():
    frame = pd.DataFrame({"actual": [86.0, 40.0], "lineage": ["a", "b"]})
    random = np.random.default_rng(0)
    simulated = np.mean([np.abs(random.binomial(100, p, 20000) / 100 - p).mean() * 100 for p in (0.86, 0.40)])
    assert score_frames.direct_scoring_error(frame, 100) == pytest.approx(simulated, rel=0.03)
    for error in (1.0, 5.0):
        n = score_frames.equivalent_items(frame, error)
        assert score_frames.direct_scoring_error(frame, n) == pytest.approx(error)
    assert score_frames.equivalent_items(frame, 0.0) == math.inf


def test_predictions_meet_their_scores_and_unknown_ones_stay_missing():
    made = predictions(["a", "b"], flags="")
    scores = scores_of(made, scale=100.0)
    scores = scores[~((scores["model"] == "b") & (scores["benchmark"] == "scenes_digits"))]
    frame = score_frames.prediction_frame(made, scores)
    assert frame[["model", "benchmark"]].equals(made[["model", "benchmark"]])
    for row in frame.itertuples():
        score = scores[(scores["model"] == row.model) & (scores["benchmark"] == row.benchmark)]["score"]
        if score.empty:
            assert all(math.isnan(v) for v in (row.actual, row.error, row.baseline_error, row.inside, row.n_items))
        else:
            assert row.actual == pytest.approx(score.iloc[0])
            assert row.error == pytest.approx(abs(row.predicted - row.actual))
            assert row.inside == float(row.low <= row.actual <= row.high)
    assert frame["actual"].isna().sum() == 1


def test_scores_are_brought_to_points():
    made = predictions(["a"])
    for scale in (1.0, 100.0, 2800.0):
        frame = score_frames.prediction_frame(made, scores_of(made, scale=scale))
        assert frame["actual"].between(0, 100).all()
        assert frame["actual"].max() > 10


def test_predictions_without_their_columns_are_refused():
    with pytest.raises(VisualHeadsError, match=r"Predictions must have the columns .*; baseline is missing"):
        score_frames.prediction_frame(predictions(["a"]).drop(columns="baseline"))


def test_no_predictor_says_nothing_about_scores():
    verdict = trust(None)
    assert verdict.verdict == "none"
    assert "No prediction was checked against a score here" in verdict.sentence
    assert verdict.details == ()
    assert trust(None, predicted=True).sentence.startswith("Nothing is known about how far to trust these predictions")


def test_better_than_the_baseline_is_said_with_both_errors():
    verdict = judged(evaluation(), level=0.9, small=True, probe_documents=768)
    assert verdict.verdict == "better"
    numbers = verdict.numbers
    assert verdict.sentence == (
        f"Trust a prediction to about {numbers['error']:.1f} points: that is its MAE over 12 small models trained on "
        "drawn scenes from 8 separate trainings, predicting each with its own training left out. The baseline, the mean of the "
        f"others, has {numbers['baseline_error']:.1f}."
    )
    details = " ".join(verdict.details)
    assert "8 separate trainings cannot certify the 90 % level: that takes at least 15" in details
    assert "200 items would have an MAE of about" in details
    assert "At the probe's cost (768 questions) one could score 154 items of each benchmark instead" in details


def test_benchmark_prompts_are_priced_and_the_probe_is_not_where_nothing_needs_it():
    frame = evaluation(noise=1)
    verdict = judged(frame, benchmark_prompts=64)
    details = " ".join(verdict.details)
    assert "probe's cost" not in details
    points = frame["actual"].to_numpy(float) / 100
    # The MAE of a share of 64 draws, every lineage counting the same: a slow twin by drawing.
    drawn = np.random.default_rng(1).binomial(64, np.clip(points, 0, 1), size=(20_000, len(points))) / 64
    errors = pd.Series(100 * np.abs(drawn - points).mean(axis=0)).groupby(frame["lineage"].to_numpy()).mean().mean()
    assert verdict.numbers["benchmark_prompts_error"] == pytest.approx(errors, rel=0.06)
    labelled = verdict.numbers["benchmark_prompts_error"]
    sentence = f"Scored with their labels, the same prompts would have an MAE of about {labelled:.1f} points"
    assert f"a model answers 64 prompts of a benchmark, labels unused. {sentence}" in details
    again = " ".join(judged(frame, benchmark_prompts=64, again=True).details)
    assert f"labels unused, and some again with other images or with heads knocked out. {sentence}" in again


def test_what_did_the_work_is_a_mean_over_benchmarks_with_the_best_first():
    assert score_frames.method_frame(None) is None
    methods = pd.DataFrame(
        [
            ("a", "probe_heads", 8.0, 10.0, False),
            ("a", "own_confidence", 2.0, 10.0, True),
            ("b", "probe_heads", 4.0, 6.0, True),
            ("b", "own_confidence", 5.0, 6.0, False),
            ("a", "own_causal", 6.5, 10.0, False),
        ],
        columns=["benchmark", "method", "error", "baseline_error", "chosen"],
    )
    frame = score_frames.method_frame(methods)
    # 3.5 of 8, 6.5 of 10, 6 of 8: beside the baseline, since own_causal was tried on one benchmark only
    assert frame["method"].tolist() == ["own_confidence", "own_causal", "probe_heads"]
    assert frame["error"].tolist() == [3.5, 6.5, 6.0]
    assert frame["n_benchmarks"].tolist() == [2, 1, 2]
    assert frame["chosen_for"].tolist() == ["a", "", "b"]
    assert frame["words"].tolist()[2] == "the heads on the probe"


def test_no_better_than_the_baseline_warns_against_choosing():
    verdict = judged(evaluation(noise=10, baseline_noise=10))
    assert verdict.verdict == "not better"
    assert verdict.sentence.startswith(
        "Do not choose between models by these predictions: over 12 models from 8 separate trainings"
    )
    assert "That is no better than the baseline, the mean of the others" in verdict.sentence


def test_worse_than_the_baseline_is_said():
    verdict = judged(evaluation(noise=20, baseline_noise=3))
    assert verdict.verdict == "worse"
    assert "That is worse than the baseline, the mean of the others" in verdict.sentence


def test_too_few_lineages_make_an_illustration_however_good_the_numbers():
    verdict = judged(evaluation(n_models=12, n_lineages=4, noise=0.1))
    assert verdict.verdict == "too few"
    assert verdict.sentence.startswith(
        "Take the predictions as an illustration only: 12 models from 4 separate trainings are too few"
    )


def test_enough_lineages_certify_the_level():
    details = " ".join(judged(evaluation(n_models=16, n_lineages=16), level=0.9).details)
    assert "they were made to hold 90 %" in details
    assert "cannot certify" not in details


@pytest.mark.parametrize(("noise", "better"), [(8.0, True), (0.5, False)])
def test_direct_scoring_is_called_the_better_buy_only_when_it_is(noise, better):
    verdict = judged(evaluation(noise=noise, baseline_noise=25), probe_documents=768)
    details = " ".join(verdict.details)
    assert ("where a benchmark's labels are at hand, that is the better buy" in details) is better
    assert ("at that price direct scoring is the better buy" in details) is better
    assert ("at that price the probe is the better buy" in details) is not better


def test_left_out_rows_without_a_score_do_not_count():
    frame = evaluation()
    frame.loc[::3, "actual"] = np.nan
    assert len(score_frames.evaluation_frame(frame)) == frame["actual"].notna().sum()
    frame["actual"] = np.nan
    assert judged(frame).verdict == "none"


def test_only_tiny_models_on_drawn_scenes_are_called_so():
    assert is_small([1e5, 2e5], ["scenes_colour"])
    assert not is_small([1e5, 7e9], ["scenes_colour"])
    assert not is_small([1e5], ["scenes_colour", "pope"])
    assert not is_small([1e5, math.nan], ["scenes_colour"])
    assert not is_small([None], ["scenes_colour"])
