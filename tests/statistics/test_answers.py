"""Answer statistics against plain arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmms_visual_heads.statistics.answers import N_CHARACTERS, N_TOP_TOKENS, answer_statistics, answer_text


def statistics(logits: list[float], **changes: object):
    settings = {"answer_token_index": 0, "n_answer_tokens": 1, "log_probabilities": None, **changes}
    return answer_statistics(torch.tensor(logits), **settings)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=60))
def test_equals_plain_arithmetic(logits: list[float]) -> None:
    found = statistics(logits)
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    assert found.confidence == pytest.approx(max(probabilities), abs=1e-5)
    assert found.answer_entropy == pytest.approx(entropy, abs=1e-4)
    assert len(found.top_tokens) == len(found.top_probabilities) == min(N_TOP_TOKENS, len(logits))
    assert list(found.top_probabilities) == sorted(found.top_probabilities, reverse=True)
    for token, probability in zip(found.top_tokens, found.top_probabilities, strict=True):
        assert probability == pytest.approx(probabilities[token], abs=1e-5)


def test_mean_log_probability_counts_every_token_once() -> None:
    found = statistics([0.0, 1.0], n_answer_tokens=3, log_probabilities=torch.tensor([-1.0, -2.0, -6.0]))
    assert found.answer_log_probability == pytest.approx(-3)
    assert statistics([0.0, 1.0]).answer_log_probability is None
    assert statistics([0.0, 1.0], log_probabilities=torch.tensor([-math.inf])).answer_log_probability is None


def test_certain_answers_have_no_entropy() -> None:
    found = statistics([100.0, 0.0, -math.inf])
    assert found.confidence == 1
    assert found.answer_entropy == pytest.approx(0, abs=1e-12)


def test_logits_that_are_not_numbers_leave_the_distribution_missing() -> None:
    for bad in (math.nan, math.inf):
        found = statistics([bad, 0.0], log_probabilities=torch.tensor([-1.0]))
        assert found.confidence is None
        assert found.answer_entropy is None
        assert found.top_tokens == found.top_probabilities == ()
        assert found.answer_log_probability == pytest.approx(-1)
    assert json.dumps(asdict(found))


def test_what_is_kept_of_every_answer_is_as_much_as_the_tables_say() -> None:
    found = statistics([float(n) for n in range(50)], answer_token_index=1, n_answer_tokens=3)
    assert found.top_tokens == tuple(range(49, 29, -1))
    assert (found.answer_token_index, found.n_answer_tokens) == (1, 3)
    assert (N_TOP_TOKENS, N_CHARACTERS) == (20, 64)


def test_what_is_kept_of_a_text() -> None:
    assert answer_text("  7\nbecause there are seven") == "7"
    assert answer_text("\n\n Yes. ") == "Yes."
    assert answer_text("") == ""
    assert answer_text("x" * 100) == "x" * N_CHARACTERS
