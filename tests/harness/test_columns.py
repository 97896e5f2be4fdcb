"""What an answered request becomes in the tables."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from lmms_visual_heads.harness import columns
from lmms_visual_heads.statistics.answers import answer_statistics
from lmms_visual_heads.statistics.heads import HEAD_STATISTICS, head_statistics

ROWS = torch.tensor([[[0.5, 0.2, 0.2, 0.1], [float("nan")] * 4]])


def statistics(region: torch.Tensor | None) -> dict[str, torch.Tensor]:
    patches = torch.tensor([1, 2, 3])
    return head_statistics(ROWS, patches, patches, torch.tensor([0]), region)


def test_a_documents_share_is_one_number_beside_the_heads() -> None:
    numbers = statistics(torch.tensor([True, False, False]))
    heads, share = columns.of_heads(numbers)
    assert set(heads) == set(HEAD_STATISTICS) - {"region_share"}
    assert share == np.float32(1 / 3)
    assert heads["image_attention"].shape == (1, 2)
    assert heads["region_attention"][0, 0] == np.float32(0.2)
    assert np.isnan(heads["region_attention"][0, 1])
    assert "region_share" in numbers, "the caller's statistics are not written to"
    assert columns.of_heads(statistics(None))[1] is None


def test_a_scored_continuation_has_statistics_and_no_text() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    written = answer_statistics(logits, answer_token_index=0, n_answer_tokens=2, log_probabilities=None)
    scored = answer_statistics(logits, answer_token_index=0, n_answer_tokens=0, log_probabilities=None)
    assert columns.of_answer(written, "\n two \nlines")["answer"] == "two"
    assert columns.of_answer(scored, "")["answer"] is None
    assert columns.of_answer(scored, "")["confidence"] > 0.5
    assert columns.of_answer(None, "text") is None


def test_numbers_of_tokens() -> None:
    class Made(SimpleNamespace):
        def __len__(self) -> int:
            return 9

    encoded = Made(visual_positions=torch.arange(5), patch_positions=torch.arange(4))
    assert columns.of_tokens(encoded) == {"n_prompt_tokens": 9, "n_visual_tokens": 5, "n_patch_tokens": 4}
