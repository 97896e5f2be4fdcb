"""Question files of LookTwice-QA in their published forms, to records with item ids. Records that cannot be used are
named and left out; a file that is none of the forms is an error. See the package's docstring for the forms."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice.fields import (
    image_place,
    image_size,
    object_boxes,
    pointed_box,
    read_point,
    read_questions,
)
from lmms_visual_heads.probe.looktwice.records import QUESTION_TYPES, Question, Record, RecordProblem
from lmms_visual_heads.probe.random_stream import RandomStream

GENERAL_QUESTION = "How many of these are there?"
"""The one general question of the data set (Mani et al. 2020); stands in where a record has only the other two."""

SPLITS = ("train", "val", "test")
_FORMS = "the published LookTwice-QA JSON (image id -> records), ViP-LLaVA's list of records, or JSON Lines with one record a line"


@dataclass(frozen=True, slots=True)
class Questions:
    """What question files hold.

    Attributes
    ----------
    records : dict
        item id -> record, in the file's order.
    problems : list of str
        One sentence for each record that was left out.
    n_records : int
        Records that the files hold, the left out ones included.
    types : tuple of str
        The question types that every record has.
    by_image : bool
        Whether it is the published file, which holds all splits.
    """

    records: dict[str, Record]
    problems: list[str]
    n_records: int
    types: tuple[str, ...]
    by_image: bool


def read_json(path: Path) -> Any:
    """The content of a JSON or JSON Lines file (then a list).

    Raises
    ------
    VisualHeadsError
        If it is not readable, not text, a pointer to a large file that is not there, or not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VisualHeadsError(
            f"A JSON file is required; {path} is not text ({error.reason} at byte {error.start})."
        ) from error
    except OSError as error:
        raise VisualHeadsError(f"A JSON file is required; {path} cannot be read: {error.strerror}.") from error
    if text.startswith("version https://git-lfs"):
        raise VisualHeadsError(
            f"A JSON file is required; {path} is only a pointer of Git LFS. Fetch the file itself (git lfs pull, or its address "
            "under media.githubusercontent.com/media)."
        )
    if text.lstrip()[:1] == "<":
        raise VisualHeadsError(f"A JSON file is required; {path} is an HTML page. Check the address that it came from.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") for _, line in lines[:2]):
            return [_line(path, number, line) for number, line in lines]
        raise VisualHeadsError(f"A JSON file is required; {path} is broken: {error}. Fetch it again.") from error


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VisualHeadsError(
            f"A JSON file is required; line {number} of {path} is broken: {error}. Fetch it again."
        ) from error


def _entries(content: Any, path: Path) -> Iterator[tuple[str, str | None, Any]]:
    """(label, image id of the surrounding key, record) of every record."""
    if isinstance(content, Mapping) and any(
        isinstance(value, list) or str(key).isdecimal() for key, value in content.items()
    ):
        for key, value in content.items():
            image = str(key) if str(key).isdecimal() else None
            if image is None and not isinstance(value, list):
                continue  # a description beside the list of records
            for number, record in enumerate(value if isinstance(value, list) else [value], 1):
                yield (f"image {image}, record {number}" if image else f"{key!r}, record {number}"), image, record
    elif isinstance(content, list) and content:
        for number, record in enumerate(content, 1):
            name = record.get("id", record.get("question_id")) if isinstance(record, Mapping) else None
            yield f"record {number}" + (f" (id {name})" if isinstance(name, int | str) else ""), None, record
    else:
        came = f"{type(content).__name__} without records" if not content else type(content).__name__
        raise VisualHeadsError(f"A question file must be {_FORMS}; {path} holds a {came}.")


def _record(fields: Any, label: str, default_id: str | None, known_type: str | None) -> Record:
    if not isinstance(fields, Mapping):
        raise RecordProblem(f"a record with named fields is required; {type(fields).__name__} came")
    name, folder = image_place(fields, default_id)
    box = pointed_box(fields)
    questions, count = read_questions(fields, known_type)
    return Record(
        label=label,
        image_name=name,
        folder=folder,
        box=box,
        point=read_point(fields, box),
        object_boxes=object_boxes(fields),
        questions=questions,
        count=count,
        size=image_size(fields),
    )


