"""An image of any Pillow mode as the RGB picture that the processors get, and the blank one. Its size never changes.

Grey, palette, CMYK and images with transparency become what Pillow's `convert("RGB")` makes of them (transparency is
dropped), as in the original code and in lmms-eval's tasks. Pillow would clip 16-bit images to white; here they are scaled
to 8 bits. EXIF orientation is not applied: boxes are in pixels of the image as decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from lmms_visual_heads.errors import VisualHeadsError


def as_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB; the same object where it is RGB already.

    Parameters
    ----------
    image : PIL image
        16 bits a pixel (modes I;16 and, where a value exceeds 255, I) are divided by 256.

    Raises
    ------
    VisualHeadsError
        When pixel values have no known range (integers beyond 65,535 or below 0; fractions beyond 0 to 255).
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "P":
        # the same colours as directly, without Pillow's warning about palettes with transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def blank_image(image: Image.Image, image_processor: Any) -> Image.Image:
    """An RGB image of the same size in the processor's mean colour, which its normalisation maps to zero; else mid-grey."""
    mean = list(getattr(image_processor, "image_mean", None) or [0.5])
    mean = mean if len(mean) == 3 else [mean[0]] * 3
    red, green, blue = (round(255 * part) for part in mean)
    return Image.new("RGB", image.size, (red, green, blue))


def _eight_bits(image: Image.Image) -> np.ndarray:
    """uint8 [height, width] of an image with one channel of more than 8 bits."""
    values = np.asarray(image)
    smallest, largest = (values.min(), values.max()) if values.size else (0, 0)
    limit = 255 if image.mode == "F" else 65535
    if not (smallest >= 0 and largest <= limit):
        raise VisualHeadsError(
            f"An image of mode {image.mode} must hold values from 0 to {limit}; these run from {smallest} to {largest}. "
            "Convert it to RGB with the range that it was recorded in."
        )
    if image.mode != "F" and (image.mode.startswith("I;16") or largest > 255):
        values = values >> 8
    return values.astype(np.uint8)
