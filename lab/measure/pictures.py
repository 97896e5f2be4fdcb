"""The pictures that small checkpoints are measured on, resized once per kind of image processor and kept on disk.

Four pools of the suite, the probe's scenes, a blank picture, and corrupted copies that no training has seen.
Shapes: N pictures, S pixels a side, V views (base view and tiles) of an anyres processor.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lab import suite
from lab.measure.tasks import N_OWN_PROMPTS, PROBE_POOL
from lmms_visual_heads.geometry.images import blank_image
from lmms_visual_heads.probe import documents
from lmms_visual_heads.probe.layout import IMAGE_SIZE
from lmms_visual_heads.probe.random_stream import RandomStream

Pixels = npt.NDArray[np.uint8]

DRAWN = 2
"""Raised when a pool or the corruption changes: kept pictures of another number are not used."""
N_PICTURES = 2000
N_CORRUPTED = 1000
"""Pictures of each pool that also come corrupted."""
GREY, KEPT, OUT_OF = 96, 2, 3
"""What the corruption pulls every value to, and how much of the difference is left: two thirds."""
BLOCK, NOISE = 14, 20
"""Edge of the noise's squares in pixels, large enough to survive that a processor makes pictures small, and its largest step."""
BLUR = 3
"""Pixels on each side that the blur averages over."""


@cache
def _noise() -> npt.NDArray[np.int16]:
    """Fixed noise -20 .. 20 in squares of 14 pixels, int16 [672, 672, 3]; a picture sees a window of it."""
    stream = RandomStream("corruption")
    cells = 2 * IMAGE_SIZE // BLOCK
    values = np.array([stream.below(2 * NOISE + 1) - NOISE for _ in range(cells * cells * 3)], np.int16)
    return np.repeat(np.repeat(values.reshape(cells, cells, 3), BLOCK, axis=0), BLOCK, axis=1)


def corrupted(pixels: Pixels, number: int) -> Pixels:
    """A picture that is harder to see: less contrast, blurred, with coarse noise; integers only.

    `number` is the picture's in its pool and shifts the noise. Values uint8 [336, 336, 3].
    """
    faint = (KEPT * pixels.astype(np.uint16) + (OUT_OF - KEPT) * GREY) // OUT_OF
    for axis in (0, 1):
        padding = [(0, 0)] * 3
        padding[axis] = (BLUR, BLUR)
        wide = np.moveaxis(np.pad(faint, padding, mode="edge"), axis, 0)
        length = faint.shape[axis]
        total = np.zeros_like(wide[:length])
        for shift in range(2 * BLUR + 1):
            total += wide[shift : shift + length]
        faint = np.moveaxis(total // (2 * BLUR + 1), 0, axis)
    top, left = number * 101 % IMAGE_SIZE, number * 59 % IMAGE_SIZE
    noisy = faint.astype(np.int16) + _noise()[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    return noisy.clip(0, 255).astype(np.uint8)


def drawn(pool: str, number: int) -> Image.Image:
    """Picture `number` of a pool, RGB 336 x 336."""
    if pool == PROBE_POOL:
        return documents.draw(_probe()[number])
    return suite.draw_pool(pool, number)


@cache
def _probe() -> list[documents.Document]:
    return documents.documents("general")


class Pictures:
    """Resized pictures of one image processor; read from `folder`, written there where they are missing.

    Parameters
    ----------
    folder : Path
        Shared by checkpoints and processes.
    image_processor : transformers image processor
    limit : int or None
        Pictures of a pool; None: all.
    """

    def __init__(self, folder: Path, image_processor: Any, limit: int | None = None) -> None:
        self._processor = image_processor
        self._limit = limit
        settings = f"{DRAWN} {type(image_processor).__name__} {image_processor.to_json_string()}"
        self._folder = folder / hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()

    def pool(self, name: str, *, harder: bool = False) -> Tensor:
        """All pictures of a pool, uint8 [N, 3, S, S] or [N, V, 3, S, S]; `harder`: the corrupted ones."""
        n = N_OWN_PROMPTS if name == PROBE_POOL else N_CORRUPTED if harder else N_PICTURES
        n = n if self._limit is None else min(n, self._limit)
        path = self._folder / f"{name}{'-corrupted' if harder else ''}-{n}.npy"
        if not path.exists():
            parts = [self._resized(name, range(first, min(first + 50, n)), harder) for first in range(0, n, 50)]
            self._write(path, np.concatenate(parts))
        # Copy on write: torch wants writable memory, and nothing is ever written.
        return torch.from_numpy(np.load(path, mmap_mode="c"))

    def blank(self) -> Tensor:
        """One picture of the processor's mean colour, resized."""
        image = blank_image(Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)), self._processor)
        return torch.from_numpy(self._through([image]))

    def _resized(self, pool: str, numbers: range, harder: bool) -> Pixels:
        images = [drawn(pool, number) for number in numbers]
        if harder:
            pairs = zip(images, numbers, strict=True)
            images = [Image.fromarray(corrupted(np.asarray(image), number)) for image, number in pairs]
        return self._through(images)

    def _through(self, images: list[Image.Image]) -> Pixels:
        resized = self._processor(images, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(resized).astype(np.uint8)

    def _write(self, path: Path, pixels: Pixels) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            np.save(file, pixels)
        os.replace(part, path)
