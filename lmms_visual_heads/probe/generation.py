"""Random scenes for each purpose: the probe, every benchmark, and the training of the small checkpoints.

One function per purpose takes a `RandomStream` and returns a scene (with what the question is about). The training uses
the same functions on streams with other names, so its scenes are new but of the same world.
"""

from __future__ import annotations

from lmms_visual_heads.probe.layout import (
    COLOUR_NAMES,
    DIGITS,
    KIND_NAMES,
    QUADRANTS,
    SUPERCATEGORIES,
    Scene,
    arrange,
    kind_of,
)
from lmms_visual_heads.probe.random_stream import RandomStream

COUNT_WEIGHTS = (24, 24, 22, 16, 14)
"""How often the pointed kind appears 1, 2, 3, 4, 5 times."""
LARGEST_COLOUR_COUNT = 5
QUADRANT_CELLS = ((0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15))
assert len(QUADRANT_CELLS) == len(QUADRANTS)


def coloured(stream: RandomStream, names: list[str]) -> list[tuple[str, str]]:
    """Colours for `names`: in half of the scenes one colour per kind, in the others one per thing."""
    if stream.percent(50):
        palette = {name: stream.choice(COLOUR_NAMES) for name in sorted(set(names))}
        return [(name, palette[name]) for name in names]
    return [(name, stream.choice(COLOUR_NAMES)) for name in names]


def probe_scene(stream: RandomStream) -> Scene:
    """A scene that points at one thing.

    The pointed kind is most often alone in its supercategory, and the most numerous kind of the scene, so that a question
    without the pointer can be answered better than by guessing; the supercategory's word then says more than "these".
    """
    supercategory = stream.choice(SUPERCATEGORIES)
    pair = stream.sample([name for name in KIND_NAMES if kind_of(name).supercategory == supercategory], 2)
    others = stream.sample([name for name in KIND_NAMES if kind_of(name).supercategory != supercategory], 2)
    count = 1 + stream.weighted(COUNT_WEIGHTS)
    names = [pair[0]] * count
    for other in others[: 1 + stream.percent(40)]:
        # Two in three distractors are fewer than the pointed kind.
        names += [other] * stream.between(1, 5 if stream.percent(33) else max(1, count - 1))
    if count > 1 and stream.percent(30):
        names += [pair[1]] * stream.between(1, max(1, count - 1))
    return arrange(stream, coloured(stream, names[:14]), pointed=stream.below(count))


def crowd_scene(stream: RandomStream) -> Scene:
    """Two to four kinds, one to three things of each: the scenes of the existence benchmark."""
    names = []
    for name in stream.sample(KIND_NAMES, stream.between(2, 4)):
        names += [name] * stream.between(1, 3)
    return arrange(stream, coloured(stream, names))


def single_scene(stream: RandomStream, quadrant: int | None = None) -> Scene:
    """One to five things, all of different kinds: the scenes of the colour and position benchmarks.

    The first thing is asked about; with `quadrant` it stands there.
    """
    names = stream.sample(KIND_NAMES, stream.between(1, 5))
    cells = None if quadrant is None else QUADRANT_CELLS[quadrant]
    return arrange(stream, [(name, stream.choice(COLOUR_NAMES)) for name in names], first_cells=cells)


def colour_count_scene(stream: RandomStream, colour: str, count: int) -> Scene:
    """`count` things in `colour` and up to five in other colours; at least one thing in all."""
    other_colours = [name for name in COLOUR_NAMES if name != colour]
    kinds = stream.sample(KIND_NAMES, stream.between(1, 4))
    labels = [(stream.choice(kinds), colour) for _ in range(count)]
    labels += [(stream.choice(kinds), stream.choice(other_colours)) for _ in range(stream.between(count == 0, 5))]
    return arrange(stream, labels)


def digit_scene(stream: RandomStream, digit: str) -> Scene:
    """One digit and up to five things."""
    assert digit in DIGITS
    names = [digit] + [stream.choice(KIND_NAMES) for _ in range(stream.between(0, 5))]
    return arrange(stream, [(name, stream.choice(COLOUR_NAMES)) for name in names])
