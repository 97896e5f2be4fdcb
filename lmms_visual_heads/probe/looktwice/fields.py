"""Fields of one record of a question file, under all the names that they go by. Says which field is missing or wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from lmms_visual_heads.probe.looktwice.records import LETTERS, Box, Question, RecordProblem, make_box, parse_count

Fields = Mapping[str, Any]

_IMAGE_PATHS = ("image", "file_path", "image_path", "img_path", "file_name")
_IMAGE_IDS = ("image", "image_id", "genome_id", "vg_id", "id")
_BOXES = ("bbox", "bboxes", "box", "pointed_box")
_ANSWERS = ("answer", "ans")
_TYPED_QUESTIONS = {
    "general": ("general_question", "pt_question"),
    "obj": ("obj_question", "object_question", "img_question"),
    "super": ("super_question", "supercategory_question"),
}
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_VG_FOLDERS = ("VG_100K", "VG_100K_2")
_LARGEST_NUMBER = 1_000_000
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")

_NOISE = re.compile(
    r"<image>|The exemplary object is within the rectangle\.|Answer the question using a single word or phrase\.?"
    r"|Answer with the option's letter from the given choices directly\.?"
)
_OPTION = re.compile(r"^\(?([A-D])[.):]\s*(.+?)\s*$", re.MULTILINE)
# "How many of these are there?" points at nothing but the object; "How many of these vehicles are there?" names its kind.
_GENERAL = re.compile(r"of these\s*(\?|$|(are|is|can|do|does|were|was|have|has|in|there|on)\b)", re.IGNORECASE)


def first_field(fields: Fields, names: Iterable[str]) -> Any:
    """The first of `names` that the record has, or None."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _required(fields: Fields, names: tuple[str, ...]) -> Any:
    value = first_field(fields, names)
    if value is None:
        others = f" (or {', '.join(repr(name) for name in names[1:])})" if len(names) > 1 else ""
        raise RecordProblem(f"{names[0]!r}{others} is missing")
    return value


def image_place(fields: Fields, default_id: str | None) -> tuple[str, str | None]:
    """The image's file name and its Visual Genome folder, if the record says it."""
    path = first_field(fields, _IMAGE_PATHS)
    if isinstance(path, str) and path.strip():
        pure = PurePosixPath(path.replace("\\", "/"))
        folder = next((part for part in reversed(pure.parts[:-1]) if part in _VG_FOLDERS), None)
        ending = pure.suffix.lower()
        return (pure.stem + ending if ending in _ENDINGS else f"{pure.name}.jpg"), folder
    for name in _IMAGE_IDS:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return f"{value}.jpg", None
        if isinstance(value, str) and value.strip().isdecimal():
            return f"{value.strip()}.jpg", None
    if default_id is not None:
        return f"{default_id}.jpg", None
    raise RecordProblem("the image is missing: 'image', 'image_id' or a numeric 'id' is required")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordProblem(f"{what} must be a number; {value!r} came")
    if abs(value) > _LARGEST_NUMBER:
        raise RecordProblem(f"{what} must be a number of pixels; {str(value)[:20]} came")
    return value


def read_box(value: Any) -> Box:
    """A box from {x, y, w, h} or from [left, top, right, bottom]."""
    if isinstance(value, Mapping):
        missing = [name for name in ("x", "y", "w", "h") if name not in value]
        if missing:
            raise RecordProblem(f"the box lacks {', '.join(repr(name) for name in missing)}")
        x, y, w, h = (_number(value[name], f"the box's {name!r}") for name in ("x", "y", "w", "h"))
        if w < 0 or h < 0:
            raise RecordProblem(f"the box has a negative width or height: {w:g} x {h:g}")
        return make_box((x, y, x + w, y + h))
    if isinstance(value, list) and len(value) == 4:
        left, top, right, bottom = (_number(part, "a corner of the box") for part in value)
        return make_box((left, top, right, bottom))
    raise RecordProblem(f"the box must be [left, top, right, bottom] or {{x, y, w, h}}; {value!r} came")


def pointed_box(fields: Fields) -> Box:
    """The box of the pointed object; of a list of boxes the first."""
    value = _required(fields, _BOXES)
    if isinstance(value, list) and value and isinstance(value[0], list | Mapping):
        value = value[0]
    return read_box(value)


def object_boxes(fields: Fields) -> tuple[Box, ...] | None:
    """The boxes of all objects that count, if the record has them."""
    value = fields.get("object_boxes")
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise RecordProblem(f"'object_boxes' must be a list of boxes; {value!r} came")
    return tuple(read_box(box) for box in value)


