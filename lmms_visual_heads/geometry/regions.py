"""Boxes in pixels of the original image -> patch tokens. Boxes are half-open (x0, y0, x1, y1), sizes (height, width).

A patch belongs to a region when a box, mapped affinely through padding, resizing, cropping and tiling, overlaps it with
positive area. A box that is cropped away belongs to no patch: its region is empty, not missing, because the attention on
it is known to be 0. Missing (None) is only what a processor does that `Preprocessing` does not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.axes import image_axes
from lmms_visual_heads.geometry.preprocessing import Preprocessing, Size

Box = Sequence[float]


def patch_regions(image_size: Size, boxes: Sequence[Box], preprocessing: Preprocessing) -> np.ndarray | None:
    """Which patch tokens the boxes overlap with positive area.

    Parameters
    ----------
    image_size : (int, int)
        Height and width of the image as decoded (EXIF orientation is not applied), pixels.
    boxes : sequence of (x0, y0, x1, y1)
        In pixels of that image, half-open; parts outside it are ignored.
    preprocessing : Preprocessing
        What the processor does to the image.

    Returns
    -------
    ndarray, bool [len(boxes), n_patches], or None
        One row per box, patches in the order of the patch tokens (base view, then un-padded tiles). None where the
        processor's geometry is not known.

    Raises
    ------
    VisualHeadsError
        When a box is not four finite numbers, has swapped corners, no area, or lies outside the image.
    """
    checked = [check_box(box, image_size) for box in boxes]
    if not preprocessing.known:
        return None
    masks = []
    for vertical, horizontal in image_axes(image_size, preprocessing):
        n_patches = len(vertical.patches) * len(horizontal.patches)
        of_view = np.zeros((len(checked), n_patches), dtype=bool)
        for i, (x0, y0, x1, y1) in enumerate(checked):
            of_view[i] = np.outer(vertical.overlaps(y0, y1), horizontal.overlaps(x0, x1)).ravel()
        masks.append(of_view)
    return np.concatenate(masks, axis=1)


def region_of(image_size: Size, boxes: Any, preprocessing: Preprocessing) -> np.ndarray | None:
    """Which patch tokens lie in the region that `boxes` make together.

    Parameters
    ----------
    image_size : (int, int)
        Height and width, pixels.
    boxes : sequence of (x0, y0, x1, y1), or one such box
        As for `patch_regions`.
    preprocessing : Preprocessing

    Returns
    -------
    ndarray, bool [n_patches], or None
        None without boxes, and where the processor's geometry is not known.

    Raises
    ------
    VisualHeadsError
        As `patch_regions`.
    """
    if boxes is None or not len(boxes):
        return None
    if not hasattr(boxes[0], "__len__"):
        boxes = [boxes]
    masks = patch_regions(image_size, boxes, preprocessing)
    return None if masks is None else np.asarray(masks.any(axis=0), dtype=bool)


def check_box(box: Any, image_size: Size) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """A box as exact numbers.

    Raises
    ------
    VisualHeadsError
        When it is not four finite numbers, has swapped corners, no area, or lies outside the image.
    """
    height, width = image_size
    try:
        numbers = [float(value) for value in box]
        finite = len(numbers) == 4 and all(math.isfinite(value) for value in numbers)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise VisualHeadsError(
            f"A box is four finite numbers (x0, y0, x1, y1); got {box!r}. Correct it or leave it out."
        )
    x0, y0, x1, y1 = map(Fraction, numbers)
    shown = tuple(int(n) if n.is_integer() else n for n in numbers)
    if not (x0 < x1 and y0 < y1):
        raise VisualHeadsError(
            f"A box is (x0, y0, x1, y1) with x0 < x1 and y0 < y1; got {shown}. Swap its corners or leave it out."
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise VisualHeadsError(
            f"A box must overlap its image of {width} x {height} pixels; got {shown}. "
            "Give it in pixels of the original image."
        )
    return x0, y0, x1, y1
