"""The examples in docstrings of the rooms on the left run as they stand."""

from __future__ import annotations

import doctest

from lmms_visual_heads.checkpoints import loading


def test_the_example_of_load_model_runs_as_printed() -> None:
    results = doctest.testmod(loading)
    assert results.attempted >= 10
    assert not results.failed
