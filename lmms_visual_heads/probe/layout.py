"""What stands in a scene and where: a 4 x 4 grid of cells with coloured things. Never draws; integers only.

Units: pixels of a 336 x 336 image; boxes (x0, y0, x1, y1) are half-open.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lmms_visual_heads.probe.random_stream import RandomStream
from lmms_visual_heads.probe.shapes import tight_box

IMAGE_SIZE = 336
GRID = 4
CELL = IMAGE_SIZE // GRID
SMALLEST, LARGEST = 58, 68
MARGIN = 8
"""Pixels that stay free on every side of a cell: the pointing box is drawn there and never touches another thing."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing: its name, plural and the word for its supercategory."""

    name: str
    plural: str
    supercategory: str


KINDS = (
    Kind("person", "people", "beings"),
    Kind("cat", "cats", "beings"),
    Kind("fish", "fish", "beings"),
    Kind("car", "cars", "vehicles"),
    Kind("boat", "boats", "vehicles"),
    Kind("plane", "planes", "vehicles"),
    Kind("cup", "cups", "objects"),
    Kind("umbrella", "umbrellas", "objects"),
    Kind("key", "keys", "objects"),
)
KIND_NAMES = tuple(kind.name for kind in KINDS)
SUPERCATEGORIES = ("beings", "vehicles", "objects")
DIGITS = tuple("0123456789")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 58, 66),
    "green": (48, 190, 76),
    "blue": (76, 116, 250),
    "yellow": (244, 222, 56),
    "white": (246, 246, 246),
}
COLOUR_NAMES = tuple(COLOURS)
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")


def kind_of(name: str) -> Kind:
    """The `Kind` called `name`."""
    return KINDS[KIND_NAMES.index(name)]


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing: a kind's name or a digit, its colour, its cell (0 .. 15, row by row), its size and its offset in the cell."""

    name: str
    colour: str
    cell: int
    size: int
    dx: int
    dy: int

    def __post_init__(self) -> None:
        room = CELL - MARGIN - self.size
        assert 0 <= self.cell < GRID * GRID
        assert MARGIN <= self.dx <= room
        assert MARGIN <= self.dy <= room

    @property
    def corner(self) -> tuple[int, int]:
        """Top left corner (x, y) of the square that the silhouette is drawn in, pixels."""
        row, column = divmod(self.cell, GRID)
        return column * CELL + self.dx, row * CELL + self.dy

    @property
    def box(self) -> Box:
        """Smallest box that holds every pixel of the thing."""
        x, y = self.corner
        x0, y0, x1, y1 = tight_box(self.name, self.size)
        return x + x0, y + y0, x + x1, y + y1

    @property
    def quadrant(self) -> int:
        """0 top left, 1 top right, 2 bottom left, 3 bottom right."""
        row, column = divmod(self.cell, GRID)
        return 2 * (row >= GRID // 2) + (column >= GRID // 2)


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole scene. `pointed` is the index of the thing that the questions point at, or None."""

    background: tuple[int, int, int]
    texture: int
    things: tuple[Thing, ...]
    pointed: int | None = None

    def count(self, name: str) -> int:
        """How many things of the kind `name` there are."""
        return sum(thing.name == name for thing in self.things)

    def kinds(self) -> Counter[str]:
        """Number of things per kind, digits left out."""
        return Counter(thing.name for thing in self.things if thing.name in KIND_NAMES)

    def to_text(self) -> str:
        """The scene as compact JSON, the form that documents carry."""
        things = [[t.name, t.colour, t.cell, t.size, t.dx, t.dy] for t in self.things]
        value = {"background": self.background, "texture": self.texture, "things": things, "pointed": self.pointed}
        return json.dumps(value, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Scene:
        """The inverse of `to_text`."""
        value = json.loads(text)
        return cls(
            tuple(value["background"]),
            value["texture"],
            tuple(Thing(*thing) for thing in value["things"]),
            value["pointed"],
        )


def arrange(
    stream: RandomStream,
    labels: Sequence[tuple[str, str]],
    *,
    first_cells: Sequence[int] | None = None,
    pointed: int | None = None,
) -> Scene:
    """Put things into different random cells with random size and offset.

    Parameters
    ----------
    labels : sequence of (name, colour)
        The things; at most 16.
    first_cells : sequence of int, optional
        The cells among which the first thing is put; the others go anywhere else.
    pointed : int, optional
        Index into `labels` of the thing that is pointed at.
    """
    cells = stream.sample(range(GRID * GRID), GRID * GRID)
    if first_cells is not None:
        first = stream.choice(first_cells)
        cells.remove(first)
        cells.insert(0, first)
    things = []
    for (name, colour), cell in zip(labels, cells, strict=False):
        size = stream.between(SMALLEST, LARGEST)
        room = CELL - MARGIN - size
        things.append(Thing(name, colour, cell, size, stream.between(MARGIN, room), stream.between(MARGIN, room)))
    background = (stream.below(56), stream.below(56), stream.below(56))
    return Scene(background, stream.below(1 << 16), tuple(things), pointed)
