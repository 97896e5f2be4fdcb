"""Is a file a whole image? Decodes it completely, and looks for what a decoder forgives: a JPEG without its end."""

from __future__ import annotations

import hashlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from lmms_visual_heads.errors import VisualHeadsError

FORMATS = ("JPEG", "PNG", "WEBP")
"""JPEG includes the several-picture kind of cameras (MPO)."""

LARGEST_PIXELS = 100_000_000
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_PIL_SETTING = threading.Lock()
_END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a whole image: SHA-256 of the file, its bytes, width and height in pixels of the stored grid."""

    sha256: str
    n_bytes: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.width, self.height

    def to_json(self) -> dict[str, str | int]:
        """The facts as `dataset.json` keeps them."""
        return asdict(self)


def _looks_like_html(content: bytes) -> bool:
    head = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


@contextmanager
def _cut_off_images_refused() -> Iterator[None]:
    """PIL as it is by itself: importing lmms-eval sets it, for the whole process, to fill up cut-off images with grey.

    PIL's own limit on pixels is ours meanwhile, so that one sentence says one number.
    """
    with _PIL_SETTING:
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, LARGEST_PIXELS
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def check_image(path: Path, name: str | None = None) -> ImageFacts:
    """Facts of a whole image.

    Parameters
    ----------
    path : Path
        The file.
    name : str, optional
        What messages call it; the path by default.

    Raises
    ------
    VisualHeadsError
        If it cannot be read, is empty, no image in JPEG, PNG or WebP, cut off, damaged, or larger than 100 megapixels.
    """
    shown = name or str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VisualHeadsError(f"A whole image is required; {shown} cannot be read: {error.strerror}.") from error
    if not content:
        raise VisualHeadsError(f"A whole image is required; {shown} is empty.")
    try:
        with _cut_off_images_refused(), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                width, height, kind = image.width, image.height, image.format
                if width * height <= LARGEST_PIXELS:
                    image.load()
    except UnidentifiedImageError as error:
        what = "is an HTML page" if _looks_like_html(content) else "is no image in JPEG, PNG or WebP"
        raise VisualHeadsError(f"A whole image is required; {shown} {what}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VisualHeadsError(
            f"An image of at most {LARGEST_PIXELS:,} pixels is required; {shown} has more."
        ) from error
    except _BROKEN as error:
        raise VisualHeadsError(f"A whole image is required; {shown} is cut off or damaged: {error}.") from error
    if width * height > LARGEST_PIXELS:
        raise VisualHeadsError(
            f"An image of at most {LARGEST_PIXELS:,} pixels is required; {shown} has {width} x {height}."
        )
    if kind == "JPEG" and content.rfind(_END_OF_IMAGE) < content.rfind(_START_OF_SCAN):
        raise VisualHeadsError(f"A whole image is required; {shown} is cut off: its end is missing.")
    return ImageFacts(hashlib.sha256(content).hexdigest(), len(content), width, height)
