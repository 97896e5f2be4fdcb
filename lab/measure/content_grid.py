"""Patch tokens -> a common grid of image content, so that models with other patches, views and tiles can be compared.

A patch gives its attention to the cells that it covers, in proportion to the area. Base view and tiles show the same content
and end in the same cells. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.geometry.axes import Axis, image_axes
from lmms_visual_heads.geometry.preprocessing import Preprocessing, Size

CELLS = 4
"""Cells of the common grid on each side."""


def content_grid(image_size: Size, preprocessing: Preprocessing, cells: int = CELLS) -> npt.NDArray[np.float64] | None:
    """Which share of each patch lies in which cell.

    Parameters
    ----------
    image_size : (int, int)
        Height and width of the original image.
    preprocessing : Preprocessing
    cells : int
        Cells on each side; the grid covers the whole image.

    Returns
    -------
    ndarray, float64 [n_patches, cells * cells], or None
        Rows sum to the share of the patch that shows the image at all (1 without padding); cells row by row. None where the
        processor's geometry is not known.
    """
    if not preprocessing.known:
        return None
    views = [
        np.einsum("ac,bd->abcd", _shares(vertical, cells), _shares(horizontal, cells)).reshape(-1, cells * cells)
        for vertical, horizontal in image_axes(image_size, preprocessing)
    ]
    return np.concatenate(views)


def _shares(axis: Axis, cells: int) -> npt.NDArray[np.float64]:
    """Share of each patch's extent that lies in each cell, [n_patches, cells]."""
    scale = axis.resized / axis.padded
    edges = (axis.extent * np.arange(cells + 1) / cells + axis.before) * scale + axis.offset
    starts = np.array(axis.patches, np.float64)[:, None]
    overlap = np.minimum(starts + axis.patch, edges[None, 1:]) - np.maximum(starts, edges[None, :-1])
    return overlap.clip(min=0.0) / axis.patch
