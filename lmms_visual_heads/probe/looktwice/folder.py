"""A finished folder of LookTwice-QA: `dataset.json`, `questions.jsonl`, `images/`. Writes it atomically, opens it with
checks, gives its documents to the tasks. Never fetches anything."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice.images import check_image
from lmms_visual_heads.probe.looktwice.records import QUESTION_TYPES

FORMAT = "looktwice"
SCHEMA_VERSION = 1
"""Raised when a field changes its meaning; folders with a newer version are refused by name."""

FACTS_FILE, QUESTIONS_FILE, IMAGES_FOLDER = "dataset.json", "questions.jsonl", "images"
ANSWER_FORMATS = ("short", "options")
BOX_COLOUR = (255, 0, 0)
BOX_THICKNESS = 3 / 336
"""Of the image's longer side; the study draws 3 pixels on 336."""

_IMAGE_PATH = re.compile(rf"{IMAGES_FOLDER}/[A-Za-z0-9][A-Za-z0-9_-]*\.[a-z]+")
_AGAIN = "Make it again with: visual-heads data looktwice --out {folder}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole small file, or leave the one that was there.

    Raises
    ------
    VisualHeadsError
        If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as error:
        raise VisualHeadsError(f"A folder that can be written is required; {path} cannot: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def write_folder(folder: Path, lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the questions, one scene a line, and then the facts with the questions' checksum.

    A reader that comes in between finds the old facts with another checksum, and says so.
    """
    questions = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    head = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    whole = {**head, **facts, "questions_sha256": hashlib.sha256(questions).hexdigest()}
    write_atomically(folder / QUESTIONS_FILE, questions)
    write_atomically(folder / FACTS_FILE, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that was opened and checked. `facts` is its `dataset.json`, `scenes` the lines of `questions.jsonl`."""

    path: Path
    facts: Mapping[str, Any]
    scenes: Sequence[Mapping[str, Any]]

    def documents(self, name: str) -> list[dict[str, Any]]:
        """The documents of one probe data set, in the folder's order; new dicts in every call.

        Parameters
        ----------
        name : str
            general, obj or super, each also with `_visual`.

        Returns
        -------
        list of dict
            `item_id`, `question`, `answer` (digits, or a letter where `choices` are given), `pointed_box` and
            `object_boxes` in pixels of the image (the latter None where unknown), `point`, `image` (path inside the
            folder), `image_size` (width, height), `with_box`.

        Raises
        ------
        VisualHeadsError
            If the folder has no questions of that type.
        """
        kind, with_box = name.removesuffix("_visual"), name.endswith("_visual")
        if kind not in QUESTION_TYPES:
            raise VisualHeadsError(f"A question type of LookTwice-QA is {', '.join(QUESTION_TYPES)}; {name!r} came.")
        if kind not in self.facts["question_types"]:
            raise VisualHeadsError(
                f"Questions of the type {kind} are required; {self.path} has only "
                f"{', '.join(self.facts['question_types'])}. Leave the task out, or make the folder from a file that has them."
            )
        lettered = self.facts["answers"] == "options"
        documents = []
        for scene in self.scenes:
            question = scene["questions"][kind]
            document = {
                "item_id": scene["item_id"],
                "question": question["text"],
                "answer": question["letter"] if lettered else scene["answer"],
                "pointed_box": list(scene["pointed_box"]),
                "object_boxes": scene["object_boxes"],
                "point": list(scene["point"]),
                "image": scene["image"],
                "image_size": list(scene["image_size"]),
                "with_box": with_box,
            }
            documents.append(document | ({"choices": list(question["choices"])} if lettered else {}))
        return documents


def _load_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    if not folder.is_dir() or not path.is_file():
        what = f"has no {FACTS_FILE}" if folder.is_dir() else "is no folder"
        raise VisualHeadsError(
            f"VHEAD_DATA must name a folder made by visual-heads data looktwice; {folder} {what}. "
            f"{_AGAIN.format(folder=folder).replace(' again', '', 1)}"
        )
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise VisualHeadsError(f"{path} cannot be read: {error}. {_AGAIN.format(folder=folder)}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("schema_version"), int):
        raise VisualHeadsError(
            f"{path} is not the description of a LookTwice-QA folder. {_AGAIN.format(folder=folder)}"
        )
    if facts["schema_version"] > SCHEMA_VERSION:
        raise VisualHeadsError(
            f"This version reads LookTwice-QA folders up to schema version {SCHEMA_VERSION}; {folder} has "
            f"{facts['schema_version']}. Update lmms-visual-heads."
        )
    if facts.get("complete") is not True:
        raise VisualHeadsError(
            f"A complete folder is required; {folder} lacks {len(facts.get('not_fetched', ()))} images. Run the same "
            "visual-heads data looktwice again to fetch them, or with --allow-missing to leave them out."
        )
    return facts


def open_folder(folder: str | os.PathLike[str]) -> DataFolder:
    """Open a folder and check that it is complete: facts, the questions' checksum, every image's length.

    Raises
    ------
    VisualHeadsError
        If anything is missing, changed, incomplete, or of a newer version.
    """
    path = Path(folder)
    facts = _load_facts(path)
    try:
        content = (path / QUESTIONS_FILE).read_bytes()
    except OSError as error:
        raise VisualHeadsError(
            f"{path / QUESTIONS_FILE} cannot be read: {error.strerror}. {_AGAIN.format(folder=path)}"
        ) from error
    if hashlib.sha256(content).hexdigest() != facts.get("questions_sha256"):
        raise VisualHeadsError(
            f"{path / QUESTIONS_FILE} is not the file that {FACTS_FILE} describes. {_AGAIN.format(folder=path)}"
        )
    scenes = [json.loads(line) for line in content.decode().split("\n") if line]
    wrong = []
    for name, known in facts["images"].items():
        image = path / name
        if not _IMAGE_PATH.fullmatch(name) or not image.is_file() or image.stat().st_size != known["n_bytes"]:
            wrong.append(name)
    if wrong:
        raise VisualHeadsError(
            f"{len(wrong)} of {len(facts['images'])} images in {path} are missing or changed, such as {wrong[0]}. "
            f"{_AGAIN.format(folder=path)}"
        )
    return DataFolder(path, facts, scenes)


def draw_box(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """A copy of an RGB image with a red frame around `box` (pixels), moved inwards where the image ends."""
    width, height = image.size
    line = max(round(BOX_THICKNESS * max(width, height)), 1)
    left, top = max(math.floor(box[0]) - line, 0), max(math.floor(box[1]) - line, 0)
    right, bottom = min(math.ceil(box[2]) + line, width), min(math.ceil(box[3]) + line, height)
    drawn = image.copy()
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=BOX_COLOUR, width=line)
    return drawn


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4)
def _digests(folder: str, changed_at: int) -> dict[str, str]:
    """SHA-256 of every image of a folder by its name; read once for every state of the facts."""
    return {name: facts["sha256"] for name, facts in _load_facts(Path(folder))["images"].items()}


def read_image(folder: str | os.PathLike[str], document: Mapping[str, Any]) -> Image.Image:
    """The image of a document of `DataFolder.documents`: RGB, with the pointed box where `with_box` is set.

    Raises
    ------
    VisualHeadsError
        If the file is missing, damaged, or another one than when the folder was made.
    """
    name = document["image"]
    path = Path(folder) / name
    if not _IMAGE_PATH.fullmatch(name):
        raise VisualHeadsError(f"An image of the folder is required; {name!r} came. {_AGAIN.format(folder=folder)}")
    facts = check_image(path)
    if list(facts.size) != list(document["image_size"]):
        width, height = document["image_size"]
        raise VisualHeadsError(
            f"{path} must have {width} x {height} pixels; it has {facts.width} x {facts.height}. {_AGAIN.format(folder=folder)}"
        )
    if facts.sha256 != _digests(str(folder), _changed_at(Path(folder) / FACTS_FILE)).get(name):
        raise VisualHeadsError(
            f"{path} is not the image that {FACTS_FILE} describes: its checksum differs. {_AGAIN.format(folder=folder)}"
        )
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    return draw_box(image, document["pointed_box"]) if document["with_box"] else image
