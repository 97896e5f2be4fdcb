"""The words of every question, and its answer read off the layout. Never draws."""

from __future__ import annotations

from collections.abc import Sequence

from lmms_visual_heads.probe.layout import DIGITS, QUADRANTS, Scene, kind_of

PROBE_TYPES = ("general", "obj", "super")
BENCHMARKS = ("existence", "color", "position", "color_count", "digit")

LETTERS = ("A", "B", "C", "D")
WORD_POST_PROMPT = "\nAnswer the question using a single word or phrase."
LETTER_POST_PROMPT = "\nAnswer with the option's letter from the given choices directly."


def options_text(choices: Sequence[str]) -> str:
    """The options of a multiple choice question, one line each, without a last line break."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))


def full_prompt(question: str, choices: Sequence[str] | None = None) -> str:
    """What a model is asked: the question, its options if it has any, and the post prompt."""
    if choices is None:
        return question + WORD_POST_PROMPT
    return question + "\n" + options_text(choices) + LETTER_POST_PROMPT


def existence_question(name: str) -> str:
    """As POPE asks."""
    article = "an" if name[0] in "aeiou" else "a"
    return f"Is there {article} {name} in the image?"


def color_question(name: str, colour: str) -> str:
    """As MME asks: yes or no."""
    return f"Is the {name} {colour}?"


def position_question(name: str) -> str:
    """As SEED asks, with `QUADRANTS` as options."""
    return f"Where is the {name}?"


def color_count_question(colour: str) -> str:
    """Counting by colour."""
    return f"How many {colour} things are there?"


DIGIT_QUESTION = "What digit is shown?"


def probe_question(question_type: str, name: str) -> str:
    """The question of LookTwice-QA (Mani et al. 2020) of `question_type` about a pointed thing of the kind `name`."""
    kind = kind_of(name)
    return {
        "general": "How many of these are there?",
        "obj": f"How many {kind.plural} are pictured?",
        "super": f"How many of these {kind.supercategory} are there?",
    }[question_type]


def probe_answer(scene: Scene) -> str:
    """Number of things of the pointed kind: the answer to all three question types."""
    assert scene.pointed is not None
    return str(scene.count(scene.things[scene.pointed].name))


def color_count_answer(scene: Scene, colour: str) -> str:
    """Number of things in `colour`."""
    return str(sum(thing.colour == colour for thing in scene.things))


def position_answer(scene: Scene, name: str) -> str:
    """Letter of the quadrant that holds the one thing of the kind `name`."""
    (thing,) = [thing for thing in scene.things if thing.name == name]
    assert len(QUADRANTS) == len(LETTERS)
    return LETTERS[thing.quadrant]


def digit_answer(scene: Scene) -> str:
    """The one digit of the scene."""
    (digit,) = [thing.name for thing in scene.things if thing.name in DIGITS]
    return digit