def _type_of_file(name: str) -> str | None:
    """The study has one file a question type: `point_QA-super.jsonl`."""
    found = re.search(r"(?:^|[-_])(general|obj|super)(?:[-_.]|$)", name)
    return found.group(1) if found else None


def _merged(records: Sequence[Record]) -> list[Record]:
    """Records of one question each, joined where image, box and answer are the same."""
    merged: list[Record] = []
    places: dict[tuple[Any, ...], list[int]] = {}
    for record in records:
        key = (record.image_name, record.box, record.count)
        for place in places.get(key, []):
            if not set(merged[place].questions) & set(record.questions):
                merged[place] = replace(merged[place], questions={**merged[place].questions, **record.questions})
                break
        else:
            places.setdefault(key, []).append(len(merged))
            merged.append(record)
    return merged


def _completed(record: Record, types: Sequence[str]) -> Record:
    """The record with its questions in the order of `types`.

    Raises
    ------
    RecordProblem
        If it lacks one that others have: all types ask about the same scenes.
    """
    questions = dict(record.questions)
    if "general" in types:
        questions.setdefault("general", Question(GENERAL_QUESTION))
    missing = [kind for kind in types if kind not in questions]
    if missing:
        raise RecordProblem(f"'{missing[0]}_question' is missing")
    return replace(record, questions={kind: questions[kind] for kind in types})


def read_questions_files(paths: Sequence[Path]) -> Questions:
    """All records of question files; several files of one question type each are joined.

    Raises
    ------
    VisualHeadsError
        If a file is not JSON or none of the published forms, or if no record can be used.
    """
    records: list[Record] = []
    problems: list[str] = []
    n_records, by_image = 0, False
    for path in paths:
        content = read_json(path)
        prefix = f"{path.name}, " if len(paths) > 1 else ""
        for label, default_id, fields in _entries(content, path):
            n_records += 1
            by_image = by_image or default_id is not None
            try:
                records.append(_record(fields, prefix + label, default_id, _type_of_file(path.name)))
            except RecordProblem as problem:
                problems.append(f"{prefix}{label}: {problem}.")
    types = [kind for kind in QUESTION_TYPES if any(kind in record.questions for record in records)]
    if {"obj", "super"} <= set(types):
        types = list(QUESTION_TYPES)
    numbers: Counter[str] = Counter()
    complete: dict[str, Record] = {}
    for record in _merged(records):
        # The number is given before anything is left out, so that an item keeps its id whatever else changes.
        item_id = f"looktwice-{record.image_id}-{numbers[record.image_id]}"
        numbers[record.image_id] += 1
        try:
            complete[item_id] = _completed(record, types)
        except RecordProblem as problem:
            problems.append(f"{record.label}: {problem}.")
    if not complete:
        raise VisualHeadsError(
            f"No record of {', '.join(path.name for path in paths)} can be used: {problems[0]} A question file must be {_FORMS}."
        )
    return Questions(complete, problems, n_records, tuple(types), by_image)


def read_split(path: Path) -> frozenset[str]:
    """Image ids of a split: a JSON list of ids."""
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(item, int | str) for item in content):
        raise VisualHeadsError(f"A split must be a JSON list of image ids; {path} is none. Name it with --split-file.")
    return frozenset(str(item).removesuffix(".jpg") for item in content)


def chosen_items(item_ids: Sequence[str], limit: int | None, seed: int) -> list[str]:
    """`limit` of the items, in their order.

    Every item has its own place in the draw: the choice does not depend on the other items, and a larger limit keeps
    what a smaller one chose.
    """
    if limit is None or limit >= len(item_ids):
        return list(item_ids)
    drawn = sorted(item_ids, key=lambda item_id: (RandomStream(f"looktwice/limit/{seed}/{item_id}").word(), item_id))
    kept = set(drawn[:limit])
    return [item_id for item_id in item_ids if item_id in kept]
