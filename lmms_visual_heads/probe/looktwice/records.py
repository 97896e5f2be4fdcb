"""One scene of LookTwice-QA, valid from birth: image, box, point, up to three questions, the count. Boxes are half-open,
(left, top, right, bottom), in pixels of the original image."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lmms_visual_heads.probe.scoring import is_correct

QUESTION_TYPES = ("general", "obj", "super")
LETTERS = ("A", "B", "C", "D")
SMALLEST_SHARE_INSIDE = 0.75
"""A box of which less lies inside its image belongs to another image, or to another size of it; the rest is cut off."""

Box = tuple[float, float, float, float]

_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.(jpg|jpeg|png|webp)")
_LARGEST_NUMBER_WORD = 20


class RecordProblem(Exception):
    """Why one record cannot be used; its text goes on after the record's name."""


def parse_count(value: object) -> int:
    """The count in an answer: 3, "3", "three", "There are three."

    Raises
    ------
    RecordProblem
        If it holds no number, or several.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RecordProblem(f"the answer must be a number; {value!r} came")
    if isinstance(value, float) and not value.is_integer():
        raise RecordProblem(f"the answer must be a whole number; {value!r} came")
    text = str(value if isinstance(value, str) else int(value)).strip()
    if re.fullmatch(r"[0-9]{1,6}\.?", text):
        return int(text.rstrip("."))
    # The scorer decides what a number word is, so that an answer read here is one that it accepts.
    words = [*range(_LARGEST_NUMBER_WORD + 1), *(int(digits) for digits in re.findall(r"\b[0-9]{1,6}\b", text))]
    found = {number for number in words if is_correct(text, str(number))}
    if len(found) != 1 or text.startswith("-"):
        raise RecordProblem(f"the answer must be one number in digits or as a word; {value!r} came")
    return found.pop()


def make_box(corners: tuple[float, float, float, float]) -> Box:
    """A box from its corners.

    Raises
    ------
    RecordProblem
        For swapped corners, zero area, numbers that are not finite, or a box in shares of the image.
    """
    left, top, right, bottom = corners
    shown = f"({', '.join(f'{value:g}' for value in corners)})"
    if not all(math.isfinite(value) for value in corners):
        raise RecordProblem(f"the box {shown} has a coordinate that is not finite")
    if right < left or bottom < top:
        raise RecordProblem(f"the box {shown} has its corners swapped: left, top, right, bottom are required")
    if right == left or bottom == top:
        raise RecordProblem(f"the box {shown} has no area")
    if max(abs(value) for value in corners) <= 1:
        raise RecordProblem(f"the box {shown} looks like shares of the image; pixels are required")
    return left, top, right, bottom


def fit_box(box: Box, size: tuple[int, int]) -> Box:
    """The part of `box` inside an image of `size` (width, height).

    Raises
    ------
    RecordProblem
        If less than three quarters of the box lie inside.
    """
    left, top, right, bottom = box
    width, height = size
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    area = max(inside[2] - inside[0], 0) * max(inside[3] - inside[1], 0)
    whole = (right - left) * (bottom - top)
    if area < SMALLEST_SHARE_INSIDE * whole:
        where = "lies" if area == 0 else "reaches too far"
        shown = f"({', '.join(f'{value:g}' for value in box)})"
        raise RecordProblem(f"the box {shown} {where} outside the image of {width} x {height} pixels")
    return inside


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and its four options with the right letter where the data bring them."""

    text: str
    choices: tuple[str, ...] | None = None
    letter: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise RecordProblem("the question is empty")
        if self.choices is not None and (len(self.choices) != 4 or len(set(self.choices)) != 4):
            raise RecordProblem(f"four different options are required; {list(self.choices)!r} came")
        if (self.choices is None) != (self.letter is None) or self.letter not in (None, *LETTERS):
            raise RecordProblem(f"options need the right one's letter, A to D; {self.letter!r} came")


@dataclass(frozen=True, slots=True)
class Record:
    """One scene. `label` is what messages call it; `folder` is the Visual Genome folder, if the file names it; `size` is
    (width, height) in pixels, if the file says it."""

    label: str
    image_name: str
    folder: str | None
    box: Box
    point: tuple[float, float]
    object_boxes: tuple[Box, ...] | None
    questions: Mapping[str, Question]
    count: int
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not _IMAGE_NAME.fullmatch(self.image_name):
            raise RecordProblem(f"the image's name must be an id and an ending such as .jpg; {self.image_name!r} came")
        if not self.questions or not set(self.questions) <= set(QUESTION_TYPES):
            raise RecordProblem(f"questions of the types {', '.join(QUESTION_TYPES)} are required")

    @property
    def image_id(self) -> str:
        """The image's name without its ending: the Visual Genome id."""
        return self.image_name.rsplit(".", 1)[0]
