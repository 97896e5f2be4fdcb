"""Labels and confidences beside their definitions, written out slowly, and beside what drawing labels again and again gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmms_visual_heads.prediction.calibration import ConfidenceMap
from lmms_visual_heads.prediction.gaussian_update import Known, condition_on, residual_correlation
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
from lmms_visual_heads.prediction.prediction_powered import prediction_powered_mean

CALIBRATED = ConfidenceMap((0.0, 1.0), (0.0, 1.0), 1.0, 0.05, 9)


def benchmark(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated confidences and the correctness drawn from them."""
    random = np.random.default_rng(seed)
    chance = random.beta(0.6, 0.4, n)
    return chance, (random.random(n) < chance).astype(float)


def drawn(seed: int, n: int, times: int, size: int = 1000) -> Any:
    """Labelled items of random subsets of one benchmark, and its score."""
    chance, right = benchmark(seed, size)
    random = np.random.default_rng(seed + 1)
    for _ in range(times):
        labelled = np.isin(np.arange(size), random.choice(size, n, replace=False))
        yield labelled_of(right, chance, labelled), right.mean()


class TestDifference:
    def test_it_is_the_published_estimate_with_a_shrunk_slope(self) -> None:
        for items, _ in drawn(0, 20, 3):
            found = difference_estimate(items, CALIBRATED)
            y, g, rest = items.correct, items.confidence, items.unlabelled
            n, n_rest = len(y), len(rest)
            p = (y.sum() + 1) / (n + 2)
            seen = sum((a - g.mean()) * (b - y.mean()) for a, b in zip(g, y, strict=True)) / sum((g - g.mean()) ** 2)
            precision = sum((g - g.mean()) ** 2) / (p * (1 - p))
            slope = (precision * seen + 1.0 / 0.05**2) / (precision + 1 / 0.05**2)
            assert found.slope == pytest.approx(slope)
            assert found.power == pytest.approx(slope * n_rest / (n + n_rest))
            assert found.estimate == pytest.approx(y.mean() + found.power * (rest.mean() - g.mean()))
            assert found.effective == pytest.approx(p * (1 - p) / found.variance)

    @pytest.mark.parametrize("n", [40, 250])
    def test_its_variance_is_that_of_drawing_the_labels_again(self, n: int) -> None:
        """Of a sample without replacement: what is labelled is known, as `population` says."""
        estimates, variances, plain = [], [], []
        for items, _ in drawn(3, n, 400):
            found = difference_estimate(items, CALIBRATED, population=1000)
            estimates.append(found.estimate)
            variances.append(found.variance)
            plain.append(items.correct.mean())
        assert np.mean(variances) == pytest.approx(np.var(estimates), rel=0.25)
        assert np.mean(variances) < 0.7 * np.var(plain), "the confidences are worth something here"
        assert np.mean(estimates) == pytest.approx(benchmark(3, 1000)[1].mean(), abs=0.01)

    def test_without_confidences_it_is_the_mean_of_the_labels(self) -> None:
        items = LabelledItems.of([1.0] * 6 + [0.0] * 2)
        found = difference_estimate(items, CALIBRATED)
        assert (found.estimate, found.power, found.slope) == (0.75, 0.0, 0.0)
        assert found.variance == pytest.approx(0.7 * 0.3 / 8)
        assert difference_estimate(items, CALIBRATED, 32).variance == pytest.approx(0.7 * 0.3 / 8 * 0.75)
        # One missing confidence among the labelled, or none without a label: they are not used.
        missing = LabelledItems.of([1.0, 0.0], [0.9, np.nan], [0.4])
        assert difference_estimate(missing, CALIBRATED).estimate == 0.5
        assert difference_estimate(LabelledItems.of([1.0, 0.0], [0.9, 0.2]), CALIBRATED).power == 0.0
        # Missing among the rest: the others stand for them.
        some = difference_estimate(LabelledItems.of([1.0, 0.0], [0.9, 0.2], [0.4, np.nan]), CALIBRATED)
        assert some == difference_estimate(LabelledItems.of([1.0, 0.0], [0.9, 0.2], [0.4]), CALIBRATED)

    def test_confidences_never_save_more_than_nine_tenths(self) -> None:
        y = np.tile([1.0, 0.0], 20)
        perfect = difference_estimate(LabelledItems.of(y, y, np.tile(y, 50)), CALIBRATED)
        assert perfect.effective == pytest.approx(400)


