"""Two handwritten digits side by side: real scans.

They are scikit-learn's `load_digits`: 1,797 scans of 8 x 8 pixels (Alpaydin and Kaynak 1998, UCI repository).

Trainings see the first 1,000 scans, benchmarks the other 797, so no scan is in both. 336 x 336 pixels, integers only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.probe.drawing import textured_ground
from lmms_visual_heads.probe.layout import COLOUR_NAMES, COLOURS, IMAGE_SIZE, Box
from lmms_visual_heads.probe.random_stream import RandomStream

N_TRAINING = 1000
"""Scans before this number belong to trainings, the others to benchmarks."""
SIDE = 8
GREYS = 16
SMALLEST_SCALE, LARGEST_SCALE = 13, 18
"""Pixels of the picture per pixel of the scan."""


@cache
def scans() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Scans int64 [1797, 8, 8], ink 0..16, and the digit that each shows, int64 [1797]."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return loaded.images.astype(np.int64), loaded.target.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit: number of its scan, ink colour, scale, and left upper corner in pixels of the picture."""

    scan: int
    colour: str
    scale: int
    x: int
    y: int

    @property
    def value(self) -> int:
        """The digit that was written."""
        return int(scans()[1][self.scan])

    @property
    def box(self) -> Box:
        """Pixels (x0, y0, x1, y1), half-open."""
        size = SIDE * self.scale
        return self.x, self.y, self.x + size, self.y + size


@dataclass(frozen=True, slots=True)
class Pair:
    """A left and a right digit, which differ in value."""

    background: tuple[int, int, int]
    texture: int
    left: Digit
    right: Digit

    def to_text(self) -> str:
        """Compact JSON, the form that documents carry."""
        digits = [[d.scan, d.colour, d.scale, d.x, d.y] for d in (self.left, self.right)]
        return json.dumps(
            {"background": self.background, "texture": self.texture, "digits": digits}, separators=(",", ":")
        )

    @classmethod
    def from_text(cls, text: str) -> Pair:
        """The inverse of `to_text`."""
        value = json.loads(text)
        return cls(tuple(value["background"]), value["texture"], *(Digit(*digit) for digit in value["digits"]))


def random_pair(stream: RandomStream, *, training: bool) -> Pair:
    """Two scans of different digits."""
    values = scans()[1]
    numbers = range(N_TRAINING) if training else range(N_TRAINING, len(values))
    first = stream.choice(numbers)
    second = stream.choice(numbers)
    while values[second] == values[first]:
        second = stream.choice(numbers)
    digits = []
    half = IMAGE_SIZE // 2
    for place, scan in enumerate((first, second)):
        scale = stream.between(SMALLEST_SCALE, LARGEST_SCALE)
        room = SIDE * scale
        x = place * half + stream.between(4, half - 4 - room)
        digits.append(Digit(scan, stream.choice(COLOUR_NAMES), scale, x, stream.between(60, IMAGE_SIZE - 60 - room)))
    return Pair((stream.below(56), stream.below(56), stream.below(56)), stream.below(1 << 16), digits[0], digits[1])


def draw_pair(pair: Pair) -> npt.NDArray[np.uint8]:
    """The pair as uint8 [336, 336, 3]: ink mixed into the ground by the scan's grey."""
    pixels = textured_ground(pair.background, pair.texture)
    for digit in (pair.left, pair.right):
        x0, y0, x1, y1 = digit.box
        ink = np.kron(scans()[0][digit.scan], np.ones((digit.scale, digit.scale), np.int64))[:, :, None]
        ground = pixels[y0:y1, x0:x1].astype(np.int64)
        mixed = (ground * (GREYS - ink) + np.array(COLOURS[digit.colour], np.int64) * ink) // GREYS
        pixels[y0:y1, x0:x1] = mixed.astype(np.uint8)
    return pixels


LEFT_QUESTION = "What digit is on the left?"
LARGER_QUESTION = "Which digit is larger?"
ORDER_QUESTION = "Is the left digit larger?"
