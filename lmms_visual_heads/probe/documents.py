"""The documents of the probe and of the small benchmarks: question, answer, scene and regions, ready for lmms-eval.

A document is a dict of plain values: `item_id`, `question` (without the post prompt), `answer`, `scene` (text that `draw`
draws), `with_box`; the probe's have `pointed_box` and `object_boxes`, those of `position` have `choices`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe import generation, questions
from lmms_visual_heads.probe.drawing import draw_pixels, draw_scene
from lmms_visual_heads.probe.layout import COLOUR_NAMES, DIGITS, KIND_NAMES, QUADRANTS, Scene
from lmms_visual_heads.probe.random_stream import RandomStream

Document = dict[str, Any]

N_PROBE = 256
N_BENCHMARK = 1000
PROBE_DATA = tuple(f"{kind}{variant}" for variant in ("", "_visual") for kind in questions.PROBE_TYPES)
DATA_NAMES = PROBE_DATA + questions.BENCHMARKS


def _document(item_id: str, scene: Scene, question: str, answer: str, **more: Any) -> Document:
    return {
        "item_id": item_id,
        "question": question,
        "answer": answer,
        "scene": scene.to_text(),
        "with_box": False,
        **more,
    }


def _probe(name: str) -> list[Document]:
    question_type, with_box = name.removesuffix("_visual"), name.endswith("_visual")
    result = []
    for index in range(N_PROBE):
        scene = generation.probe_scene(RandomStream("probe", index))
        assert scene.pointed is not None
        pointed = scene.things[scene.pointed]
        boxes = [list(thing.box) for thing in scene.things if thing.name == pointed.name]
        question = questions.probe_question(question_type, pointed.name)
        document = _document(f"probe-{index:04d}", scene, question, questions.probe_answer(scene))
        result.append(document | {"with_box": with_box, "pointed_box": list(pointed.box), "object_boxes": boxes})
    return result


def _existence() -> list[Document]:
    result = []
    for index in range(N_BENCHMARK):
        stream = RandomStream("existence", index)
        scene = generation.crowd_scene(stream)
        present = sorted(scene.kinds())
        yes = index % 2 == 0
        name = stream.choice(present if yes else [name for name in KIND_NAMES if name not in present])
        question = questions.existence_question(name)
        result.append(_document(f"existence-{index:04d}", scene, question, "yes" if yes else "no"))
    return result


def _color() -> list[Document]:
    result = []
    for index in range(N_BENCHMARK // 2):
        stream = RandomStream("color", index)
        scene = generation.single_scene(stream)
        asked = scene.things[0]
        wrong = stream.choice([colour for colour in COLOUR_NAMES if colour != asked.colour])
        for colour, answer in ((asked.colour, "yes"), (wrong, "no")):
            question = questions.color_question(asked.name, colour)
            result.append(_document(f"color-{index:04d}-{answer}", scene, question, answer))
    return result


def _position() -> list[Document]:
    result = []
    for index in range(N_BENCHMARK):
        scene = generation.single_scene(RandomStream("position", index), quadrant=index % len(QUADRANTS))
        name = scene.things[0].name
        answer = questions.position_answer(scene, name)
        question = questions.position_question(name)
        result.append(_document(f"position-{index:04d}", scene, question, answer, choices=list(QUADRANTS)))
    return result


def _color_count() -> list[Document]:
    result = []
    for index in range(N_BENCHMARK):
        stream = RandomStream("color_count", index)
        colour = stream.choice(COLOUR_NAMES)
        scene = generation.colour_count_scene(stream, colour, index % (generation.LARGEST_COLOUR_COUNT + 1))
        answer = questions.color_count_answer(scene, colour)
        question = questions.color_count_question(colour)
        result.append(_document(f"color_count-{index:04d}", scene, question, answer))
    return result


def _digit() -> list[Document]:
    result = []
    for index in range(N_BENCHMARK):
        scene = generation.digit_scene(RandomStream("digit", index), DIGITS[index % 10])
        answer = questions.digit_answer(scene)
        result.append(_document(f"digit-{index:04d}", scene, questions.DIGIT_QUESTION, answer))
    return result


_BENCHMARK_BUILDERS: dict[str, Callable[[], list[Document]]] = {
    "existence": _existence,
    "color": _color,
    "position": _position,
    "color_count": _color_count,
    "digit": _digit,
}


@cache
def _built(name: str) -> tuple[Document, ...]:
    if name in PROBE_DATA:
        return tuple(_probe(name))
    if name in _BENCHMARK_BUILDERS:
        return tuple(_BENCHMARK_BUILDERS[name]())
    raise VisualHeadsError(
        f"Drawn data needs one of the names {', '.join(DATA_NAMES)}; {name!r} came. Use one of them."
    )


def documents(name: str) -> list[Document]:
    """All documents of one data set, in their fixed order; new copies in every call.

    Parameters
    ----------
    name : str
        One of `DATA_NAMES`: general, obj, super, each also with `_visual`; existence, color, position, color_count, digit.

    Raises
    ------
    VisualHeadsError
        If there is no data set of that name.
    """
    return json.loads(json.dumps(_built(name)))


def draw(document: Document) -> Image.Image:
    """The image of a document: RGB, 336 x 336."""
    return draw_scene(Scene.from_text(document["scene"]), with_box=document["with_box"])


@cache
def data_fingerprint(name: str) -> str:
    """SHA-256 over the drawn pixels, questions, answers, choices and boxes of all documents of `name`, 64 hex digits."""
    digest = hashlib.sha256()
    for document in _built(name):
        facts = {key: value for key, value in document.items() if key not in ("scene", "with_box")}
        digest.update(json.dumps(facts, sort_keys=True).encode())
        digest.update(draw_pixels(Scene.from_text(document["scene"]), with_box=document["with_box"]).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class BenchmarkFacts:
    """What a reader of a score must know: the number of documents, the primary metric and what guessing gets (0..1)."""

    n_documents: int
    primary_metric: str
    chance: float


def benchmark_facts(name: str) -> BenchmarkFacts:
    """Facts of one data set; `chance` is the share of the most frequent answer."""
    built = _built(name)
    most_frequent = Counter(document["answer"] for document in built).most_common(1)[0][1]
    return BenchmarkFacts(len(built), "exact_match", most_frequent / len(built))
