"""Intervals beside their definitions: jackknife+ by counting, Student's t, pooled factors, scipy's own Wilson interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lmms_visual_heads.prediction.conformal import (
    CERTIFIED_LINEAGES,
    LeftOutErrors,
    known_values,
    pooled_factor,
    sampling_interval,
    upper_quantile,
    usual_gap,
)


def names(n: int) -> np.ndarray:
    return np.array([f"l{i:02d}" for i in range(n)])


class TestInterval:
    @pytest.mark.parametrize("level", [0.8, 0.9])
    @pytest.mark.parametrize("n", [15, 16, 33])
    def test_with_many_lineages_it_is_jackknife_plus(self, n: int, level: float) -> None:
        """One model of each lineage: the k-th smallest of the n upper ends and the k-th largest of the lower ones."""
        random = np.random.default_rng(n)
        residuals, centers = random.normal(0, 4, n), 50 + random.normal(0, 2, n)
        low, high = LeftOutErrors(residuals, names(n)).interval(50.0, centers, level)
        k = min(math.ceil(level * (n + 1) - 1e-9), n)
        assert high == pytest.approx(sorted(centers + abs(residuals))[k - 1])
        assert low == pytest.approx(sorted(centers - abs(residuals), reverse=True)[k - 1])

    def test_with_few_lineages_it_is_at_least_students(self) -> None:
        """Two checkpoints of one lineage share its weight."""
        residuals, lineages = np.array([4.0, -2.0, 3.0, -3.0]), np.array(["a", "a", "b", "c"])
        low, high = LeftOutErrors(residuals, lineages).interval(50.0, np.full(4, 50.0), 0.9)
        spread = math.sqrt(((16 + 4) / 2 + 9 + 9) / 3)
        half = stats.t.ppf(0.95, 2) * spread * math.sqrt(1 + 1 / 3)
        assert (low, high) == (pytest.approx(50 - half), pytest.approx(50 + half))
        # Where the left-out predictions lie far apart, jackknife+ is the wider of the two.
        wide = LeftOutErrors(residuals, lineages).interval(50.0, np.array([20.0, 50.0, 50.0, 90.0]), 0.9)
        assert wide == (pytest.approx(16.0), pytest.approx(93.0))

    def test_two_lineages_are_the_fewest(self) -> None:
        low, high = LeftOutErrors(np.array([0.5, -0.5]), names(2)).interval(50.0, np.full(2, 50.0), 0.9)
        half = stats.t.ppf(0.95, 1) * 0.5 * math.sqrt(1.5)
        assert (low, high) == (pytest.approx(50 - half), pytest.approx(50 + half))

    def test_students_part_ends_where_coverage_can_be_certified(self) -> None:
        residuals = np.append(np.full(CERTIFIED_LINEAGES - 2, 0.1), 5.0)
        fewer = LeftOutErrors(residuals, names(len(residuals)))
        enough = LeftOutErrors(np.append(residuals, 0.1), names(CERTIFIED_LINEAGES))
        assert np.ptp(fewer.interval(50.0, np.full(len(residuals), 50.0), 0.8)) > 1
        assert np.ptp(enough.interval(50.0, np.full(CERTIFIED_LINEAGES, 50.0), 0.8)) == pytest.approx(0.2)

    def test_it_never_leaves_the_points_and_holds_the_prediction(self) -> None:
        errors = LeftOutErrors(np.full(20, 1.0), names(20))
        assert errors.interval(30.0, np.full(20, 50.0), 0.9) == (30.0, 51.0)
        assert errors.interval(98.0, np.full(20, 98.0), 0.9, widen=3.0) == (95.0, 100.0)

    @pytest.mark.parametrize(
        ("residuals", "lineages"), [([1.0, math.nan], ["a", "b"]), ([1.0, 2.0], ["a"]), ([math.inf], ["a"])]
    )
    def test_every_finite_residual_needs_its_lineage(self, residuals: list[float], lineages: list[str]) -> None:
        with pytest.raises(ValueError, match="needs its lineage"):
            LeftOutErrors(np.array(residuals), np.array(lineages))


class TestQuantile:
    def test_it_is_the_smallest_value_below_which_the_mass_lies(self) -> None:
        values, mass = np.array([3.0, 1.0, 2.0, 4.0]), np.full(4, 0.25)
        assert [upper_quantile(values, mass, level) for level in (0.2, 0.25, 0.26, 0.5, 0.75, 0.9)] == [
            1,
            1,
            2,
            2,
            3,
            4,
        ]
        assert upper_quantile(values, mass * 0.8, 0.9) == 4.0

    def test_rows_of_a_lineage_share_its_mass_and_missing_ones_have_none(self) -> None:
        values, mass = known_values(np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]]), np.array(["a", "a", "b"]))
        assert values.tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(mass, np.array([0.5, 0.5, 0.5, 1, 1]) / 3.5)

    def test_usual_gaps_are_those_of_nine_of_ten(self) -> None:
        assert usual_gap(np.arange(1.0, 11.0), names(10)) == 9.0
        assert usual_gap(np.zeros(10), names(10)) == 1e-3


class TestFactor:
    def test_from_fifteen_lineages_on_it_is_the_plain_quantile(self) -> None:
        sizes = np.arange(1.0, CERTIFIED_LINEAGES + 1)
        assert pooled_factor(sizes, names(CERTIFIED_LINEAGES), 0.8) == 12.0

    def test_with_fewer_one_more_lineage_is_infinitely_far_off_and_student_widens(self) -> None:
        sizes = np.arange(1.0, 11.0)
        student = stats.t.ppf(0.9, 9) / stats.norm.ppf(0.9)
        # 0.8 of eleven lineages: the ninth of the ten that were seen.
        assert pooled_factor(sizes, names(10), 0.8) == pytest.approx(9.0 * student)
        assert pooled_factor(np.array([2.0]), names(1), 0.8) == pytest.approx(
            2.0 * stats.t.ppf(0.9, 1) / stats.norm.ppf(0.9)
        )


@pytest.mark.parametrize(("right", "n"), [(0, 12), (3, 12), (50, 100), (100, 100), (499, 500)])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_a_measured_score_has_the_wilson_interval_of_scipy(right: int, n: int, level: float) -> None:
    twin = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    assert sampling_interval(100 * right / n, n, level) == pytest.approx((100 * twin.low, 100 * twin.high), abs=1e-6)
