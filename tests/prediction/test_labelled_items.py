"""Labelled items on a prior, the confidence map, and prediction-powered inference: twins, edges, simulated worlds, coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit, logit

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.calibration import ConfidenceMap
from lmms_visual_heads.prediction.labelled_items import (
    LabelledItems,
    Prior,
    difference_estimate,
    item_noise,
    label_posterior,
    labelled_of,
    shared_luck_factor,
    shrunk_direct,
)
from lmms_visual_heads.prediction.prediction_powered import APPROXIMATE, EXACT, prediction_powered_mean


def items(n: int, right: int) -> LabelledItems:
    return LabelledItems.of([1.0] * right + [0.0] * (n - right))


class TestPosterior:
    def test_in_the_middle_it_is_the_blend_by_precision(self) -> None:
        after = label_posterior(Prior(60.0, 6.0, np.inf), items(100, 50))
        noise = 1e4 * 0.25 / 100
        precision = 1 / 36 + 1 / noise
        assert after.mean == pytest.approx((60 / 36 + 50 / noise) / precision, abs=0.15)
        assert after.std == pytest.approx(precision**-0.5, rel=0.03)
        assert after.site_mean == pytest.approx(50, abs=0.5)
        assert after.site_variance == pytest.approx(noise, rel=0.06)
        assert after.weight == pytest.approx(36 / (36 + noise), abs=0.03)

    def test_a_flat_prior_gives_the_beta_posterior(self) -> None:
        after = label_posterior(Prior(50.0, 1e4, np.inf), items(20, 15), level=0.9)
        # the likelihood holds the effective number of items, which counts one right and one wrong item more
        n = after.difference.effective
        twin = stats.beta(0.75 * n + 1, 0.25 * n + 1)
        assert after.mean == pytest.approx(100 * twin.mean(), abs=0.1)
        shortest = optimize.minimize_scalar(
            lambda q: twin.ppf(q + 0.9) - twin.ppf(q), bounds=(0, 0.1), method="bounded"
        )
        limits = 100 * twin.ppf(shortest.x), 100 * twin.ppf(shortest.x + 0.9)
        assert (after.low, after.high) == pytest.approx(limits, abs=0.3)
        assert after.high - after.low < 100 * (twin.ppf(0.95) - twin.ppf(0.05))

    @pytest.mark.parametrize("right", [0, 12])
    def test_none_right_and_all_right_are_no_certainty(self, right: int) -> None:
        after = label_posterior(Prior(50.0, 20.0), items(12, right))
        assert (after.low, after.high)[right == 12] == (0.0, 100.0)[right == 12]
        assert 15 < after.high - after.low < 40
        assert after.low < after.mean < after.high
        assert after.std > 2
        assert abs(after.mean - 100 * right / 12) < 30

    def test_intervals_hold_perfect_scores_as_often_as_others(self) -> None:
        """Half of the models get everything right: equal tails would leave every one of them out."""
        random = np.random.default_rng(0)
        truths = np.where(random.random(300) < 0.5, 100.0, random.uniform(80, 100, 300))
        priors = np.clip(truths + random.normal(0, 5, 300), 0, 100)
        inside = []
        for truth, prior in zip(truths, priors, strict=True):
            found = label_posterior(Prior(prior, 5.0), items(16, random.binomial(16, truth / 100)))
            inside.append(found.low <= truth <= found.high)
        assert np.mean(np.array(inside)[truths == 100]) >= 0.85
        assert 0.85 <= np.mean(inside) <= 0.97

    def test_no_prior_is_stronger_than_many_labels_that_contradict_it(self) -> None:
        heavy = label_posterior(Prior(90.0, 3.0), items(128, 40))
        gaussian = label_posterior(Prior(90.0, 3.0, np.inf), items(128, 40))
        assert abs(heavy.mean - 31.25) < 6
        assert gaussian.mean > heavy.mean + 10

    def test_an_unlabelled_surplus_takes_out_the_luck_of_the_draw(self) -> None:
        mapping = ConfidenceMap((0.0, 1.0), (0.0, 1.0), 1.0, 0.05, 9)
        easy = LabelledItems.of([1.0] * 9 + [0.0], [0.9] * 10, [0.5] * 200 + [0.9] * 20)
        found = difference_estimate(easy, mapping)
        assert found.estimate < 0.75
        assert found.estimate == pytest.approx(0.9 + found.power * (np.mean([0.5] * 200 + [0.9] * 20) - 0.9))
        assert 0.8 < found.power < 1

    def test_the_whole_benchmark_labelled_is_known(self) -> None:
        after = label_posterior(Prior(50.0, 10.0), items(200, 130), population=200)
        assert after.mean == pytest.approx(65, abs=0.1)
        assert after.std < 0.2

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: LabelledItems.of([1.0], [0.5, 0.5]), "1 labels came with 2 confidences"),
            (lambda: LabelledItems.of([2.0]), r"Labels must lie in 0\.\.1"),
            (lambda: LabelledItems.of([np.nan]), r"Labels must lie in 0\.\.1"),
            (lambda: LabelledItems.of([1.0], [1.5]), r"Confidences must lie in 0\.\.1"),
            (lambda: label_posterior(Prior(50.0, 5.0), LabelledItems.of([])), "At least one labelled item"),
            (lambda: Prior(50.0, 0.0), "standard deviation above 0"),
            (lambda: label_posterior(Prior(50.0, 5.0), items(3, 1), level=2), "level must lie"),
        ],
    )
    def test_bad_input(self, make: Any, words: str) -> None:
        with pytest.raises(VisualHeadsError, match=words):
            make()

    def test_noise_of_items(self) -> None:
        assert item_noise(50.0, 100, 0.95) == pytest.approx(9.8, abs=0.01)
        assert item_noise(100.0, 25) > 4


def world(kind: str, seed: int, models: int = 24, n: int = 300) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Confidences and correctness of models whose confidence is calibrated, useless, or largest where they are wrong."""
    random = np.random.default_rng(seed)
    confidences, corrects = [], []
    for skill in random.normal(0.5, 1.2, models):
        chance = expit(skill + random.normal(0, 1.5, n))
        corrects.append((random.random(n) < chance).astype(float))
        confidences.append({"calibrated": chance, "useless": random.beta(5, 2, n), "wrong way": 1 - chance}[kind])
    return confidences, corrects


