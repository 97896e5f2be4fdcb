"""Images of every mode become RGB pictures of the same size; 16 bits are scaled, EXIF orientation is left alone."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import as_rgb
from tests.builders.tiny import noise_image

COLOURS = noise_image(40, 24)


def stored(image: Image.Image, kind: str, **settings: object) -> Image.Image:
    """`image` after a round through a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_ordinary_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = COLOURS.convert(mode)
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(image.convert("RGB")))
    assert as_rgb(COLOURS) is COLOURS


def test_palettes_with_transparency_keep_their_colours_without_a_warning() -> None:
    image = stored(COLOURS.quantize(16), "png", transparency=bytes([0, 128] + [255] * 14))
    assert image.mode == "P"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(as_rgb(image))
    assert np.array_equal(found, np.asarray(COLOURS.quantize(16).convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68
    image = stored(Image.fromarray(values), kind)
    assert image.mode.startswith("I")
    found = np.asarray(as_rgb(image))
    assert found.shape == (24, 40, 3)
    assert np.array_equal(found[..., 1], values >> 8)


def test_small_integers_and_fractions_are_taken_as_they_are() -> None:
    values = np.arange(200, dtype=np.int32).reshape(10, 20)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.float32))):
        assert np.array_equal(np.asarray(as_rgb(image))[..., 0], values)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[70000]], np.int32),
        np.array([[-1]], np.int32),
        np.array([[300.5]], np.float32),
        np.array([[np.nan]], np.float32),
    ],
)
def test_values_of_unknown_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(VisualHeadsError, match=r"must hold values from 0 to \d+; these run from"):
        as_rgb(Image.fromarray(values))


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # shown turned by a quarter
    image = stored(COLOURS, "png", exif=exif)
    assert image.getexif()[274] == 6
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(COLOURS))


@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-llama"])
def test_models_read_every_mode_and_the_smallest_and_thinnest_images(tiny: Callable[[str], Path], kind: str) -> None:
    model = load_model(tiny(kind), device="cpu", dtype="float32")
    exif = Image.Exif()
    exif[274] = 6
    images = [COLOURS.convert(mode) for mode in ("L", "P", "CMYK", "RGBA")]
    images += [stored(COLOURS, "png", exif=exif), Image.fromarray(np.full((24, 40), 40000, np.uint16))]
    for image in images:
        rows = model.attention_rows(image, "How many?", boxes=[(20, 0, 40, 24)])
        assert rows.region_positions is not None
        assert rows.statistics().image_attention.notna().all()
        same = model.attention_rows(as_rgb(image), "How many?", boxes=[(20, 0, 40, 24)])
        assert np.allclose(rows.values, same.values, atol=1e-6)
    for size in ((1, 1), (20000, 20), (20, 20000)):
        image = Image.new("RGB", size, (200, 30, 30))
        statistics = model.attention_rows(image, "How many?", boxes=[(0, 0, *size)]).statistics()
        assert statistics.region_attention.notna().all()
        assert (statistics.region_share > 0).all()
    with pytest.raises(VisualHeadsError, match="must overlap its image of 40 x 24"):
        model.attention_rows(COLOURS, "How many?", boxes=[(40, 0, 50, 9)])


def test_an_object_that_the_crop_cuts_off_gets_no_attention(tiny: Callable[[str], Path]) -> None:
    """Known to be 0, not missing: the model sees no pixel of it."""
    model = load_model(tiny("llava-llama"), device="cpu", dtype="float32")
    rows = model.attention_rows(noise_image(112, 56), "How many?", boxes=[(0, 0, 20, 56)])
    assert rows.region_positions is not None
    assert len(rows.region_positions) == 0
    statistics = rows.statistics()
    assert (statistics.region_attention == 0).all()
    assert (statistics.region_share == 0).all()


def test_base_and_tiles_are_parts_of_the_region(tiny: Callable[[str], Path]) -> None:
    model = load_model(tiny("llavanext-llama"), device="cpu", dtype="float32")
    statistics = model.attention_rows(noise_image(200, 60), "How many?", boxes=[(20, 10, 90, 50)]).statistics()
    parts = statistics.region_attention_base + statistics.region_attention_tiles
    assert np.allclose(parts, statistics.region_attention, atol=1e-6)
    assert (statistics.region_attention_tiles > 0).all()
