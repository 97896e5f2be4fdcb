"""Boxes to patches against exact fractions, written patch by patch; empty regions; errors as sentences."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.layout import image_layout
from lmms_visual_heads.geometry.preprocessing import LARGEST_RESIZED, Preprocessing, check_image_size
from lmms_visual_heads.geometry.regions import patch_regions

PLAIN = Preprocessing((336, 336), 14, 336, True, False)
SMALL = Preprocessing((56, 56), 14, 56, True, False)
PADDED = Preprocessing((56, 56), 14, 56, True, True)
STRETCHED = Preprocessing((384, 384), 14, None, False, False)
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ANYRES = Preprocessing((336, 336), 14, None, False, False, PINPOINTS)


def slow_twin(
    size: tuple[int, int], box: tuple, grid: tuple[int, int], patch: int, seen: tuple[int, int]
) -> list[bool]:
    """Patch by patch in exact fractions of a picture that is only stretched to `seen`."""
    height, width = size
    x0, y0, x1, y1 = map(Fraction, box)
    inside = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, bottom = (Fraction(i * patch * height, seen[0]) for i in (row, row + 1))
            left, right = (Fraction(i * patch * width, seen[1]) for i in (column, column + 1))
            across = min(x1, right, Fraction(width)) - max(x0, left, Fraction(0))
            down = min(y1, bottom, Fraction(height)) - max(y0, top, Fraction(0))
            inside.append(across > 0 and down > 0)
    return inside


@st.composite
def boxed(draw: st.DrawFn, square: bool) -> tuple:
    width = draw(st.integers(1, 900))
    height = width if square else draw(st.integers(1, 900))
    x0, y0 = draw(st.integers(-20, width - 1)), draw(st.integers(-20, height - 1))
    box = x0, y0, draw(st.integers(max(x0, 0) + 1, width + 20)), draw(st.integers(max(y0, 0) + 1, height + 20))
    return (height, width), box


@settings(deadline=None, max_examples=40)
@given(boxed(square=True))
def test_square_images_equal_exact_fractions(case: tuple) -> None:
    size, box = case
    for preprocessing in (PLAIN, SMALL, PADDED):
        found = patch_regions(size, [box], preprocessing)
        expected = slow_twin(size, box, preprocessing.grid, preprocessing.patch, preprocessing.view)
        assert found is not None
        assert found[0].tolist() == expected


@settings(deadline=None, max_examples=40)
@given(boxed(square=False))
def test_stretched_images_equal_exact_fractions(case: tuple) -> None:
    """Six pixels of each side lie beyond the last whole patch and are seen by none."""
    size, box = case
    found = patch_regions(size, [box], STRETCHED)
    assert found is not None
    assert found[0].tolist() == slow_twin(size, box, (27, 27), 14, (384, 384))


@settings(deadline=None, max_examples=60)
@given(boxed(square=False), st.sampled_from([PLAIN, SMALL, PADDED, STRETCHED, ANYRES]))
def test_regions_have_one_entry_per_patch_and_split_with_their_boxes(case: tuple, preprocessing: Preprocessing) -> None:
    size, (x0, y0, x1, y1) = case
    middle = max(x0, 0) + Fraction(min(x1, size[1]) - max(x0, 0), 3)
    found = patch_regions(size, [(x0, y0, x1, y1), (x0, y0, middle, y1), (middle, y0, x1, y1)], preprocessing)
    assert found is not None
    assert found.shape == (3, image_layout(size, preprocessing).n_patches)
    assert (found[0] == found[1] | found[2]).all()


def test_touching_edges_do_not_overlap() -> None:
    found = patch_regions((56, 56), [(14, 14, 28, 28)], SMALL)
    assert found is not None
    assert np.flatnonzero(found[0]).tolist() == [5]
    wider = patch_regions((56, 56), [(13.999, 14, 28, 28.001)], SMALL)
    assert wider is not None
    assert np.flatnonzero(wider[0]).tolist() == [4, 5, 8, 9]


def test_what_is_cropped_away_is_an_empty_region_and_not_a_missing_one() -> None:
    found = patch_regions((56, 112), [(0, 0, 28, 56), (0, 0, 29, 56), (84, 0, 112, 56), (83, 0, 112, 56)], SMALL)
    assert found is not None
    columns = [sorted({int(i) % 4 for i in np.flatnonzero(row)}) for row in found]
    assert columns == [[], [0], [], [3]]


def test_padding_belongs_to_no_box_but_its_patches_may() -> None:
    found = patch_regions((20, 56), [(0, 0, 56, 20), (0, 0, 28, 10)], PADDED)
    assert found is not None
    assert found.reshape(2, 4, 4).any(2).tolist() == [[False, True, True, False], [False, True, False, False]]


def test_unknown_geometry_is_missing_but_bad_boxes_are_still_refused() -> None:
    unknown = Preprocessing((56, 56), 14, 56, True, False, known=False)
    assert patch_regions((56, 56), [(0, 0, 9, 9)], unknown) is None
    with pytest.raises(VisualHeadsError, match="must overlap its image"):
        patch_regions((56, 56), [(60, 0, 70, 9)], unknown)


def test_no_boxes_no_rows() -> None:
    found = patch_regions((56, 56), [], SMALL)
    assert found is not None
    assert found.shape == (0, 16)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (5, 9, 9, 5)])
def test_empty_and_swapped_boxes_are_refused(box: tuple) -> None:
    with pytest.raises(VisualHeadsError, match="x0 < x1 and y0 < y1; got"):
        patch_regions((56, 56), [box], SMALL)


@pytest.mark.parametrize(
    "box", [(float("nan"), 0, 5, 5), (0, 0, float("inf"), 5), (0, 0, 5), (0, 0, 5, 5, 5), ("a", 0, 5, 5), 7, None]
)
def test_what_is_no_box_is_refused(box: object) -> None:
    with pytest.raises(VisualHeadsError, match=r"four finite numbers \(x0, y0, x1, y1\); got"):
        patch_regions((56, 56), [box], SMALL)  # type: ignore[list-item]


@pytest.mark.parametrize("box", [(56, 0, 60, 9), (0, 60, 9, 70), (-9, 0, 0, 9), (0, -9, 9, -1)])
def test_boxes_outside_the_image_are_refused(box: tuple) -> None:
    with pytest.raises(VisualHeadsError, match="must overlap its image of 56 x 56 pixels; got"):
        patch_regions((56, 56), [box], SMALL)


def test_arrays_of_any_number_type_are_boxes() -> None:
    for kind in (np.int32, np.float32, np.float64):
        found = patch_regions((56, 56), np.array([[14, 14, 28, 28]], dtype=kind), SMALL)  # type: ignore[arg-type]
        assert found is not None
        assert np.flatnonzero(found[0]).tolist() == [5]


@pytest.mark.parametrize("preprocessing", [PLAIN, PADDED, STRETCHED, ANYRES])
@pytest.mark.parametrize("size", [(1, 1), (20, 20000), (20000, 20), (1, 600), (600, 1)])
def test_the_smallest_and_the_thinnest_images_have_regions(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    check_image_size(size, preprocessing)
    found = patch_regions(size, [(0, 0, size[1], size[0])], preprocessing)
    assert found is not None
    assert found.shape[1] == image_layout(size, preprocessing).n_patches
    assert found.any()


def test_images_that_would_not_fit_into_memory_are_refused() -> None:
    with pytest.raises(VisualHeadsError, match="20000 x 1 pixels would become 6720000 x 336 before the crop"):
        check_image_size((1, 20000), PLAIN)
    with pytest.raises(VisualHeadsError, match="at least one pixel; got 0 x 5"):
        check_image_size((5, 0), PLAIN)
    assert LARGEST_RESIZED > 336 * 336 * 1000
    check_image_size((1, 20000), ANYRES)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(VisualHeadsError, match="unpad_rounding must be one of huggingface, original; got 'mine'"):
        Preprocessing((56, 56), 14, 56, True, False, unpad_rounding="mine")