def errors(kind: str, n: int, references: bool, informed: bool) -> tuple[float, float, float]:
    """Mean absolute error of ours and of shrunk direct scoring, and coverage; a prior from the mean confidence, or the mean."""
    ours, theirs, inside = [], [], []
    for seed in range(3):
        confidences, corrects = world(kind, seed)
        scores = np.array([100 * y.mean() for y in corrects])
        mean_logit = np.array([logit(np.clip(c, 0.01, 0.99)).mean() for c in confidences])
        random = np.random.default_rng(seed)
        for m in range(0, 24, 2):
            rest = np.arange(24) != m
            base = Prior(float(scores[rest].mean()), float(scores[rest].std(ddof=1)))
            prior = base
            if informed:
                slope, intercept = np.polyfit(mean_logit[rest], scores[rest], 1)
                left = scores[rest] - intercept - slope * mean_logit[rest]
                prior = Prior(float(np.clip(intercept + slope * mean_logit[m], 0, 100)), float(left.std(ddof=2)) * 1.1)
            others = np.flatnonzero(rest)
            mapping = (
                ConfidenceMap.fit([confidences[i] for i in others], [corrects[i] for i in others], others)
                if references
                else None
            )
            labelled = np.isin(np.arange(300), random.choice(300, n, replace=False))
            given = labelled_of(corrects[m], confidences[m], labelled)
            after = label_posterior(prior, given, mapping, population=300)
            ours.append(abs(after.mean - scores[m]))
            theirs.append(abs(shrunk_direct(base, given.correct) - scores[m]))
            inside.append(after.low <= scores[m] <= after.high)
    return float(np.mean(ours)), float(np.mean(theirs)), float(np.mean(inside))


