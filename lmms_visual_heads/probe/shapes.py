"""The silhouettes of the scenes: nine kinds of things and ten digits, rasterised with integers only.

A shape is a list of parts that are added or cut away in order, in a square of 96 x 96 design units (x to the right, y
down). `silhouette` samples it at pixel centres; all arithmetic is exact, so a mask is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

UNITS = 96
Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.int64]
Inside = Callable[[Grid, Grid, int], Mask]


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a shape: `inside(x, y, scale)` tells which scaled points it holds; `cut` removes instead of adding."""

    inside: Inside
    cut: bool = False


def _ellipse(cx: int, cy: int, rx: int, ry: int, cut: bool = False) -> Part:
    def inside(x: Grid, y: Grid, s: int) -> Mask:
        return ((x - cx * s) * ry) ** 2 + ((y - cy * s) * rx) ** 2 <= (rx * ry * s) ** 2

    return Part(inside, cut)


def _box(x0: int, y0: int, x1: int, y1: int, cut: bool = False) -> Part:
    def inside(x: Grid, y: Grid, s: int) -> Mask:
        return (x >= x0 * s) & (x < x1 * s) & (y >= y0 * s) & (y < y1 * s)

    return Part(inside, cut)


def _polygon(*points: tuple[int, int], cut: bool = False) -> Part:
    def inside(x: Grid, y: Grid, s: int) -> Mask:
        result = np.zeros(np.broadcast(x, y).shape, bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if y0 == y1:
                continue
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            crosses = (y >= y0 * s) & (y < y1 * s)
            left = (x - x0 * s) * (y1 - y0) < (y - y0 * s) * (x1 - x0)
            result ^= crosses & left
        return result

    return Part(inside, cut)


def _stroke(width: int, *points: tuple[int, int], cut: bool = False) -> Part:
    """A line through `points`, `width` units thick, with round ends."""

    def inside(x: Grid, y: Grid, s: int) -> Mask:
        result = np.zeros(np.broadcast(x, y).shape, bool)
        for (x0, y0), (x1, y1) in pairwise(points):
            dx, dy = x1 - x0, y1 - y0
            length = dx * dx + dy * dy
            px, py = x - x0 * s, y - y0 * s
            along = np.clip(px * dx + py * dy, 0, length * s)
            off_x, off_y = px * length - along * dx, py * length - along * dy
            result |= 4 * (off_x**2 + off_y**2) <= (width * length * s) ** 2
        return result

    return Part(inside, cut)


_SHAPES: dict[str, tuple[Part, ...]] = {
    "person": (
        _ellipse(48, 14, 13, 14),
        _box(30, 31, 66, 64),
        _stroke(11, (31, 37), (16, 62)),
        _stroke(11, (65, 37), (80, 62)),
        _stroke(14, (37, 62), (34, 89)),
        _stroke(14, (59, 62), (62, 89)),
    ),
    "cat": (
        _ellipse(48, 56, 42, 38),
        _polygon((8, 0), (8, 56), (46, 26)),
        _polygon((88, 0), (88, 56), (50, 26)),
        _ellipse(32, 50, 8, 9, cut=True),
        _ellipse(64, 50, 8, 9, cut=True),
        _polygon((41, 66), (55, 66), (48, 76), cut=True),
    ),
    "fish": (
        _ellipse(40, 48, 40, 26),
        _polygon((62, 48), (96, 18), (96, 78)),
        _polygon((30, 28), (56, 8), (62, 34)),
        _ellipse(20, 42, 6, 6, cut=True),
    ),
    "car": (
        _polygon((0, 44), (18, 44), (32, 20), (68, 20), (84, 44), (96, 48), (96, 68), (0, 68)),
        _polygon((30, 44), (38, 28), (47, 28), (47, 44), cut=True),
        _polygon((53, 44), (53, 28), (64, 28), (73, 44), cut=True),
        _ellipse(23, 68, 15, 15, cut=True),
        _ellipse(73, 68, 15, 15, cut=True),
        _ellipse(23, 69, 12, 12),
        _ellipse(73, 69, 12, 12),
    ),
    "boat": (
        _polygon((0, 68), (96, 68), (78, 94), (18, 94)),
        _box(45, 0, 51, 70),
        _polygon((56, 6), (56, 62), (92, 62)),
        _polygon((40, 16), (40, 62), (10, 62)),
    ),
    "plane": (
        _stroke(14, (48, 8), (48, 86)),
        _polygon((48, 30), (96, 60), (96, 70), (48, 56)),
        _polygon((48, 30), (0, 60), (0, 70), (48, 56)),
        _polygon((48, 72), (70, 88), (70, 95), (48, 88)),
        _polygon((48, 72), (26, 88), (26, 95), (48, 88)),
    ),
    "cup": (
        _ellipse(68, 44, 28, 26),
        _ellipse(68, 44, 16, 14, cut=True),
        _polygon((4, 8), (72, 8), (66, 80), (10, 80)),
        _box(0, 84, 78, 92),
    ),
    "umbrella": (
        _ellipse(48, 48, 48, 44),
        _box(0, 48, 96, 96, cut=True),
        _ellipse(16, 50, 14, 10, cut=True),
        _ellipse(48, 50, 14, 10, cut=True),
        _ellipse(80, 50, 14, 10, cut=True),
        _stroke(8, (48, 10), (48, 82), (54, 90), (64, 90), (69, 80)),
    ),
    "key": (
        _ellipse(24, 30, 24, 24),
        _ellipse(24, 30, 11, 11, cut=True),
        _stroke(12, (40, 44), (88, 88)),
        _stroke(11, (72, 73), (84, 60)),
        _stroke(11, (58, 60), (68, 49)),
    ),
}

_DIGIT_STROKES: dict[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "0": (((36, 8), (60, 8), (72, 24), (72, 72), (60, 88), (36, 88), (24, 72), (24, 24), (36, 8)),),
    "1": (((30, 24), (50, 8), (50, 88)), ((30, 88), (70, 88))),
    "2": (((24, 24), (36, 8), (60, 8), (72, 22), (72, 36), (24, 88), (74, 88)),),
    "3": (((24, 8), (72, 8), (46, 40), (64, 42), (74, 58), (70, 78), (56, 88), (36, 88), (23, 76)),),
    "4": (((62, 88), (62, 8), (18, 62), (78, 62)),),
    "5": (((70, 8), (30, 8), (26, 44), (58, 40), (72, 54), (72, 74), (58, 88), (36, 88), (22, 78)),),
    "6": (
        ((68, 14), (54, 8), (38, 14), (26, 36), (24, 70), (36, 88), (60, 88), (72, 72), (66, 50), (44, 44), (26, 58)),
    ),
    "7": (((22, 8), (74, 8), (42, 88)),),
    "8": (
        ((48, 8), (66, 14), (68, 32), (48, 44), (28, 32), (30, 14), (48, 8)),
        ((48, 44), (72, 56), (72, 76), (48, 88), (24, 76), (24, 56), (48, 44)),
    ),
    "9": (
        ((28, 82), (42, 88), (58, 82), (70, 60), (72, 26), (60, 8), (36, 8), (24, 24), (30, 46), (52, 52), (70, 38)),
    ),
}
_SHAPES |= {digit: tuple(_stroke(15, *line) for line in lines) for digit, lines in _DIGIT_STROKES.items()}


@cache
def silhouette(name: str, size: int) -> Mask:
    """Mask of the shape `name` in a square of `size` x `size` pixels, read-only, bool [size, size]."""
    centres = (2 * np.arange(size, dtype=np.int64) + 1) * UNITS
    x, y = centres[None, :], centres[:, None]
    mask = np.zeros((size, size), bool)
    for part in _SHAPES[name]:
        inside = part.inside(x, y, 2 * size)
        mask = mask & ~inside if part.cut else mask | inside
    mask.setflags(write=False)
    return mask


@cache
def tight_box(name: str, size: int) -> tuple[int, int, int, int]:
    """Smallest box (x0, y0, x1, y1), half-open, pixels, that holds every pixel of `silhouette(name, size)`."""
    rows, columns = (np.flatnonzero(silhouette(name, size).any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
