"""Where an image's pixels end up in a view, one axis at a time: pad, resize, shift, cut into patches.

Every view (a single picture, the base view, the tiles as one picture) is a pair of axes, because padding, resizing
and cropping treat height and width separately. Arithmetic is exact: whole numbers and fractions. Units: pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lmms_visual_heads.geometry.layout import best_resolution, image_layout
from lmms_visual_heads.geometry.preprocessing import Preprocessing, Size


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one view.

    Attributes
    ----------
    extent : int
        Pixels of the original image.
    before : int
        Pixels of padding in front of them, in the original's pixels.
    padded : int
        Pixels with the padding at both ends.
    resized : int
        Pixels that those become.
    offset : int
        Where the resized picture starts in the view; negative where the crop cuts it off.
    patches : tuple of int
        Where each patch starts in the view, in the order of the patch tokens.
    patch : int
        Edge of a patch.
    """

    extent: int
    before: int
    padded: int
    resized: int
    offset: int
    patches: tuple[int, ...]
    patch: int

    def in_view(self, position: Fraction) -> Fraction:
        """Position in the view of a position in the original image; the affine map of the preprocessing."""
        return (position + self.before) * Fraction(self.resized, self.padded) + self.offset

    def overlaps(self, start: Fraction, end: Fraction) -> np.ndarray:
        """bool [n patches]: which patches overlap [start, end) of the original image with positive length."""
        first = self.in_view(max(start, Fraction(0)))
        last = self.in_view(min(end, Fraction(self.extent)))
        return np.array([first < p + self.patch and last > p for p in self.patches], dtype=bool)


def image_axes(image_size: Size, preprocessing: Preprocessing) -> list[tuple[Axis, Axis]]:
    """(vertical, horizontal) axes of every view of an image, in the order of its patch tokens.

    Parameters
    ----------
    image_size : (int, int)
        Height and width of the original image.
    preprocessing : Preprocessing

    Returns
    -------
    list of (Axis, Axis)
        The single view; or the base view and the un-padded tiles (anyres).
    """
    base = _single_view(image_size, preprocessing)
    return [base, _tiles(image_size, preprocessing)] if preprocessing.pinpoints else [base]


def _single_view(image_size: Size, preprocessing: Preprocessing) -> tuple[Axis, Axis]:
    padded = preprocessing.padded_size(image_size)
    resized = preprocessing.resized_size(image_size)
    vertical, horizontal = (
        Axis(
            extent=image_size[i],
            before=(padded[i] - image_size[i]) // 2,
            padded=padded[i],
            resized=resized[i],
            # Pillow's crop and the surrounding of a picture that is too small both round towards the image's start
            offset=-((resized[i] - preprocessing.view[i]) // 2),
            patches=tuple(k * preprocessing.patch for k in range(preprocessing.grid[i])),
            patch=preprocessing.patch,
        )
        for i in (0, 1)
    )
    return vertical, horizontal


def _tiles(image_size: Size, preprocessing: Preprocessing) -> tuple[Axis, Axis]:
    """The tiles as one picture: resized to touch the best resolution, padded into it, cut into views, un-padded."""
    target = best_resolution(image_size, preprocessing.pinpoints)
    resized = fitted_size(image_size, target)
    grid = image_layout(image_size, preprocessing).tiles
    if grid is None:
        raise AssertionError("anyres images have tiles")
    axes = []
    for i in (0, 1):
        view, per_view = preprocessing.view[i], preprocessing.grid[i]
        n_all = target[i] // view * per_view
        removed = (n_all - grid[i]) // 2
        indices = range(removed, n_all - removed)
        axes.append(
            Axis(
                extent=image_size[i],
                before=0,
                padded=image_size[i],
                resized=resized[i],
                offset=(target[i] - resized[i]) // 2,
                patches=tuple(k // per_view * view + k % per_view * preprocessing.patch for k in indices),
                patch=preprocessing.patch,
            )
        )
    return axes[0], axes[1]


def fitted_size(image_size: Size, target: Size) -> Size:
    """Size of an image enlarged or reduced until it touches `target`; floats as the processors' (`get_patch_output_size`)."""
    height, width = image_size
    scale_width, scale_height = target[1] / width, target[0] / height
    if scale_width < scale_height:
        return min(math.ceil(height * scale_width), target[0]), target[1]
    return target[0], min(math.ceil(width * scale_height), target[1])
