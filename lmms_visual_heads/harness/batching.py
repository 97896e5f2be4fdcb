"""Which requests are answered together: families of requests about the same images, longest first.

No model and no image is held here: an image is looked at once, for its digest, and let go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image

from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.errors import VisualHeadsError

MOST_IN_FAMILY = 256
"""Requests about one image that are prepared together; a longer family is cut into several."""


def images_digest(images: Sequence[Image.Image]) -> bytes | None:
    """16 bytes that equal images share: modes, sizes and every pixel; None without an image."""
    if not images:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.mode}{image.size}".encode())
        digest.update(image.tobytes())
    return digest.digest()


def families(digests: Sequence[bytes | None], lengths: Sequence[int], most: int = MOST_IN_FAMILY) -> list[list[int]]:
    """Places of requests, those about the same images together, the family with the longest request first.

    Parameters
    ----------
    digests : sequence of bytes or None
        Per request, `images_digest`; a request without one stands alone.
    lengths : sequence of int
        Per request, some measure of its prompt's length.
    most : int
        Largest family.

    Returns
    -------
    list of list of int
        Every place once. Within a family the order is that of the requests.
    """
    found: dict[object, list[int]] = {}
    for place, digest in enumerate(digests):
        found.setdefault(place if digest is None else digest, []).append(place)
    cut = [family[start : start + most] for family in found.values() for start in range(0, len(family), most)]
    return sorted(cut, key=lambda family: (-max(lengths[place] for place in family), family[0]))


def digests_of(opened: Iterable[Callable[[], Sequence[Image.Image]]]) -> list[bytes | None]:
    """Digest per request; `opened` gives functions that open a request's images.

    A request whose images cannot be opened has none: it fails later, in its turn, when others are measured.
    """
    found: list[bytes | None] = []
    for open_images in opened:
        try:
            images = open_images()
            found.append(images_digest(images) if all(isinstance(one, Image.Image) for one in images) else None)
        except Exception:  # noqa: BLE001  a task's own code may raise anything; the same call is made again in its turn
            found.append(None)
    return found


def does_not_fit(task: str, doc_id: int) -> VisualHeadsError:
    """What ends a run whose document does not fit into memory alone."""
    return VisualHeadsError(
        f"Every document must fit into memory alone; document {doc_id} of task {task} does not. Free the device, or take a "
        "smaller dtype."
    )


@contextmanager
def if_it_fits(task: str | None = None, doc_id: int = 0) -> Iterator[None]:
    """Go on after running out of memory inside; with a document's name, end the run in its sentence instead.

    Raises
    ------
    VisualHeadsError
        When `task` is given and memory did not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        if task is not None:
            raise does_not_fit(task, doc_id) from None
