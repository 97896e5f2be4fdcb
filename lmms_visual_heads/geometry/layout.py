"""Order and kind of the visual tokens of one image. Sizes are (height, width) in pixels, grids (rows, columns).

LLaVA-1.5 and ViP-LLaVA: one view, row by row. LLaVA-NeXT: the base view row by row, then the un-padded tiles as one
picture row by row, each row ended by a newline token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmms_visual_heads.geometry.preprocessing import Preprocessing, Size

BASE, TILE, NO_PATCH = 0, 1, 2


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Visual tokens of one image.

    Attributes
    ----------
    base : (int, int)
        Patch grid of the base view (the only view without anyres).
    tiles : (int, int) or None
        Patch grid of the tiles after un-padding; None without anyres.
    leading : int
        Visual tokens before the base view that stand for no patch (a kept class token).
    """

    base: Size
    tiles: Size | None = None
    leading: int = 0

    @property
    def n_patches(self) -> int:
        """Visual tokens that stand for a patch."""
        return self.base[0] * self.base[1] + (self.tiles[0] * self.tiles[1] if self.tiles else 0)

    @property
    def n_tokens(self) -> int:
        """All visual tokens, newlines included."""
        return self.leading + self.n_patches + (self.tiles[0] if self.tiles else 0)

    def kinds(self) -> np.ndarray:
        """int8 [n_tokens]: BASE, TILE or NO_PATCH for every visual token, in order."""
        parts = [np.full(self.leading, NO_PATCH, np.int8), np.full(self.base[0] * self.base[1], BASE, np.int8)]
        if self.tiles:
            rows, columns = self.tiles
            picture = np.full((rows, columns + 1), TILE, np.int8)
            picture[:, -1] = NO_PATCH
            parts.append(picture.ravel())
        return np.concatenate(parts)


def image_layout(image_size: Size, preprocessing: Preprocessing, leading: int = 0) -> ImageLayout:
    """Layout of an image of `image_size` (height, width) pixels."""
    if not preprocessing.pinpoints:
        return ImageLayout(preprocessing.grid, leading=leading)
    height, width = best_resolution(image_size, preprocessing.pinpoints)
    view_height, view_width = preprocessing.view
    rows, columns = preprocessing.grid
    full = (height // view_height * rows, width // view_width * columns)
    return ImageLayout(preprocessing.grid, unpadded_grid(image_size, full, preprocessing.unpad_rounding), leading)


def best_resolution(image_size: Size, pinpoints: tuple[Size, ...]) -> Size:
    """The anyres size for an image: keeps most of its pixels, then wastes least (`select_best_resolution`)."""
    height, width = image_size

    def kept_and_waste(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[1] / width, candidate[0] / height)
        n_pixels = min(int(width * scale) * int(height * scale), width * height)
        return n_pixels, -(candidate[0] * candidate[1] - n_pixels)

    return max(pinpoints, key=kept_and_waste)


def unpadded_grid(image_size: Size, full: Size, rounding: str = "huggingface") -> Size:
    """Patch grid of the tiles after the rows or columns that only hold padding were cut off (`unpad_image`).

    Parameters
    ----------
    image_size : (int, int)
        Height and width of the original image.
    full : (int, int)
        Patch grid of all tiles.
    rounding : {"huggingface", "original"}
        transformers rounds to 7 digits before it cuts the fraction off, the original code does not. A very long and thin
        image may keep no row at all.
    """
    height, width = image_size
    rows, columns = full
    fills_width = width / height > columns / rows
    exact = height * (columns / width) if fills_width else width * (rows / height)
    whole = int(round(exact, 7)) if rounding == "huggingface" else int(exact)
    if fills_width:
        return rows - (rows - whole) // 2 * 2, columns
    return rows, columns - (columns - whole) // 2 * 2
