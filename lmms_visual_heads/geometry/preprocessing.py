"""What the image processor does to an image's geometry, read once from its settings. Sizes: (height, width), pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError

Size = tuple[int, int]

UNPAD_ROUNDINGS = ("huggingface", "original")

LARGEST_RESIZED = 2**28
"""Pixels of a resized picture, before the crop; more would take gigabytes for one document."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Geometry of the preprocessing: pad, resize, crop; or anyres tiles.

    Attributes
    ----------
    view : (int, int)
        Height and width of the picture that the vision tower sees.
    patch : int
        Edge of one patch in that picture; pixels of the view beyond the last whole patch are seen by no patch.
    resize_edge : int or None
        The shorter side is resized to this, keeping the aspect ratio; None: the image is stretched.
    crop : bool
        Whether the middle `view` is then cut out (an image that is too small is surrounded instead).
    pad : bool
        Whether the image is first padded to a square, itself in the middle.
    pinpoints : tuple of (int, int)
        Sizes that an anyres image may be resized and padded to before it is cut into tiles; empty: no tiles. The base
        view of anyres is the whole image stretched to `view`.
    unpad_rounding : {"huggingface", "original"}
        How un-padding rounds the tiles' rows and columns: transformers rounds to 7 digits first, the original code
        cuts off, which differs for a few sizes where a product of floats falls just below a whole number.
    stretch : (int, int) or None
        Size that the image is stretched to where `resize_edge` is None; None: `view`.
    known : bool
        False where the processor does something else (no resize, another kind of size): then regions are missing.

    Raises
    ------
    VisualHeadsError
        When `unpad_rounding` is neither.
    """

    view: Size
    patch: int
    resize_edge: int | None
    crop: bool
    pad: bool
    pinpoints: tuple[Size, ...] = ()
    unpad_rounding: str = "huggingface"
    stretch: Size | None = None
    known: bool = True

    def __post_init__(self) -> None:
        if self.unpad_rounding not in UNPAD_ROUNDINGS:
            raise VisualHeadsError(
                f"unpad_rounding must be one of {', '.join(UNPAD_ROUNDINGS)}; got {self.unpad_rounding!r}. "
                "Choose the one of the checkpoint's format."
            )

    @property
    def grid(self) -> Size:
        """Rows and columns of patches in one view."""
        return self.view[0] // self.patch, self.view[1] // self.patch

    def padded_size(self, image_size: Size) -> Size:
        """Size after padding to a square, in pixels of the original image."""
        return (max(image_size),) * 2 if self.pad else image_size

    def resized_size(self, image_size: Size) -> Size:
        """Size after padding and resizing, before the crop; of the base view with anyres. Rounded as the processors do."""
        height, width = self.padded_size(image_size)
        if self.pinpoints or self.resize_edge is None:
            return self.stretch or self.view
        longer = int(self.resize_edge * max(height, width) / min(height, width))
        return (longer, self.resize_edge) if width <= height else (self.resize_edge, longer)


def check_image_size(image_size: Size, preprocessing: Preprocessing) -> None:
    """Refuse an image that the processor would blow up beyond `LARGEST_RESIZED` pixels.

    Raises
    ------
    VisualHeadsError
        For an image without pixels, or so long and thin that its resized picture would not fit into memory.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise VisualHeadsError(
            f"An image needs at least one pixel; got {width} x {height}. Leave it out or repair its file."
        )
    resized = preprocessing.resized_size(image_size)
    if resized[0] * resized[1] > LARGEST_RESIZED:
        raise VisualHeadsError(
            f"An image must not be so long and thin that the processor cannot hold it; {width} x {height} pixels would "
            f"become {resized[1]} x {resized[0]} before the crop. Crop or pad the image first."
        )


def read_preprocessing(
    image_processor: Any, vision_config: Any, pinpoints: Any = None, unpad_rounding: str = "huggingface"
) -> Preprocessing:
    """Geometry of `image_processor` in front of a tower with `vision_config` (its patch size and picture size).

    Parameters
    ----------
    image_processor : transformers image processor
        CLIP, SigLIP, LLaVA or LLaVA-NeXT.
    vision_config : transformers config
        Of the vision tower.
    pinpoints : sequence of (height, width) or None
        The model's anyres sizes; None: no tiles.
    unpad_rounding : {"huggingface", "original"}
        How the model's un-padding rounds.
    """
    size = _as_dict(image_processor.size)
    crop_size = _as_dict(getattr(image_processor, "crop_size", None))
    crop = bool(getattr(image_processor, "do_center_crop", False)) and bool(crop_size)
    edge = size.get("shortest_edge")
    fallback = int(edge or size.get("height") or vision_config.image_size)
    picture = crop_size if crop else size
    view = (int(picture.get("height") or fallback), int(picture.get("width") or fallback))
    patch = int(vision_config.patch_size)
    known = bool(getattr(image_processor, "do_resize", True)) and set(size) in ({"shortest_edge"}, {"height", "width"})
    if pinpoints:
        sizes = tuple((int(height), int(width)) for height, width in pinpoints)
        whole = (int(edge), int(edge)) if edge else (int(size.get("height") or 0), int(size.get("width") or 0))
        # a crop that differs from the size would zoom into every tile: no published processor does
        known = known and whole == view and view[0] == view[1]
        return Preprocessing(view, patch, None, False, False, sizes, unpad_rounding, known=known)
    # CLIP's own do_pad fills a batch up after the crop; only LLaVA's processor pads to a square first
    pad = bool(getattr(image_processor, "do_pad", False)) and hasattr(image_processor, "pad_to_square")
    stretch = None if edge or not crop else (int(size.get("height") or 0), int(size.get("width") or 0))
    known = known and (crop or pad or not edge)
    return Preprocessing(
        view, patch, None if edge is None else int(edge), crop, pad, (), unpad_rounding, stretch, known
    )


def _as_dict(size: Any) -> dict[str, Any]:
    """Processor sizes come as dicts or as transformers' SizeDict."""
    if size is None:
        return {}
    if isinstance(size, Mapping):
        return {name: value for name, value in size.items() if value is not None}
    names = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
    return {name: getattr(size, name) for name in names if getattr(size, name, None) is not None}