class TestPosterior:
    @pytest.mark.parametrize("degrees", [5.0, 30.0])
    def test_it_is_prior_times_likelihood(self, degrees: float) -> None:
        """Student's prior has the central 90 % of a Gaussian with the spread that was asked for."""
        after = label_posterior(Prior(70.0, 8.0, degrees), LabelledItems.of([1.0] * 5 + [0.0] * 5))
        n = after.difference.effective
        scale = 8.0 * stats.norm.ppf(0.95) / stats.t.ppf(0.95, degrees)
        points = np.linspace(0.0005, 0.9995, 20_001)
        density = stats.t.pdf((100 * points - 70) / scale, degrees) * points ** (n / 2) * (1 - points) ** (n / 2)
        density /= density.sum()
        mean = (points * density).sum()
        std = np.sqrt(((points - mean) ** 2 * density).sum())
        assert after.mean == pytest.approx(100 * mean, abs=0.02)
        assert after.std == pytest.approx(100 * std, rel=0.002)
        # The Gaussian observation that takes the prior's moments to the posterior's.
        before = stats.t.pdf((100 * points - 70) / scale, degrees)
        before /= before.sum()
        mean_before = (points * before).sum()
        variance_before = ((points - mean_before) ** 2 * before).sum()
        precision = 1 / after.site_variance + 1 / (1e4 * variance_before)
        assert after.std**-2 == pytest.approx(precision, rel=0.002)
        blend = (after.site_mean / after.site_variance + mean_before / (100 * variance_before)) / precision
        assert after.mean == pytest.approx(blend, abs=0.02)
        assert after.weight == pytest.approx(1 - after.std**2 / (1e4 * variance_before), abs=0.002)

    def test_its_interval_holds_the_level(self) -> None:
        items = LabelledItems.of([1.0] * 30 + [0.0] * 10)
        ends = {level: label_posterior(Prior(60.0, 1e4, np.inf), items, level=level) for level in (0.5, 0.9)}
        n = ends[0.5].difference.effective
        twin = stats.beta(0.75 * n + 1, 0.25 * n + 1)
        for level, after in ends.items():
            assert twin.cdf(after.high / 100) - twin.cdf(after.low / 100) == pytest.approx(level, abs=0.005)

    def test_shrunk_direct_scoring_is_the_blend_by_precision(self) -> None:
        noise = 1e4 * (4 / 10) * (6 / 10) / 8
        expected = (37.5 / noise + 60 / 25) / (1 / noise + 1 / 25)
        assert shrunk_direct(Prior(60.0, 5.0), [1.0] * 3 + [0.0] * 5) == pytest.approx(expected)

    def test_item_noise_is_the_half_width_of_a_share(self) -> None:
        assert item_noise(80.0, 50, 0.8) == pytest.approx(100 * stats.norm.ppf(0.9) * np.sqrt(0.8 * 0.2 / 50))
        assert item_noise(0.0, 50) == item_noise(2.0, 50) > 0

    def test_shared_luck_is_in_both_and_the_rest_is_blended(self) -> None:
        items = LabelledItems(np.tile([1.0, 0.0], 20), np.full(40, 0.5), np.full(60, 0.5))
        after = label_posterior(Prior(50.0, 8.0), items, population=400)
        shared = 1e4 * (after.mean / 100) * (1 - after.mean / 100) / 100 * (1 - 100 / 400)
        before, labels = 64.0, 1e4 * after.difference.variance
        e, v = before - shared, labels - shared
        expected = np.sqrt((shared + e * v / (e + v)) / (before * labels / (before + labels)))
        assert shared_luck_factor(8.0, after, items, 400) == pytest.approx(expected)
        assert expected > 1.02


