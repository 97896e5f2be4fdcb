"""One document of a run, as far as tables and journal need it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.run_facts import OWN_TASKS

ASKED_ABOUT = "suite_"
"""Tasks in whose documents `boxes` are those of the things that are asked about: their region, where no box is pointed at."""


UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, is damaged, or is larger than it decodes (`Image.MAX_IMAGE_PIXELS`)."""


class UnreadableImage(VisualHeadsError):
    """An image that cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a run, as far as the tables need it."""

    task: str
    doc_id: int
    item_id: str | None
    images: list[Image.Image]
    boxes: tuple[tuple[float, float, float, float], ...]
    digest: bytes
    wanted: bool
    padding_only: bool
    controlled: bool = False

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def captured(self) -> bool:
        """Whether the heads are read: the task is captured and there is exactly one image."""
        return self.wanted and len(self.images) == 1 and not self.padding_only

    @classmethod
    def of(
        cls,
        doc: Mapping[str, Any],
        *,
        task: str,
        doc_id: int,
        images: list[Image.Image],
        context: str,
        wanted: bool,
        padding_only: bool,
        controlled: bool = False,
    ) -> Document:
        """Collect what the tables need of an lmms-eval document; the digest covers the prompt and every pixel."""
        digest = hashlib.blake2b(context.encode(), digest_size=16)
        for image in images:
            digest.update(f"{image.mode}{image.size}".encode())
            digest.update(image.tobytes())
        item = doc.get("item_id")
        where = f"document {doc_id} of task {task}"
        box = doc.get("pointed_box")
        # Other tasks may mean something else by "boxes".
        asked = doc.get("boxes") or () if task.startswith(ASKED_ABOUT) else ()
        return cls(
            task=task,
            doc_id=int(doc_id),
            item_id=None if item is None else str(item),
            images=images,
            boxes=tuple(_four_numbers(one, where) for one in (asked if box is None else [box])),
            digest=digest.digest(),
            wanted=wanted,
            padding_only=padding_only,
            controlled=controlled and len(images) == 1 and not padding_only,
        )


def _four_numbers(box: Any, where: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(number) for number in box)
    except (TypeError, ValueError):
        raise VisualHeadsError(
            f"pointed_box must be four numbers x0, y0, x1, y1 in pixels; {where} has {box!r}. Mend or remove it."
        ) from None
    return x0, y0, x1, y1


def open_images(
    dataset: Any, doc_id: int, doc_to_visual: Callable[[Any], Any], task: str, model_id: str
) -> tuple[Any, list[Image.Image]]:
    """The document at `doc_id` of a task's data, and its images, decoded.

    Raises
    ------
    UnreadableImage
        When one cannot be decoded.
    VisualHeadsError
        When the document has anything but images.
    """
    try:
        doc = dataset[doc_id]  # a column of images is decoded here
        images = list(doc_to_visual(doc) or [])
        for image in images:
            if isinstance(image, Image.Image):
                image.load()  # one that a task opened without a look at its pixels
    except UNREADABLE as error:
        raise UnreadableImage(
            f"Every image must be readable; that of document {doc_id} of task {task} is not ({error}). "
            "Repair or remove it and run again"
            + (", or leave it out with on_error=skip." if task.startswith(OWN_TASKS) else ".")
        ) from error
    other = [type(image).__name__ for image in images if not isinstance(image, Image.Image)]
    if other:
        raise VisualHeadsError(
            f"{model_id} answers questions about images; document {doc_id} of task {task} has a {other[0]}. "
            "Leave video and audio tasks out of this run."
        )
    return doc, images
