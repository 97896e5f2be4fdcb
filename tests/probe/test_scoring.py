"""Which answers count as the document's answer."""

from __future__ import annotations

import pytest

from lmms_visual_heads.probe.scoring import is_correct


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("3", "3", True),
        (" 3.\n", "3", True),
        ("three", "3", True),
        ("There are three fish.", "3", True),
        ("03", "3", True),
        ("13", "3", False),
        ("3 or 4", "3", False),
        ("none", "0", True),
        ("There are no red things.", "0", True),
        ("No, three", "3", True),
        ("", "3", False),
        ("3\nBecause I see four.", "3", True),
        ("Yes, there is.", "yes", True),
        ("no", "yes", False),
        ("not yes", "yes", False),
        ("B. top right", "B", True),
        ("b", "B", True),
        ("(B)", "B", True),
        ("Both", "B", False),
        ("red", "red", True),
        ("dark red", "red", False),
    ],
)
def test_an_answer_counts_when_it_gives_the_target(answer: str, target: str, right: bool) -> None:
    assert is_correct(answer, target) is right