class TestPredictionPowered:
    @pytest.mark.parametrize("n", [12, 60])
    def test_the_weight_is_the_published_one(self, n: int) -> None:
        chance, right = benchmark(1, n + 200)
        y, c, rest = right[:n], chance[:n], chance[n:]
        found = prediction_powered_mean(y, c, rest)
        covariance = ((y - y.mean()) * (c - c.mean())).sum() / (n - 1)
        weight = covariance / ((1 + n / 200) * chance.var(ddof=1))
        assert found.power == pytest.approx(weight / (2 if n < 30 else 1))
        assert found.mean == pytest.approx(100 * (y.mean() + found.power * (rest.mean() - c.mean())))
        assert found.direct == pytest.approx(100 * y.mean())

    def test_labels_count_as_many_as_drawing_again_says(self) -> None:
        estimates, effective, plain = [], [], []
        for seed in range(300):
            chance, right = benchmark(seed, 300)
            found = prediction_powered_mean(right[:60], chance[:60], chance[60:])
            estimates.append(found.mean)
            effective.append(found.effective_labels)
            plain.append(found.direct)
        assert np.mean(effective) == pytest.approx(60 * np.var(plain) / np.var(estimates), rel=0.2)

    def test_the_interval_is_wilsons_with_students_quantile(self) -> None:
        y, c = np.array([1.0] * 45 + [0.0] * 15), np.linspace(0, 1, 60)
        found = prediction_powered_mean(y, c, np.full(40, 0.7), level=0.8, power=0.0)
        # Two parameters more than the plain mean has; the labels are worth that much less.
        n = 60 / (59 / 58)
        assert found.effective_labels == pytest.approx(n)
        level = 2 * stats.norm.cdf(stats.t.ppf(0.9, 59)) - 1
        z = stats.norm.ppf((1 + level) / 2)
        center = (0.75 + z**2 / (2 * n)) / (1 + z**2 / n)
        assert found.low + found.high == pytest.approx(200 * center)
        # An end of Wilson's interval is a share from which the observed one is z standard errors away.
        for end in (found.low / 100, found.high / 100):
            assert abs(0.75 - end) == pytest.approx(z * np.sqrt(end * (1 - end) / n))

    @pytest.mark.parametrize(("right", "n"), [(0, 9), (9, 9), (4, 9), (20, 29)])
    def test_few_labels_have_scipys_exact_interval(self, right: int, n: int) -> None:
        y = np.array([1.0] * right + [0.0] * (n - right))
        twin = stats.binomtest(right, n).proportion_ci(0.9, method="exact")
        found = prediction_powered_mean(y, np.linspace(0, 1, n), [0.5, 0.6], level=0.9)
        assert (found.low, found.high) == pytest.approx((100 * twin.low, 100 * twin.high))
        assert found.low <= found.mean <= found.high

    def test_partial_credit_with_few_labels_is_drawn_once_and_for_all(self) -> None:
        y = np.full(20, 0.9)
        one, other = (prediction_powered_mean(y, np.linspace(0, 1, 20), [0.5, 0.6]) for _ in range(2))
        assert one == other
        assert 60 < one.low < 90 < one.high

    def test_an_estimate_beyond_the_edge_is_the_edge(self) -> None:
        y, c = np.array([1.0] * 38 + [0.0] * 2), np.linspace(1, 0, 40)
        assert prediction_powered_mean(y, c, np.full(50, 0.9), power=1.0).mean == 100.0
        assert prediction_powered_mean(1 - y, c, np.full(50, 0.1), power=1.0).mean == 0.0


class TestMap:
    def test_isotonic_is_a_staircase_and_logistic_a_curve(self) -> None:
        c = np.linspace(0.05, 0.95, 200)
        y = (c > 0.5).astype(float)
        y[[90, 109]] = 1 - y[[90, 109]]
        stairs, curve = (ConfidenceMap.fit([c] * 3, [y] * 3, list("abc"), kind=k) for k in ("isotonic", "logistic"))
        assert stairs.n_models == curve.n_models == 3, "three models are enough"
        assert (stairs([0.2]) == stairs([0.3]) == 0.0).all()
        assert 0 < curve([0.2])[0] < curve([0.3])[0] < 0.05

    def test_a_model_with_one_item_teaches_nothing(self) -> None:
        c, y = np.linspace(0.1, 0.9, 50), np.tile([0.0, 1.0], 25)
        assert ConfidenceMap.fit([c, c, [0.5]], [y, y, [1.0]], list("abc")) == ConfidenceMap.identity()
        assert ConfidenceMap.fit([c, c, c[:2]], [y, y, y[:2]], list("abc")).n_models == 3

    def test_slopes_are_those_of_the_models_and_their_spread_is_a_new_ones(self) -> None:
        """Confidences of three lineages, one with two checkpoints, whose correctness follows them with a slope of its own."""
        c = np.linspace(0.1, 0.9, 400)
        slopes, lineages = np.array([0.6, 0.6, 1.0, 1.4]), ["a", "a", "b", "c"]
        mapping = ConfidenceMap.fit([c] * 4, [0.5 + s * (c - 0.5) for s in slopes], lineages, kind="isotonic")
        # g is their mean, 0.5 + (c - 0.5) * 1.0 where lineages count the same.
        np.testing.assert_allclose(mapping([0.3, 0.7]), [0.3, 0.7], atol=0.01)
        assert mapping.slope == pytest.approx(1.0, abs=0.02)
        deviation = np.sqrt(np.mean([0.4**2, 0.0, 0.4**2]) * (1 + 2 / 4))
        assert mapping.slope_std == pytest.approx(deviation, abs=0.02)
        assert mapping.n_models == 4

    def test_a_fit_on_sure_data_is_the_curve_itself(self) -> None:
        c, y = np.tile(np.linspace(0.05, 0.95, 50), 4), np.tile(np.linspace(0.05, 0.95, 50) ** 2, 4)
        c, y = np.split(c, 4), np.split(y, 4)
        curve = ConfidenceMap.fit(c, y, list("abcd"), kind="isotonic")
        np.testing.assert_allclose(curve([0.2, 0.6, 0.9]), [0.04, 0.36, 0.81], atol=0.03)


