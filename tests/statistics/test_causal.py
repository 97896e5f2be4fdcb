"""How far an answer's distribution moves: against scipy, and where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from lmms_visual_heads.statistics.causal import answer_kl, answer_kl_or_nan, image_dependence


def test_kl_is_scipys_and_never_negative() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 5, 7, 30)) * 4
    found = answer_kl(torch.from_numpy(one), torch.from_numpy(other))
    wanted = rel_entr(softmax(one, -1), softmax(other, -1)).sum(-1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)
    assert (answer_kl(torch.from_numpy(one), torch.from_numpy(one)) == 0).all()


def test_tokens_that_cannot_come_count_nothing_and_nan_is_refused() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf])
    assert answer_kl(logits, torch.tensor([0.0, 1.0, 5.0])) > 0
    assert torch.isfinite(answer_kl(logits, logits))
    with pytest.raises(ValueError, match="NaN"):
        answer_kl(torch.tensor([0.0, float("nan")]), torch.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        answer_kl(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), torch.zeros(2, 2))


def test_rows_that_hold_nan_or_infinity_are_missing_and_the_others_are_not() -> None:
    """Minus infinity is a token that cannot come; such a row has its divergence."""
    nan, inf = float("nan"), torch.inf
    without = torch.tensor([[0.0, 1.0], [nan, 1.0], [0.0, 1.0], [inf, 1.0], [-inf, 1.0]])
    given = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, nan], [2.0, 1.0], [2.0, 1.0]])
    found = answer_kl_or_nan(without, given)
    assert found.isnan().tolist() == [False, True, True, True, False]
    assert torch.equal(found[[0, 4]], answer_kl(without[[0, 4]], given[[0, 4]]))
    assert found.dtype == torch.float64


def test_image_dependence_is_the_mean_and_needs_a_document() -> None:
    assert image_dependence(torch.tensor([0.5, 1.5])) == 1.0
    with pytest.raises(ValueError, match="at least one document"):
        image_dependence(torch.tensor([]))
