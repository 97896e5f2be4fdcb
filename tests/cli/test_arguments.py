"""`--heads A B C` as one types it, and the commands that there are."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command

from lmms_visual_heads.cli import app, spread_variadic
from tests.builders.paths import ROOT


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


def test_every_command_that_the_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^visual-heads ([a-z][a-z-]*)", readme, flags=re.MULTILINE))
    named |= set(re.findall(r"`visual-heads ([a-z][a-z-]*)", readme))
    assert {"fit", "predict", "estimate", "report"} <= named
    assert named <= set(get_command(app).commands)  # type: ignore[attr-defined]
