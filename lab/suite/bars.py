"""Bar charts: two to four bars in different colours and heights on a dark ground. Integers only; 336 x 336 pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.probe.drawing import textured_ground
from lmms_visual_heads.probe.layout import COLOUR_NAMES, COLOURS, IMAGE_SIZE, Box
from lmms_visual_heads.probe.random_stream import RandomStream

SLOTS = 4
SLOT = IMAGE_SIZE // SLOTS
LEVELS = 8
LEVEL = 38
"""Pixels of height per level: the largest bar is 304 pixels high."""
FLOOR = 324
"""Row on which bars stand."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its colour, its slot from the left (0..3), its height in levels (1..8), its left edge within the slot, its width."""

    colour: str
    slot: int
    level: int
    dx: int
    width: int

    @property
    def box(self) -> Box:
        """Pixels (x0, y0, x1, y1), half-open."""
        left = self.slot * SLOT + self.dx
        return left, FLOOR - LEVEL * self.level, left + self.width, FLOOR


@dataclass(frozen=True, slots=True)
class Chart:
    """A whole chart. Bars differ in colour, slot and level."""

    background: tuple[int, int, int]
    texture: int
    bars: tuple[Bar, ...]

    @property
    def by_height(self) -> tuple[Bar, ...]:
        """The bars, shortest first."""
        return tuple(sorted(self.bars, key=lambda bar: bar.level))

    def to_text(self) -> str:
        """Compact JSON, the form that documents carry."""
        bars = [[b.colour, b.slot, b.level, b.dx, b.width] for b in self.bars]
        return json.dumps({"background": self.background, "texture": self.texture, "bars": bars}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Chart:
        """The inverse of `to_text`."""
        value = json.loads(text)
        return cls(tuple(value["background"]), value["texture"], tuple(Bar(*bar) for bar in value["bars"]))


def random_chart(stream: RandomStream) -> Chart:
    """A chart with two, three or four bars."""
    n = stream.between(2, SLOTS)
    slots = sorted(stream.sample(range(SLOTS), n))
    colours = stream.sample(COLOUR_NAMES, n)
    levels = stream.sample(range(1, LEVELS + 1), n)
    bars = []
    for slot, colour, level in zip(slots, colours, levels, strict=True):
        width = stream.between(48, 64)
        bars.append(Bar(colour, slot, level, stream.between(4, SLOT - 4 - width), width))
    return Chart((stream.below(56), stream.below(56), stream.below(56)), stream.below(1 << 16), tuple(bars))


def draw_chart(chart: Chart) -> npt.NDArray[np.uint8]:
    """The chart as uint8 [336, 336, 3]."""
    pixels = textured_ground(chart.background, chart.texture)
    for bar in chart.bars:
        x0, y0, x1, y1 = bar.box
        pixels[y0:y1, x0:x1] = COLOURS[bar.colour]
    return pixels


TALLEST_QUESTION = "Which bar is tallest?"
SHORTEST_QUESTION = "Which bar is shortest?"
COUNT_QUESTION = "How many bars are there?"


def taller_question(first: str, second: str) -> str:
    """Yes or no."""
    return f"Is the {first} bar taller than the {second} bar?"
