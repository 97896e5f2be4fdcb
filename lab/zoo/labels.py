"""What each patch of a training's picture shows: the targets of the tower's own training and of the projector's alignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lab.suite import bars
from lab.zoo.lessons import Picture, TrainingScene
from lab.zoo.settings import Training
from lmms_visual_heads.probe.layout import COLOUR_NAMES, DIGITS, IMAGE_SIZE, KIND_NAMES, Box

N_EMPTY = 0
"""Label of a patch that no thing is centred on."""
NAMES = KIND_NAMES + DIGITS
SUITE_NAMES = (*NAMES, "bar")


def names_of(training: Training) -> tuple[str, ...]:
    """Names that a patch of the training's pictures can have."""
    return SUITE_NAMES if training.suite else NAMES


@dataclass(frozen=True, slots=True)
class PatchLabels:
    """What each patch shows, int64 [N, P] each, patches row by row; [N, 5, P] for a base view and 2 x 2 tiles.

    `name`: 0 empty, else 1 + index into `SUITE_NAMES` of the thing whose box is centred on the patch (of a bar: that the patch's
    centre lies in); `colour`: index into `COLOUR_NAMES`, -1 where empty; `boxed`: 1 where that thing is the pointed one and its
    box is drawn; `quadrant`: that of the patch's own centre, -1 in tiles, which do not know where they lie.
    """

    name: Tensor
    colour: Tensor
    boxed: Tensor
    quadrant: Tensor


def training_labels(pictures: Sequence[Picture], training: Training) -> PatchLabels:
    """Labels of all views of a training's pictures."""
    side = training.image_size // training.patch_size
    base = patch_labels(pictures, side)
    if not training.anyres:
        return base
    fine = patch_labels(pictures, 2 * side)
    views = {
        field.name: torch.cat([getattr(base, field.name)[:, None], _tiles(getattr(fine, field.name), side)], dim=1)
        for field in fields(PatchLabels)
    }
    views["quadrant"][:, 1:] = -1
    return PatchLabels(**views)


def _tiles(grid: Tensor, side: int) -> Tensor:
    """[N, 4 * side * side] over the whole picture -> [N, 4, side * side], tile by tile."""
    return grid.unflatten(1, (2, side, 2, side)).permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def patch_labels(pictures: Sequence[Picture], n_side: int) -> PatchLabels:
    """Labels of an `n_side` x `n_side` patch grid over the drawn image."""
    shape = (len(pictures), n_side * n_side)
    name = torch.full(shape, N_EMPTY)
    colour = torch.full(shape, -1)
    boxed = torch.zeros(shape, dtype=torch.int64)
    for n, picture in enumerate(pictures):
        for what, ink, patches, pointed in _things(picture, n_side):
            name[n, patches] = 1 + SUITE_NAMES.index(what)
            colour[n, patches] = COLOUR_NAMES.index(ink)
            boxed[n, patches] = int(pointed)
    side = torch.arange(n_side)
    half = (2 * side + 1 > n_side).long()
    quadrant = (2 * half[:, None] + half[None, :]).flatten().repeat(len(pictures), 1)
    return PatchLabels(name, colour, boxed, quadrant)


def _things(picture: Picture, n_side: int) -> Iterator[tuple[str, str, list[int], bool]]:
    """Name, colour, patches and pointedness of everything in a picture."""
    if isinstance(picture, TrainingScene):
        for index, thing in enumerate(picture.scene.things):
            pointed = picture.with_box and index == picture.scene.pointed
            yield thing.name, thing.colour, [_centre_patch(thing.box, n_side)], pointed
    elif isinstance(picture, bars.Chart):
        for bar in picture.bars:
            yield "bar", bar.colour, _covered_patches(bar.box, n_side), False
    else:
        for digit in (picture.left, picture.right):
            yield str(digit.value), digit.colour, [_centre_patch(digit.box, n_side)], False


def _centre_patch(box: Box, n_side: int) -> int:
    x0, y0, x1, y1 = box
    column, row = ((low + high) * n_side // (2 * IMAGE_SIZE) for low, high in ((x0, x1), (y0, y1)))
    return row * n_side + column


def _covered_patches(box: Box, n_side: int) -> list[int]:
    """Patches whose centre lies in the box."""
    x0, y0, x1, y1 = (2 * n_side * limit for limit in box)
    centres = [(2 * place + 1) * IMAGE_SIZE for place in range(n_side)]
    rows = [row for row, centre in enumerate(centres) if y0 <= centre < y1]
    columns = [column for column, centre in enumerate(centres) if x0 <= centre < x1]
    return [row * n_side + column for row in rows for column in columns]