class TestWorlds:
    @pytest.mark.parametrize("n", [16, 64])
    def test_calibrated_confidences_beat_shrunk_direct_scoring(self, n: int) -> None:
        ours, theirs, inside = errors("calibrated", n, references=False, informed=True)
        assert ours < (0.5 if n == 16 else 0.75) * theirs
        assert 0.75 <= inside <= 1

    @pytest.mark.parametrize("kind", ["useless", "wrong way"])
    @pytest.mark.parametrize(("n", "references"), [(16, False), (16, True), (64, False)])
    def test_never_worse_than_shrunk_direct_scoring_by_more_than_noise(
        self, kind: str, n: int, references: bool
    ) -> None:
        """The prior is the mean in both: what is left is whether the items' confidences do harm."""
        ours, theirs, inside = errors(kind, n, references, informed=False)
        assert ours < 1.05 * theirs
        assert inside >= 0.78

    def test_the_weight_follows_what_the_confidences_are_worth(self) -> None:
        powers = {}
        for kind in ("calibrated", "useless", "wrong way"):
            c, y = world(kind, 0, models=6)
            given = [labelled_of(y[m], c[m], np.arange(300) < 150) for m in range(6)]
            powers[kind] = np.mean([difference_estimate(g, ConfidenceMap.identity()).power for g in given])
        assert powers["calibrated"] > 0.3
        assert abs(powers["useless"]) < 0.15
        assert powers["wrong way"] < -0.3


class TestMap:
    @pytest.mark.parametrize("kind", ["logistic", "isotonic"])
    def test_an_overconfident_benchmark_is_mapped_down(self, kind: str) -> None:
        c, y = world("calibrated", 1)
        sure = [expit(2 * logit(p)) for p in c]
        mapping = ConfidenceMap.fit(sure, y, list(range(len(y))), kind=kind)
        at = expit(2 * logit(np.array([0.3, 0.7, 0.9])))
        np.testing.assert_allclose(mapping(at), [0.3, 0.7, 0.9], atol=0.06)
        assert mapping.slope == pytest.approx(1, abs=0.15)
        assert np.isnan(mapping([np.nan])[0])

    def test_too_few_models_and_one_sided_labels(self) -> None:
        c, y = world("calibrated", 1, models=2)
        assert ConfidenceMap.fit(c, y, [0, 1]) == ConfidenceMap.identity()
        ones = ConfidenceMap.fit([np.linspace(0.1, 0.9, 20)] * 4, [np.ones(20)] * 4, list("abcd"))
        np.testing.assert_allclose(ones([0.2, 0.8]), 1.0)

    def test_a_lineage_counts_once_however_many_checkpoints_it_has(self) -> None:
        c, y = world("calibrated", 2, models=5)
        plain = ConfidenceMap.fit(c, y, list("abcde"))
        more = ConfidenceMap.fit([*c, c[0], c[0]], [*y, y[0], y[0]], list("abcdeaa"))
        np.testing.assert_allclose(more.values, plain.values, atol=1e-4)

    def test_bad_input(self) -> None:
        with pytest.raises(VisualHeadsError, match="2 labels came with 1 confidences"):
            ConfidenceMap.fit([[0.5]], [[1.0, 0.0]], ["a"])
        with pytest.raises(VisualHeadsError, match="one of logistic, isotonic"):
            ConfidenceMap.fit([], [], [], kind="cubic")
        with pytest.raises(VisualHeadsError, match="rising knots"):
            ConfidenceMap((0.0, 0.0), (0.0, 1.0), 1.0, 1.0, 3)


