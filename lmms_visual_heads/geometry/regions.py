"""Boxes in pixels of the original image -> patch tokens. Boxes are half-open (x0, y0, x1, y1), sizes (height, width).

A patch belongs to a region when a box overlaps it with positive area. First version: images that the processor only
resizes. For an image that it crops or pads the answer is None, which leaves the region's statistics missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.layout import best_resolution, image_layout
from lmms_visual_heads.geometry.preprocessing import Preprocessing, Size

Box = Sequence[float]


def patch_regions(image_size: Size, boxes: Sequence[Box], preprocessing: Preprocessing) -> np.ndarray | None:
    """Which patch tokens the boxes overlap with positive area.

    Parameters
    ----------
    image_size : (int, int)
        Height and width of the original image, pixels.
    boxes : sequence of (x0, y0, x1, y1)
        In pixels of the original image, half-open; parts outside the image are ignored.
    preprocessing : Preprocessing
        What the processor does to the image.

    Returns
    -------
    ndarray, bool [len(boxes), n_patches], or None
        One row per box, patches in the order of the patch tokens (base view, then tiles). None where the processor
        crops or pads this image.

    Raises
    ------
    VisualHeadsError
        When a box has swapped corners, no area, or lies outside the image.
    """
    height, width = image_size
    for box in boxes:
        _check_box(box, image_size)
    view_height, view_width = preprocessing.view
    if not preprocessing.pinpoints and not _only_resized(image_size, preprocessing):
        return None
    views = [(preprocessing.grid, preprocessing.view)]
    if preprocessing.pinpoints:
        target = best_resolution(image_size, preprocessing.pinpoints)
        if target[0] * width != target[1] * height:
            return None
        layout = image_layout(image_size, preprocessing)
        full = (target[0] // view_height * preprocessing.grid[0], target[1] // view_width * preprocessing.grid[1])
        if layout.tiles != full or view_height % preprocessing.patch or view_width % preprocessing.patch:
            return None
        views.append((full, target))
    masks = []
    for (rows, columns), (seen_height, seen_width) in views:
        down = [_overlaps(b[1], b[3], height, rows, preprocessing.patch, seen_height) for b in boxes]
        across = [_overlaps(b[0], b[2], width, columns, preprocessing.patch, seen_width) for b in boxes]
        masks.append(
            np.array([np.outer(d, a).ravel() for d, a in zip(down, across, strict=True)]).reshape(len(boxes), -1)
        )
    return np.concatenate(masks, axis=1).astype(bool)


def _only_resized(image_size: Size, preprocessing: Preprocessing) -> bool:
    height, width = image_size
    if preprocessing.pad and height != width:
        return False
    if preprocessing.resize_edge is None:
        return not preprocessing.crop
    edge = preprocessing.resize_edge
    return height == width and preprocessing.view == (edge, edge)


def _overlaps(start: float, end: float, extent: int, n: int, patch: int, seen: int) -> np.ndarray:
    """bool [n]: patches along one axis that [start, end) overlaps; `extent` original pixels become `seen` pixels."""
    edges = np.arange(n + 1) * patch * extent
    return (start * seen < edges[1:]) & (end * seen > edges[:-1])


def _check_box(box: Box, image_size: Size) -> None:
    x0, y0, x1, y1 = box
    height, width = image_size
    if not (x0 < x1 and y0 < y1):
        raise VisualHeadsError(
            f"A box is (x0, y0, x1, y1) with x0 < x1 and y0 < y1; got {tuple(box)}. Swap its corners or leave it out."
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise VisualHeadsError(
            f"A box must overlap its image of {width} x {height} pixels; got {tuple(box)}. "
            "Give it in pixels of the original image."
        )