class TestCorrelation:
    def errors(self, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors of 24 lineages with a correlation of 0.8 between benchmarks of different sizes, and the lineages."""
        random = np.random.default_rng(0)
        own, common = random.normal(size=(24, columns)), random.normal(size=(24, 1))
        return (np.sqrt(0.8) * common + np.sqrt(0.2) * own) * np.linspace(2, 9, columns), np.arange(24)

    @pytest.mark.parametrize("columns", [2, 4])
    def test_it_is_a_correlation_drawn_towards_nothing(self, columns: int) -> None:
        residuals, lineages = self.errors(columns)
        found = residual_correlation(residuals, lineages, np.array([f"b{n}" for n in range(columns)]))
        np.testing.assert_allclose(np.diag(found), 1.0)
        np.testing.assert_allclose(found, found.T)
        assert np.linalg.eigvalsh(found).min() > 0
        apart = found[~np.eye(columns, dtype=bool)]
        assert apart.min() > 0.3
        assert apart.max() < 0.9

    def test_models_with_some_errors_missing_count(self) -> None:
        residuals, lineages = self.errors(4)
        residuals[np.arange(24), np.arange(24) % 4] = np.nan  # nobody has all
        found = residual_correlation(residuals, lineages, np.array(list("abcd")))
        assert found[~np.eye(4, dtype=bool)].min() > 0.2


class TestConditioning:
    def test_surprise_is_what_came_beside_what_was_expected(self) -> None:
        mean, std = np.array([50.0, 50.0]), np.array([10.0, 5.0])
        known = {"a": Known(90.0, 60.0)}
        found = condition_on("ab", mean, std, np.eye(2), known, {}, {}, 0.9, {})
        assert found.surprise == pytest.approx(np.sqrt((10 + 4) / (1 + 4)))
        assert condition_on("ab", mean, std, np.eye(2), {"a": Known(51.0, 0.0)}, {}, {}, 0.9, {}).surprise == 1.0
        items = LabelledItems.of([1.0] * 40)
        labelled = condition_on("ab", mean, std, np.eye(2), {}, {"b": items}, {}, 0.9, {})
        noise = 1e4 * (41 / 42) * (1 / 42) / 40
        assert labelled.surprise == pytest.approx(np.sqrt((2500 / (25 + noise) + 4) / 5))

    def test_the_order_of_labels_does_not_matter(self) -> None:
        correlation = np.array([[1.0, 0.6, 0.3], [0.6, 1.0, 0.5], [0.3, 0.5, 1.0]])
        labels = {"a": LabelledItems.of([1.0] * 20), "b": LabelledItems.of([1.0] * 8 + [0.0] * 16)}
        mean, std = np.array([60.0, 55.0, 50.0]), np.array([8.0, 8.0, 8.0])
        one, other = (
            condition_on("abc", mean, std, correlation, {}, dict(order), {}, 0.9, {})
            for order in (labels.items(), reversed(labels.items()))
        )
        np.testing.assert_allclose(one.belief.mean, other.belief.mean, atol=1.0)
        np.testing.assert_allclose(one.belief.covariance, other.belief.covariance, rtol=0.1)
        # What a says of b and b of a is told once: the third is as sure as two Gaussian observations make it.
        prior = correlation * 64
        inner = prior[:2, :2] + np.diag([one.labels[name].site_variance for name in "ab"])
        expected = prior[2, 2] - prior[2, :2] @ np.linalg.solve(inner, prior[:2, 2])
        assert one.belief.covariance[2, 2] == pytest.approx(expected)

    def test_a_benchmark_that_is_known_needs_no_labels(self) -> None:
        items = {"a": LabelledItems.of([0.0] * 40)}
        found = condition_on(
            "a", np.array([50.0]), np.array([10.0]), np.eye(1), {"a": Known(80.0, 0.0)}, items, {}, 0.9, {}
        )
        assert found.belief.mean[0] == pytest.approx(80.0)
        assert not found.labels
