"""Families: requests about the same images, the family with the longest request first.

No model and no image is held here: an image is looked at once, for its digest, and let go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

MOST_IN_FAMILY = 256
"""Requests about one image that are prepared together; a longer family becomes several."""


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
    whole: dict[object, list[int]] = {}
    for place, digest in enumerate(digests):
        whole.setdefault(place if digest is None else digest, []).append(place)
    parts = [family[start : start + most] for family in whole.values() for start in range(0, len(family), most)]
    return sorted(parts, key=lambda family: (-max(lengths[place] for place in family), family[0]))


def digests_of(opened: Iterable[Callable[[], Sequence[Image.Image]]]) -> list[bytes | None]:
    """Digest per request; `opened` gives functions that open a request's images.

    A request whose images cannot be opened has none: it fails later, in its turn, when others are measured.
    """
    digests: list[bytes | None] = []
    for open_images in opened:
        try:
            images = open_images()
            digests.append(images_digest(images) if all(isinstance(one, Image.Image) for one in images) else None)
        except Exception:  # noqa: BLE001  a task's own code may raise anything; the same call is made again in its turn
            digests.append(None)
    return digests
