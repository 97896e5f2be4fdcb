"""Agreement with scored references: a slow twin that counts votes one by one, and what it must not see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_visual_heads.prediction.agreement import NO_REPLY, agreement, agreement_table, vote_weights

CHANCE, ITEMS = np.array([0.25]), np.array([2000.0])


def slowly(replies: np.ndarray, weights: np.ndarray, lineages: np.ndarray, prompts: list[int]) -> list[float]:
    """Votes counted prompt by prompt."""
    found = []
    voters = [v for v in range(len(replies)) if weights[v] > 0 and all(replies[v][p] != NO_REPLY for p in prompts)]
    for model in range(len(replies)):
        judges = [v for v in voters if lineages[v] != lineages[model]]
        if not judges or any(replies[model][p] == NO_REPLY for p in prompts):
            found.append(float("nan"))
            continue
        points = 0.0
        for prompt in prompts:
            votes: dict[int, float] = {}
            for judge in judges:
                votes[replies[judge][prompt]] = votes.get(replies[judge][prompt], 0.0) + weights[judge]
            winners = [answer for answer, vote in votes.items() if vote >= max(votes.values()) - 1e-4]
            points += (replies[model][prompt] in winners) / len(winners)
        found.append(points / len(prompts))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_votes_are_those_of_the_slow_twin(seed: int) -> None:
    random = np.random.default_rng(seed)
    replies = random.integers(0, 4, (9, 12))
    replies[random.random(9) < 0.2, 5] = NO_REPLY
    weights = np.where(random.random(9) < 0.3, 0.0, random.integers(1, 5, 9) * 0.5)
    lineages = random.choice(["a", "b", "c", "d"], 9)
    prompts = random.permutation(12)[: random.integers(1, 12)]
    found = agreement(replies, weights, lineages, prompts)
    np.testing.assert_allclose(found, slowly(replies, weights, lineages, prompts.tolist()), atol=1e-6)


def test_nobody_votes_on_its_own_lineage() -> None:
    replies = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    found = agreement(replies, np.ones(3), np.array(["a", "a", "b"]), slice(None))
    np.testing.assert_array_equal(found, [0.0, 0.0, 0.0])


def test_weights_are_log_odds_beside_guessing() -> None:
    points = np.array([[25.0], [10.0], [90.0], [100.0], [np.nan]])
    found = vote_weights(points, CHANCE, ITEMS)[:, 0]
    assert found[0] == pytest.approx(0.0, abs=1e-12)  # chance says nothing
    assert found[1] == pytest.approx(0.0, abs=1e-12)  # below chance is not a vote against
    assert found[2] == pytest.approx(np.log(0.9 * 3 / 0.1))
    assert found[2] < found[3] < np.inf
    assert found[4] == 0.0  # no score anywhere: no vote


def test_a_reference_without_a_score_votes_with_its_usual_weight() -> None:
    points = np.array([[90.0, np.nan], [30.0, 30.0]])
    found = vote_weights(points, np.array([0.25, 0.25]), np.array([2000.0, 2000.0]))
    assert found[0, 1] == pytest.approx(found[0, 0])


def test_one_master_among_guessers_is_nearly_the_key() -> None:
    random = np.random.default_rng(0)
    key = random.integers(0, 4, 400)

    def model(right: float) -> np.ndarray:
        return np.where(random.random(400) < right, key, (key + random.integers(1, 4, 400)) % 4)

    skills = [0.98, 0.27, 0.3, 0.26, 0.25, 0.28, 0.6, 0.4]
    replies = np.array([model(skill) for skill in skills])
    score = 100 * (replies == key).mean(axis=1, keepdims=True)
    references = np.arange(6)
    lineages = np.array(list("abcdefgh"))
    found = agreement_table(
        [replies], references, score[references], CHANCE, np.array([400.0]), lineages, [slice(None)]
    )
    assert np.abs(100 * found[6:, 0] - score[6:, 0]).max() < 2.5
    # Who is right where all references are wrong does not look better than they are: the limit that the reports name.
    weak = np.array([1, 2, 3, 4, 5])
    capped = agreement_table([replies], weak, score[weak], CHANCE, np.array([400.0]), lineages, [slice(None)])
    assert 100 * capped[0, 0] < 60 < score[0, 0]


def test_nothing_to_vote_with_is_missing() -> None:
    replies = np.zeros((3, 4), dtype=int)
    lineages = np.array(["a", "b", "c"])
    assert np.isnan(agreement(replies, np.zeros(3), lineages, slice(None))).all()
    assert np.isnan(agreement(replies, np.array([1.0, 0.0, 0.0]), lineages, slice(None))[0])
    assert np.isnan(agreement(replies, np.ones(3), lineages, np.array([], dtype=int))).all()


def test_as_if_new_is_a_table_per_benchmark_without_its_scores() -> None:
    rng = np.random.default_rng(7)
    replies = [rng.integers(0, 4, (9, 60)) for _ in range(5)]
    points = rng.uniform(20, 100, (6, 5))
    lineages = np.array([f"l{i // 2}" for i in range(9)])
    facts = (np.full(5, 0.25), np.full(5, 60.0), lineages, [slice(None)] * 5)
    found = agreement_table(replies, np.arange(6), points, *facts, as_if_new=True)
    for b in range(5):
        hidden = points.copy()
        hidden[:, b] = np.nan
        assert np.array_equal(found[:, b], agreement_table(replies, np.arange(6), hidden, *facts)[:, b])
    assert not np.array_equal(found, agreement_table(replies, np.arange(6), points, *facts))
