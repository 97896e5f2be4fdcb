"""Regions against painted boxes that went through transformers' own image processors with nearest-neighbour resampling.

Exact: towers of a few pixels and their twins of many times that resolution, where no sliver of a box is lost. Real
scale: 336 pixels, where a box that is too thin for a pixel of the view may be lost, and nothing else.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.image_processing_utils import get_patch_output_size
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from lmms_visual_heads.geometry.axes import fitted_size
from lmms_visual_heads.geometry.layout import NO_PATCH, best_resolution, image_layout
from lmms_visual_heads.geometry.preprocessing import Preprocessing, read_preprocessing
from lmms_visual_heads.geometry.regions import patch_regions

Size = tuple[int, int]
RAW: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "resample": Image.Resampling.NEAREST}
BLACK = {"image_mean": [0.0, 0.0, 0.0]}
KINDS = ("crop", "pad", "stretch", "anyres")
PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def processor(kind: str, view: int) -> Any:
    """A real processor for a tower of `view` pixels that keeps raw pixel values."""
    square = {"size": {"shortest_edge": view}, "crop_size": {"height": view, "width": view}}
    if kind == "crop":
        return CLIPImageProcessorPil(**square, **RAW)
    if kind == "pad":
        return LlavaImageProcessorPil(**square, **RAW, **BLACK, do_pad=True)
    if kind == "stretch":
        return SiglipImageProcessorPil(size={"height": view, "width": view}, **RAW)
    pinpoints = [[rows * view, columns * view] for rows, columns in PINPOINTS]
    return LlavaNextImageProcessorPil(**square, **RAW, image_grid_pinpoints=pinpoints)


def geometry(kind: str, view: int, patch: int) -> Preprocessing:
    """The same processor as the product reads it."""
    real = processor(kind, view)
    tower = SimpleNamespace(image_size=view, patch_size=patch)
    return read_preprocessing(real, tower, getattr(real, "image_grid_pinpoints", None))


def painted(kind: str, view: int, patch: int, size: Size, box: tuple[int, int, int, int]) -> np.ndarray:
    """bool [n patch tokens]: patches that hold a white pixel after the processor saw a white box on black."""
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[max(box[1], 0) : box[3], max(box[0], 0) : box[2]] = 255
    pixels = np.asarray(processor(kind, view)(images=[Image.fromarray(canvas)])["pixel_values"][0])
    n = view // patch
    views = pixels.reshape(-1, 3, view, view)[:, 0, : n * patch, : n * patch]
    hit = (views.reshape(-1, n, patch, n, patch) > 127).any(axis=(2, 4))
    if kind != "anyres":
        return hit[0].ravel()
    pinpoints = [[rows * view, columns * view] for rows, columns in PINPOINTS]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=view, patch_size=patch), image_grid_pinpoints=pinpoints
    )
    features = torch.from_numpy(hit.reshape(len(hit), n * n, 1)).float()
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [features], [size], "default", image_newline=torch.tensor([2.0])
    )
    marks = packed[0][:, 0].numpy()
    return marks[marks != 2.0] == 1.0


@st.composite
def boxes_in(draw: st.DrawFn, size: Size, margin: int = 0) -> tuple[int, int, int, int]:
    height, width = size
    x0, y0 = draw(st.integers(margin, width - margin - 1)), draw(st.integers(margin, height - margin - 1))
    x1, y1 = draw(st.integers(x0 + 1, width - margin)), draw(st.integers(y0 + 1, height - margin))
    return x0, y0, x1, y1


@st.composite
def cases(draw: st.DrawFn, largest: int, margin: int) -> tuple[Size, tuple[int, int, int, int]]:
    width, height = draw(st.integers(2 * margin + 1, largest)), draw(st.integers(2 * margin + 1, largest))
    return (height, width), draw(boxes_in((height, width), margin))


def scales_exactly(kind: str, size: Size, view: int, factor: int) -> bool:
    """Whether the processor of `factor` times the resolution rounds to `factor` times the same sizes."""
    small, large = geometry(kind, view, 1), geometry(kind, view * factor, factor)
    if kind == "anyres":
        target = best_resolution(size, small.pinpoints)
        fitted, fitted_large = fitted_size(size, target), fitted_size(size, (target[0] * factor, target[1] * factor))
        same = best_resolution(size, large.pinpoints) == (target[0] * factor, target[1] * factor)
        even = all((t - f) % 2 == 0 for t, f in zip(target, fitted, strict=True))
        return same and even and fitted_large == (fitted[0] * factor, fitted[1] * factor)
    resized, resized_large = small.resized_size(size), large.resized_size(size)
    even = all((r - view) % 2 == 0 for r in resized)
    return even and resized_large == (resized[0] * factor, resized[1] * factor)


@settings(deadline=None, max_examples=200)
@given(st.tuples(st.integers(1, 900), st.integers(1, 900)), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_an_image_is_fitted_as_the_processor_fits_it(size: Size, tiles: tuple[int, int]) -> None:
    target = (tiles[0] * 56, tiles[1] * 56)
    image = np.zeros((3, *size), dtype=np.uint8)
    assert fitted_size(size, target) == get_patch_output_size(image, target, ChannelDimension.FIRST)


@functools.cache
def exact_sizes(kind: str) -> list[Size]:
    return [(h, w) for h in range(1, 17) for w in range(1, 17) if scales_exactly(kind, (h, w), 8, 2 * max(h, w))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("view", "patch"), [(8, 2), (8, 3)], ids=["whole patches", "a rest beyond the last patch"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_overlap_equals_the_painted_box_at_high_resolution(
    kind: str, view: int, patch: int, data: st.DataObject
) -> None:
    sizes = exact_sizes(kind)
    assert len({max(size) / min(size) for size in sizes}) > 5
    size = data.draw(st.sampled_from(sizes))
    box = data.draw(boxes_in(size))
    factor = 2 * max(size)  # every edge of box and patch falls between two sampled points
    found = patch_regions(size, [box], geometry(kind, view, patch))
    assert found is not None
    assert found[0].tolist() == painted(kind, view * factor, patch * factor, size, box).tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=12)
@given(case=cases(largest=1100, margin=6))
def test_real_scale_differs_by_slivers_only(kind: str, case: tuple[Size, tuple[int, int, int, int]]) -> None:
    """What is painted is found; what is found is painted once the box has grown by one pixel of the view."""
    size, box = case
    if kind == "crop" and max(size) > 4 * min(size):
        return
    preprocessing = geometry(kind, 336, 14)
    found = patch_regions(size, [box], preprocessing)
    assert found is not None
    seen = painted(kind, 336, 14, size, box)
    assert len(seen) == found.shape[1] == (image_layout(size, preprocessing).kinds() != NO_PATCH).sum()
    assert not (seen & ~found[0]).any()
    grow = math.ceil(max(size) / 336) if kind != "crop" else math.ceil(min(size) / 336)
    grown = (box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow)
    assert not (found[0] & ~painted(kind, 336, 14, size, grown)).any()


@pytest.mark.parametrize("size", [(672, 672), (480, 640), (640, 427), (333, 1000), (1000, 250), (100, 90)])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_and_quarters_at_real_scale(kind: str, size: Size) -> None:
    height, width = size
    for box in ((0, 0, width, height), (0, 0, width // 2, height // 2), (width // 2, height // 2, width, height)):
        found = patch_regions(size, [box], geometry(kind, 336, 14))
        seen = painted(kind, 336, 14, size, box)
        assert found is not None
        assert not (seen & ~found[0]).any()
        assert (found[0] & ~seen).sum() <= (found.shape[1] // 24 if height % 2 or width % 2 or kind != "stretch" else 0)


def test_the_largest_prompts_have_2880_patches() -> None:
    found = patch_regions((672, 672), [(0, 0, 672, 672)], geometry("anyres", 336, 14))
    assert found is not None
    assert found.shape == (1, 2880)
    assert found.all()


def test_published_sizes_are_read_as_the_processors_act() -> None:
    tower = SimpleNamespace(image_size=8, patch_size=2)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    assert read_preprocessing(clip, tower) == Preprocessing((8, 8), 2, 8, True, False)
    clip.do_pad = True  # fills a batch up after the crop: nothing happens to a picture of the crop's size
    assert not read_preprocessing(clip, tower).pad
    assert geometry("pad", 8, 2).pad
    stretched = CLIPImageProcessorPil(size={"height": 12, "width": 10}, crop_size={"height": 8, "width": 8})
    assert read_preprocessing(stretched, tower) == Preprocessing((8, 8), 2, None, True, False, stretch=(12, 10))
    unknown = [
        CLIPImageProcessorPil(size={"shortest_edge": 8}, do_center_crop=False),
        CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_resize=False),
        CLIPImageProcessorPil(size={"shortest_edge": 8, "longest_edge": 16}, crop_size={"height": 8, "width": 8}),
    ]
    assert not any(read_preprocessing(one, tower).known for one in unknown)
    zoomed = LlavaNextImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 8, "width": 8})
    assert not read_preprocessing(zoomed, tower, [[8, 16]]).known


@pytest.mark.parametrize("box", [(0, 0, 9, 5), (3, 2, 6, 5), (8, 4, 9, 5)])
def test_stretch_then_crop(box: tuple[int, int, int, int]) -> None:
    """Stretched to 12 x 10, the middle 8 x 8 cut out; 60 times as many pixels hide no sliver."""
    factor = 60
    large = CLIPImageProcessorPil(
        size={"height": 12 * factor, "width": 10 * factor},
        crop_size={"height": 8 * factor, "width": 8 * factor},
        **RAW,
    )
    canvas = np.zeros((5, 9, 3), np.uint8)
    canvas[box[1] : box[3], box[0] : box[2]] = 255
    pixels = np.asarray(large(images=[Image.fromarray(canvas)])["pixel_values"][0])[0]
    expected = (pixels.reshape(4, 2 * factor, 4, 2 * factor) > 127).any(axis=(1, 3))
    found = patch_regions((5, 9), [box], Preprocessing((8, 8), 2, None, True, False, stretch=(12, 10)))
    assert found is not None
    assert found[0].tolist() == expected.ravel().tolist()
