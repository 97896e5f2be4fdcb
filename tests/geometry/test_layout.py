"""Order and kind of visual tokens, against transformers' own packing of tagged features."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

from lmms_visual_heads.geometry.layout import BASE, NO_PATCH, TILE, ImageLayout, best_resolution, image_layout
from lmms_visual_heads.geometry.preprocessing import Preprocessing, read_preprocessing

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ANYRES = Preprocessing((336, 336), 14, None, False, False, PINPOINTS)
SIZES = st.tuples(st.integers(1, 2500), st.integers(1, 2500))


def packed_kinds(size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """Slow twin: transformers packs features that carry their kind: base 0, tiles 1, newline 2."""
    view = preprocessing.view[0]
    rows, columns = preprocessing.grid
    pinpoints = [list(p) for p in preprocessing.pinpoints]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=view, patch_size=preprocessing.patch), image_grid_pinpoints=pinpoints
    )
    n_views = image_size_to_num_patches(size, pinpoints, view)
    features = torch.ones(n_views, rows * columns, 1)
    features[0] = 0
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [features], [size], "default", image_newline=torch.tensor([2.0])
    )
    return packed[0][:, 0].numpy().astype(np.int8)


@settings(max_examples=150, deadline=None)
@given(SIZES)
def test_kinds_equal_transformers_packing_at_real_scale(size: tuple[int, int]) -> None:
    layout = image_layout(size, ANYRES)
    kinds = layout.kinds()
    expected = packed_kinds(size, ANYRES)
    assert np.array_equal(kinds, expected)
    assert layout.n_tokens == len(expected)
    assert layout.n_patches == (expected != NO_PATCH).sum()


@given(SIZES)
def test_best_resolution_equals_transformers(size: tuple[int, int]) -> None:
    assert best_resolution(size, PINPOINTS) == select_best_resolution(size, list(PINPOINTS))


@pytest.mark.parametrize(("size", "tokens"), [((672, 672), 2928), ((336, 672), 1752), ((1008, 336), 2376)])
def test_known_counts(size: tuple[int, int], tokens: int) -> None:
    assert image_layout(size, ANYRES).n_tokens == tokens


def test_single_view_and_kept_class_token() -> None:
    plain = Preprocessing((336, 336), 14, 336, True, False)
    assert image_layout((200, 700), plain) == ImageLayout((24, 24))
    assert image_layout((200, 700), plain).n_tokens == 576
    kept = image_layout((200, 700), plain, leading=1)
    assert kept.n_tokens == 577
    assert kept.kinds().tolist() == [NO_PATCH] + [BASE] * 576


def test_order_base_then_rows_of_tiles_each_ended_by_a_newline() -> None:
    kinds = ImageLayout((2, 2), (2, 3)).kinds()
    assert kinds.tolist() == [BASE] * 4 + ([TILE] * 3 + [NO_PATCH]) * 2


def test_reading_processors() -> None:
    from transformers import CLIPImageProcessor, LlavaImageProcessor, LlavaNextImageProcessor

    tower = SimpleNamespace(image_size=336, patch_size=14)
    clip = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    assert read_preprocessing(clip, tower) == Preprocessing((336, 336), 14, 336, True, False)
    stretched = CLIPImageProcessor(size={"height": 336, "width": 336}, do_center_crop=False)
    assert read_preprocessing(stretched, tower) == Preprocessing((336, 336), 14, None, False, False)
    anyres = LlavaNextImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    assert read_preprocessing(anyres, tower, [list(p) for p in PINPOINTS]) == ANYRES
    padding = LlavaImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=True)
    assert read_preprocessing(padding, tower).pad