def read_point(fields: Fields, box: Box) -> tuple[float, float]:
    """The point, x and y; the middle of the box where none is given."""
    value = fields.get("point")
    if value is None:
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if isinstance(value, Mapping) and {"x", "y"} <= set(value):
        return _number(value["x"], "the point's 'x'"), _number(value["y"], "the point's 'y'")
    if isinstance(value, list) and len(value) == 2:
        return _number(value[0], "the point's x"), _number(value[1], "the point's y")
    raise RecordProblem(f"the point must be [x, y] or {{x, y}}; {value!r} came")


def image_size(fields: Fields) -> tuple[int, int] | None:
    """Width and height of the image, if the record says them."""
    width, height = first_field(fields, ("width", "img_w")), first_field(fields, ("height", "img_h"))
    if not (isinstance(width, int) and isinstance(height, int)) or width < 1 or height < 1:
        return None
    return width, height


def question_type(text: str) -> str:
    """Which of the three types a question is, by its words."""
    if _GENERAL.search(text):
        return "general"
    return "super" if re.search(r"\bof these\b", text, re.IGNORECASE) else "obj"


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecordProblem(f"{name!r} must be a question; {value!r} came")
    return value.strip()


def _asked(text: str, answer: Any) -> tuple[Question, int]:
    """A question of a conversation, without prompt phrases, and its count; options in its text are taken out."""
    options = _OPTION.findall(text)
    plain = " ".join(_NOISE.sub("", _OPTION.sub("", text)).split())
    if not options:
        return Question(plain), parse_count(answer)
    letters = re.findall(r"\b([A-D])\b", str(answer))
    if [letter for letter, _ in options] != list(LETTERS) or len(letters) != 1:
        raise RecordProblem(f"four options and one letter are required; {text!r} with {answer!r} came")
    choices = tuple(choice for _, choice in options)
    return Question(plain, choices, letters[0]), parse_count(choices[LETTERS.index(letters[0])])


def _conversation(turns: Any) -> list[tuple[Question, int]]:
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        raise RecordProblem("'conversations' must be pairs of a question and an answer")
    pairs = []
    for human, model in zip(turns[::2], turns[1::2], strict=True):
        for turn, role in ((human, "human"), (model, "gpt")):
            if not isinstance(turn, Mapping) or turn.get("from") != role or not isinstance(turn.get("value"), str):
                raise RecordProblem(f"a turn of 'conversations' must be from {role!r} with a 'value'; {turn!r} came")
        pairs.append(_asked(human["value"], model["value"]))
    return pairs


def _lettered(fields: Fields) -> tuple[Question, int]:
    missing = [name for name in _CHOICES if fields.get(name) is None]
    if missing:
        raise RecordProblem(f"{missing[0]!r} is missing")
    choices = tuple(str(fields[name]) for name in _CHOICES)
    letter = str(_required(fields, ("gt", *_ANSWERS))).strip().upper().rstrip(".")
    if letter not in LETTERS:
        raise RecordProblem(f"'gt' must be a letter, A to D; {letter!r} came")
    text = _text(_required(fields, ("question",)), "question")
    return Question(text, choices, letter), parse_count(choices[LETTERS.index(letter)])


def read_questions(fields: Fields, known_type: str | None) -> tuple[dict[str, Question], int]:
    """The record's questions by type, and the count that answers them all.

    Parameters
    ----------
    fields : mapping
        The record.
    known_type : str, optional
        Type of single questions, where the file's name says it; otherwise their words tell.
    """
    typed = {kind: first_field(fields, names) for kind, names in _TYPED_QUESTIONS.items()}
    if any(value is not None for value in typed.values()):
        count = parse_count(_required(fields, _ANSWERS))
        return {kind: Question(_text(value, f"{kind}_question")) for kind, value in typed.items() if value}, count
    if fields.get("conversations") is not None:
        pairs = _conversation(fields["conversations"])
    elif any(fields.get(name) is not None for name in _CHOICES):
        pairs = [_lettered(fields)]
    else:
        text = first_field(fields, ("question",))
        if text is None:
            raise RecordProblem(
                "the questions are missing: 'general_question', 'obj_question' and 'super_question', 'conversations' or "
                "'question' is required"
            )
        pairs = [_asked(_text(text, "question"), _required(fields, _ANSWERS))]
    if len({count for _, count in pairs}) != 1:
        raise RecordProblem(f"all questions must have the same answer; {sorted({count for _, count in pairs})} came")
    given = str(first_field(fields, ("question_type", "type")) or "")
    kinds = [
        given if given in _TYPED_QUESTIONS else known_type or question_type(question.text) for question, _ in pairs
    ]
    if len(set(kinds)) != len(kinds):
        raise RecordProblem(f"one question of each type is required; {', '.join(kinds)} came")
    return {kind: question for kind, (question, _) in zip(kinds, pairs, strict=True)}, pairs[0][1]
