"""The suite's benchmarks and their documents; deterministic, the same on every machine.

A document is a dict of plain values as in `scenes.documents`: `item_id`, `question`, `answer`, `choices` where there are
options, `with_box` False, one of `scene`, `chart`, `pair` (text that `draw` draws), `boxes` (those of the things that the
question is about; none where nothing of it is in the picture) and `picture` (number of the picture in its pool).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lab.suite import bars, written
from lab.suite.bars import Chart, draw_chart, random_chart
from lab.suite.written import Pair, draw_pair, random_pair
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe import generation, questions
from lmms_visual_heads.probe.drawing import draw_pixels
from lmms_visual_heads.probe.layout import COLOUR_NAMES, DIGITS, KIND_NAMES, QUADRANTS, Scene, arrange
from lmms_visual_heads.probe.random_stream import RandomStream

N_ITEMS = 2000
Document = dict[str, Any]
Picture = Scene | Chart | Pair


@dataclass(frozen=True, slots=True)
class SuiteBenchmark:
    """One benchmark: its task name, the pictures it asks about, whether it counts, and its number in the pool."""

    name: str
    pool: str
    generator: str
    counting: bool
    ask: Callable[[RandomStream, Any, int], tuple[str, str, list[Any]]]
    choices: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """Share of the most frequent answer, 0..1."""
        answers = [document["answer"] for document in _built(self.name)]
        return max(answers.count(answer) for answer in set(answers)) / len(answers)


def single_scene(stream: RandomStream, index: int) -> Scene:
    """One to five things of different kinds and one digit; the first thing stands in quadrant `index % 4`."""
    names = [*stream.sample(KIND_NAMES, stream.between(1, 5)), DIGITS[index // 4 % 10]]
    cells = generation.QUADRANT_CELLS[index % len(QUADRANTS)]
    return arrange(stream, [(name, stream.choice(COLOUR_NAMES)) for name in names], first_cells=cells)


def count_scene(stream: RandomStream, index: int) -> Scene:
    """One to five things of one kind, which stands first, among others, at most 14 in all."""
    kinds = stream.sample(KIND_NAMES, 3)
    names = [kinds[0]] * (1 + index % 5)
    for other in kinds[1 : 2 + stream.below(2)]:
        names += [other] * stream.between(1, 4)
    return arrange(stream, generation.coloured(stream, names[:14]))


def _existence(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    present = sorted(scene.kinds())
    yes = index % 2 == 0
    name = stream.choice(present if yes else [name for name in KIND_NAMES if name not in present])
    boxes = [thing.box for thing in scene.things if thing.name == name]
    return questions.existence_question(name), "yes" if yes else "no", boxes


def _color(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    thing = scene.things[0]
    yes = index % 2 == 0
    colour = thing.colour if yes else stream.choice([c for c in COLOUR_NAMES if c != thing.colour])
    return questions.color_question(thing.name, colour), "yes" if yes else "no", [thing.box]


def _color_word(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    thing = scene.things[0]
    return f"What color is the {thing.name}?", thing.colour, [thing.box]


def _position(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    thing = scene.things[0]
    return questions.position_question(thing.name), questions.position_answer(scene, thing.name), [thing.box]


def _digit(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    return questions.DIGIT_QUESTION, questions.digit_answer(scene), [scene.things[-1].box]


def _obj_count(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    name = scene.things[0].name
    boxes = [thing.box for thing in scene.things if thing.name == name]
    return questions.probe_question("obj", name), str(scene.count(name)), boxes


def _color_count(stream: RandomStream, scene: Scene, index: int) -> tuple[str, str, list[Any]]:
    present = sorted({thing.colour for thing in scene.things})
    colour = stream.choice(present if stream.percent(80) else COLOUR_NAMES)
    boxes = [thing.box for thing in scene.things if thing.colour == colour]
    return questions.color_count_question(colour), questions.color_count_answer(scene, colour), boxes


def _tallest(stream: RandomStream, chart: Chart, index: int) -> tuple[str, str, list[Any]]:
    bar = chart.by_height[-1]
    return bars.TALLEST_QUESTION, bar.colour, [bar.box]


def _shortest(stream: RandomStream, chart: Chart, index: int) -> tuple[str, str, list[Any]]:
    bar = chart.by_height[0]
    return bars.SHORTEST_QUESTION, bar.colour, [bar.box]


def _taller(stream: RandomStream, chart: Chart, index: int) -> tuple[str, str, list[Any]]:
    low, high = sorted(stream.sample(chart.bars, 2), key=lambda bar: bar.level)
    first, second = (high, low) if index % 2 == 0 else (low, high)
    answer = "yes" if index % 2 == 0 else "no"
    return bars.taller_question(first.colour, second.colour), answer, [first.box, second.box]


def _bar_count(stream: RandomStream, chart: Chart, index: int) -> tuple[str, str, list[Any]]:
    return bars.COUNT_QUESTION, str(len(chart.bars)), [bar.box for bar in chart.bars]


def _written_left(stream: RandomStream, pair: Pair, index: int) -> tuple[str, str, list[Any]]:
    return written.LEFT_QUESTION, str(pair.left.value), [pair.left.box]


def _written_larger(stream: RandomStream, pair: Pair, index: int) -> tuple[str, str, list[Any]]:
    larger = max(pair.left, pair.right, key=lambda digit: digit.value)
    return written.LARGER_QUESTION, str(larger.value), [larger.box]


def _written_order(stream: RandomStream, pair: Pair, index: int) -> tuple[str, str, list[Any]]:
    answer = "yes" if pair.left.value > pair.right.value else "no"
    return written.ORDER_QUESTION, answer, [pair.left.box, pair.right.box]


BENCHMARKS = (
    SuiteBenchmark("suite_existence", "single", "scenes", False, _existence),
    SuiteBenchmark("suite_color", "single", "scenes", False, _color),
    SuiteBenchmark("suite_color_word", "single", "scenes", False, _color_word),
    SuiteBenchmark("suite_position", "single", "scenes", False, _position, QUADRANTS),
    SuiteBenchmark("suite_digit", "single", "scenes", False, _digit),
    SuiteBenchmark("suite_obj_count", "count", "scenes", True, _obj_count),
    SuiteBenchmark("suite_color_count", "count", "scenes", True, _color_count),
    SuiteBenchmark("suite_tallest", "chart", "bars", False, _tallest),
    SuiteBenchmark("suite_shortest", "chart", "bars", False, _shortest),
    SuiteBenchmark("suite_taller", "chart", "bars", False, _taller),
    SuiteBenchmark("suite_bar_count", "chart", "bars", True, _bar_count),
    SuiteBenchmark("suite_written_left", "pair", "written", False, _written_left),
    SuiteBenchmark("suite_written_larger", "pair", "written", False, _written_larger),
    SuiteBenchmark("suite_written_order", "pair", "written", False, _written_order),
)
POOLS = ("single", "count", "chart", "pair")
_FIELD = {"single": "scene", "count": "scene", "chart": "chart", "pair": "pair"}


def _picture(pool: str, index: int) -> Picture:
    stream = RandomStream(f"suite-{pool}", index)
    if pool == "single":
        return single_scene(stream, index)
    if pool == "count":
        return count_scene(stream, index)
    return random_chart(stream) if pool == "chart" else random_pair(stream, training=False)


@cache
def _pictures(pool: str) -> tuple[Picture, ...]:
    return tuple(_picture(pool, index) for index in range(N_ITEMS))


@cache
def _built(name: str) -> tuple[Document, ...]:
    found = next((benchmark for benchmark in BENCHMARKS if benchmark.name == name), None)
    if found is None:
        raise VisualHeadsError(
            f"The suite has the benchmarks {', '.join(b.name for b in BENCHMARKS)}; {name!r} came. Use one of them."
        )
    built = []
    for index, picture in enumerate(_pictures(found.pool)):
        question, answer, boxes = found.ask(RandomStream(name, index), picture, index)
        document: Document = {
            "item_id": f"{name}-{index:04d}",
            "question": question,
            "answer": answer,
            _FIELD[found.pool]: picture.to_text(),
            "with_box": False,
            "boxes": [list(box) for box in boxes],
            "picture": index,
        }
        built.append(document | ({"choices": list(found.choices)} if found.choices else {}))
    return tuple(built)


def documents(name: str) -> list[Document]:
    """The 2,000 documents of one benchmark, in their fixed order; new copies in every call.

    Raises
    ------
    VisualHeadsError
        If there is no benchmark of that name.
    """
    return json.loads(json.dumps(_built(name)))


def draw_picture(picture: Picture) -> npt.NDArray[np.uint8]:
    """A picture of any pool as uint8 [336, 336, 3]."""
    if isinstance(picture, Scene):
        return draw_pixels(picture)
    return draw_chart(picture) if isinstance(picture, Chart) else draw_pair(picture)


def draw_pool(pool: str, index: int) -> Image.Image:
    """Picture number `index` of a pool: RGB, 336 x 336."""
    return Image.fromarray(draw_picture(_pictures(pool)[index]))


def draw(document: Document) -> Image.Image:
    """The picture of a document: RGB, 336 x 336."""
    forms: dict[str, type[Scene] | type[Chart] | type[Pair]] = {"scene": Scene, "chart": Chart, "pair": Pair}
    field = next(name for name in forms if name in document)
    return Image.fromarray(draw_picture(forms[field].from_text(document[field])))
