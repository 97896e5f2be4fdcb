"""Geometry against the ground truth that the original code left: box masks, padded box masks, un-padded grids."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms_visual_heads.geometry.layout import BASE, NO_PATCH, TILE, best_resolution, image_layout, unpadded_grid
from lmms_visual_heads.geometry.preprocessing import Preprocessing
from lmms_visual_heads.geometry.regions import patch_regions
from tests.builders.paths import ORACLE

needs_oracle = pytest.mark.skipif(
    not ORACLE.is_dir(), reason="the ground truth ../shared/oracle is not beside this repository"
)
STRETCHED = Preprocessing((56, 56), 14, None, False, False)
PADDED = Preprocessing((56, 56), 14, 56, True, True)
PINPOINTS = ((112, 56), (56, 112), (112, 112), (56, 168), (168, 56))
ANYRES = Preprocessing((56, 56), 14, None, False, False, PINPOINTS, "original")
REAL = ((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336))
ROUNDED, CUT = (
    Preprocessing((336, 336), 14, None, False, False, REAL, rounding) for rounding in ("huggingface", "original")
)


@needs_oracle
def test_boxes_fall_on_the_patches_that_the_original_names() -> None:
    files = sorted(ORACLE.glob("groundtruth/*/*.npz"))
    assert files
    for path in files:
        truth = np.load(path, allow_pickle=False)
        width, height = (int(side) for side in truth["image_size"])
        boxes = truth["bboxes"].tolist()
        for preprocessing, key in ((STRETCHED, "bbox_mask"), (PADDED, "bbox_mask_padded")):
            found = patch_regions((height, width), boxes, preprocessing)
            assert found is not None
            assert found.any(axis=0).tolist() == truth[key].ravel().astype(bool).tolist(), (path.name, key)


@needs_oracle
def test_anyres_tokens_stand_where_the_original_puts_them() -> None:
    files = [path for path in sorted(ORACLE.glob("groundtruth/*/*.npz")) if "unpadded_grid_hw" in np.load(path)]
    assert files
    for path in files:
        truth = np.load(path, allow_pickle=False)
        width, height = (int(side) for side in truth["image_size"])
        layout = image_layout((height, width), ANYRES)
        assert layout.tiles == tuple(truth["unpadded_grid_hw"])
        positions = truth["image_positions"]
        kinds = layout.kinds()
        assert positions[kinds == BASE].tolist() == truth["base_positions"].ravel().tolist()
        assert positions[kinds == TILE].tolist() == truth["hires_positions"].ravel().tolist()
        assert positions[kinds == NO_PATCH].tolist() == truth["newline_positions"].ravel().tolist()
        found = patch_regions((height, width), truth["bboxes"].tolist(), ANYRES)
        assert found is not None
        assert found[:, :16].any(axis=0).tolist() == truth["bbox_mask"].ravel().astype(bool).tolist()


@needs_oracle
def test_the_two_roundings_of_unpadding_differ_where_they_should() -> None:
    cases = json.loads((ORACLE / "unpad_rounding_sizes_336.json").read_text())
    assert len(cases) == 28
    for case in cases:
        width, height = case["size"]
        assert best_resolution((height, width), REAL) == tuple(case["pinpoint"][::-1])
        assert image_layout((height, width), CUT).tiles == tuple(case["orig_hw"])
        assert image_layout((height, width), ROUNDED).tiles == tuple(case["hf_hw"])
        for preprocessing in (CUT, ROUNDED):
            found = patch_regions((height, width), [(0, 0, width, height)], preprocessing)
            assert found is not None
            assert found.shape[1] == image_layout((height, width), preprocessing).n_patches


@needs_oracle
@given(st.tuples(st.integers(64, 1023), st.integers(64, 1023)))
def test_and_nowhere_else(size: tuple[int, int]) -> None:
    differing = {
        tuple(case["size"][::-1]) for case in json.loads((ORACLE / "unpad_rounding_sizes_336.json").read_text())
    }
    assert (image_layout(size, CUT) == image_layout(size, ROUNDED)) == (size not in differing)


def test_original_rounding_cuts_a_product_just_below_a_whole_number() -> None:
    """88 x 99 pixels (width x height) in 672 x 336 (height x width): 88 * (48 / 99) is 42.666, 99 * (24 / 88) is 27 or so."""
    assert unpadded_grid((99, 88), (48, 24)) == (28, 24)
    assert unpadded_grid((99, 88), (48, 24), "original") == (26, 24)
