"""The four-option format of the study: three other numbers from 1 to 7 and the answer, in an order drawn from a seed."""

from __future__ import annotations

from lmms_visual_heads.probe.looktwice.records import LETTERS, Question
from lmms_visual_heads.probe.random_stream import RandomStream

LARGEST_OPTION = 7
"""The counts of LookTwice-QA are 1 to 7; the study draws the wrong options from them."""


def with_options(question: Question, count: int, item_id: str, seed: int) -> Question:
    """The question with four options, those of the data where they are given.

    The options depend on the item and the seed alone: all question types about a scene offer the same ones.
    """
    if question.choices is not None:
        return question
    stream = RandomStream(f"looktwice/options/{seed}/{item_id}")
    wrong = stream.sample([number for number in range(1, LARGEST_OPTION + 1) if number != count], 3)
    choices = tuple(str(number) for number in stream.sample([*wrong, count], 4))
    return Question(question.text, choices, LETTERS[choices.index(str(count))])
