"""`--heads A B C` as one types it."""

from __future__ import annotations

import pytest

from lmms_visual_heads.cli import spread_variadic


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fit --heads a b --out p", "fit --heads a --heads b --out p"),
        ("fit --heads a --heads b c", "fit --heads a --heads b --heads c"),
        ("predict p --heads a", "predict p --heads a"),
        ("scores a b --out c d", "scores a b --out c d"),
        ("fit --heads", "fit --heads"),
        ("fit --heads a -- b c", "fit --heads a -- b c"),
    ],
)
def test_values_after_one_option_are_spread(typed: str, meant: str) -> None:
    assert spread_variadic(typed.split()) == meant.split()
