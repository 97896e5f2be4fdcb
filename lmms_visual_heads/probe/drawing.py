"""Draws a scene: RGB image of 336 x 336 pixels, integers only, equal on every machine.

The pointing box of the visual variants is pure red (255, 0, 0), 8 pixels thick, directly outside the pointed thing.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmms_visual_heads.probe.layout import COLOURS, IMAGE_SIZE, Scene
from lmms_visual_heads.probe.shapes import silhouette

BOX_COLOUR = (255, 0, 0)
BOX_THICKNESS = 8
GRAIN = 16
"""The background's grain is a tile of random brightness steps 0 .. GRAIN - 1, shifted from scene to scene."""

Pixels = npt.NDArray[np.uint8]


@cache
def _grain() -> Pixels:
    """SplitMix64 noise, uint8 [672, 672 * 3], values 0 .. GRAIN - 1: a tile of 336 x 336 pixels, RGB, repeated twice each way."""
    index = np.arange(1, IMAGE_SIZE * IMAGE_SIZE + 1, dtype=np.uint64)
    z = index * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    tile = ((z >> np.uint64(40)) % np.uint64(GRAIN)).astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE)
    return np.repeat(np.tile(tile, (2, 2)), 3, axis=1)


def textured_ground(background: tuple[int, int, int], texture: int) -> Pixels:
    """An empty ground of one colour with grain on it, uint8 [336, 336, 3]; `texture` (16 bits) shifts the grain."""
    shift_y, shift_x = divmod(texture, 256)
    top, left = IMAGE_SIZE - shift_y, IMAGE_SIZE - shift_x
    grain = _grain()[top : top + IMAGE_SIZE, 3 * left : 3 * (left + IMAGE_SIZE)]
    # Rows of 336 x 3 values: adding along a last axis of 3 is five times slower.
    return (grain + np.tile(np.array(background, np.uint8), IMAGE_SIZE)).reshape(IMAGE_SIZE, IMAGE_SIZE, 3)


def draw_pixels(scene: Scene, *, with_box: bool = False) -> Pixels:
    """The scene as uint8 [336, 336, 3]; `with_box` draws the pointing box around the pointed thing."""
    pixels = textured_ground(scene.background, scene.texture)
    for thing in scene.things:
        x, y = thing.corner
        window = pixels[y : y + thing.size, x : x + thing.size]
        window[silhouette(thing.name, thing.size)] = COLOURS[thing.colour]
    if with_box:
        assert scene.pointed is not None
        x0, y0, x1, y1 = scene.things[scene.pointed].box
        t = BOX_THICKNESS
        pixels[y0 - t : y0, x0 - t : x1 + t] = BOX_COLOUR
        pixels[y1 : y1 + t, x0 - t : x1 + t] = BOX_COLOUR
        pixels[y0:y1, x0 - t : x0] = BOX_COLOUR
        pixels[y0:y1, x1 : x1 + t] = BOX_COLOUR
    return pixels


def draw_scene(scene: Scene, *, with_box: bool = False) -> Image.Image:
    """The scene as a Pillow image in mode RGB."""
    return Image.fromarray(draw_pixels(scene, with_box=with_box))