class TestPredictionPowered:
    @pytest.mark.parametrize("n", [10, 30, 120])
    @pytest.mark.parametrize(("location", "spread"), [(-3.0, 1.5), (0.0, 4.0), (2.5, 0.1)])
    def test_coverage(self, n: int, location: float, spread: float) -> None:
        random = np.random.default_rng(0)
        truth = 100 * expit(location + spread * random.normal(size=100_000)).mean()
        inside, worth = [], []
        for _ in range(120):
            chance = expit(location + spread * random.normal(size=n + 300))
            y = (random.random(n) < chance[:n]).astype(float)
            found = prediction_powered_mean(y, chance[:n], chance[n:])
            inside.append(found.low <= truth <= found.high)
            worth.append(found.effective_labels / n)
        assert np.mean(inside) >= 0.83
        if spread == 4.0 and n >= 30:
            assert np.mean(worth) > 1.5

    def test_confidences_that_point_the_wrong_way_help_as_well(self) -> None:
        random = np.random.default_rng(1)
        chance = expit(4 * random.normal(size=400))
        y = (random.random(100) < chance[:100]).astype(float)
        right = prediction_powered_mean(y, chance[:100], chance[100:])
        wrong = prediction_powered_mean(y, 1 - chance[:100], 1 - chance[100:])
        assert wrong.power == pytest.approx(-right.power)
        assert (wrong.mean, wrong.low, wrong.high) == pytest.approx((right.mean, right.low, right.high))

    def test_few_labels_have_the_exact_interval_of_the_labels_alone(self) -> None:
        y = np.array([1.0] * 7 + [0.0] * 3)
        found = prediction_powered_mean(y, np.linspace(0, 1, 10), np.linspace(0, 1, 50), level=0.9)
        assert found.guarantee == EXACT
        assert found.low == pytest.approx(100 * stats.beta.ppf(0.05, 7, 4))
        assert found.high == pytest.approx(100 * stats.beta.ppf(0.95, 8, 3))
        assert prediction_powered_mean(np.tile(y, 3), np.tile(y, 3) * 0.5, np.full(9, 0.3)).guarantee == APPROXIMATE

    def test_power_zero_is_direct_scoring(self) -> None:
        y = np.array([1.0] * 60 + [0.0] * 40)
        found = prediction_powered_mean(y, np.linspace(0, 1, 100), np.full(50, 0.9), power=0.0)
        assert found.mean == found.direct == 60
        assert found.effective_labels == pytest.approx(100, rel=0.02)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (([1.0], [0.5], [0.5]), "At least two labelled items"),
            (([1.0, 0.0], [0.5], [0.5]), "2 labels came with 1 confidences"),
            (([1.0, 2.0], [0.5, 0.5], [0.5]), r"Labels must lie in 0\.\.1"),
            (([1.0, 0.0], [0.5, np.inf], [0.5]), "Confidences must be finite"),
            (([1.0, 0.0], [0.5, 0.5], []), "needs prompts without a label; none came"),
        ],
    )
    def test_bad_input(self, arguments: Any, words: str) -> None:
        with pytest.raises(VisualHeadsError, match=words):
            prediction_powered_mean(*arguments)


def test_luck_that_prediction_and_labels_share_widens_the_interval() -> None:
    """256 prompts of 2,000 items, 64 of them labelled; the prediction sees all 256 with an error of its own of 3 points."""
    random = np.random.default_rng(0)
    own, z, inside, plain, factors = 3.0, stats.norm.ppf(0.95), 0, 0, []
    draws = 600
    for _ in range(draws):
        items = random.random(2000) < random.uniform(0.3, 0.7)
        score = 100 * items.mean()
        prompts = items[:256].astype(float)
        std = np.hypot(own, 100 * np.sqrt(0.25 / 256 * (1 - 256 / 2000)))
        predicted = 100 * prompts.mean() + random.normal(0, own)
        # Confidences say nothing here, so the labels' plain mean is their estimate.
        labelled = LabelledItems(prompts[:64], np.full(64, 0.5), np.full(192, 0.5))
        after = label_posterior(Prior(predicted, float(std)), labelled, population=2000)
        factor = shared_luck_factor(float(std), after, labelled, 2000)
        factors.append(factor)
        plain += abs(after.mean - score) <= z * after.std
        inside += abs(after.mean - score) <= factor * z * after.std
    assert plain / draws < 0.88
    assert 0.87 < inside / draws < 0.95
    assert 1.05 < np.median(factors) < 1.6
    alone = LabelledItems(np.ones(5), np.full(5, np.nan), np.zeros(0))
    told = label_posterior(Prior(50.0, 10.0), alone, population=5)
    assert shared_luck_factor(10.0, told, alone, 5) == pytest.approx(1.0)
