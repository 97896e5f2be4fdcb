"""What the image processor does to an image's geometry, read once from its settings. Sizes: (height, width), pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Geometry of the preprocessing.

    Attributes
    ----------
    view : (int, int)
        Height and width of the picture that the vision tower sees.
    patch : int
        Edge of one patch in that picture.
    resize_edge : int or None
        The shorter side is resized to this, keeping the aspect ratio; None: the image is stretched to `view`.
    crop : bool
        Whether the middle `view` is then cut out.
    pad : bool
        Whether the image is first padded to a square.
    pinpoints : tuple of (int, int)
        Sizes that an anyres image may be resized and padded to before it is cut into tiles; empty: no tiles.
    """

    view: Size
    patch: int
    resize_edge: int | None
    crop: bool
    pad: bool
    pinpoints: tuple[Size, ...] = ()

    @property
    def grid(self) -> Size:
        """Rows and columns of patches in one view."""
        return self.view[0] // self.patch, self.view[1] // self.patch


def read_preprocessing(image_processor: Any, vision_config: Any, pinpoints: Any = None) -> Preprocessing:
    """Geometry of `image_processor` in front of a tower with `vision_config` (its patch size and picture size).

    Parameters
    ----------
    image_processor : transformers image processor
        CLIP, LLaVA or LLaVA-NeXT.
    vision_config : transformers config
        Of the vision tower.
    pinpoints : sequence of (height, width) or None
        The model's anyres sizes; None: no tiles.
    """
    size = _as_dict(image_processor.size)
    crop_size = _as_dict(getattr(image_processor, "crop_size", None))
    crop = bool(getattr(image_processor, "do_center_crop", False)) and bool(crop_size)
    edge = size.get("shortest_edge")
    fallback = int(edge or size.get("height") or vision_config.image_size)
    picture = crop_size if crop else size
    view = (int(picture.get("height") or fallback), int(picture.get("width") or fallback))
    sizes = tuple((int(h), int(w)) for h, w in pinpoints) if pinpoints else ()
    pad = bool(getattr(image_processor, "do_pad", False)) and not sizes
    if sizes:
        # anyres: the base view is the whole image stretched to a square, tiles have the tower's picture size
        return Preprocessing(view, int(vision_config.patch_size), None, False, False, sizes)
    return Preprocessing(view, int(vision_config.patch_size), None if edge is None else int(edge), crop, pad)


def _as_dict(size: Any) -> dict[str, Any]:
    """Processor sizes come as dicts or as transformers' SizeDict."""
    if size is None:
        return {}
    if isinstance(size, Mapping):
        return {name: value for name, value in size.items() if value is not None}
    names = ("height", "width", "shortest_edge", "longest_edge")
    return {name: getattr(size, name) for name in names if getattr(size, name, None) is not None}
