"""The settings of the small checkpoints' trainings, read from one YAML file.

The file has `defaults`, which every training starts from, and `trainings`, a list in which each entry names itself and
what it changes. A training is one lineage: own seed, own vision tower, own scenes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lmms_visual_heads.errors import VisualHeadsError

TURN_TYPES = (
    "existence",
    "color",
    "color_word",
    "position",
    "color_count",
    "digit",
    "obj",
    "general",
    "super",
    "name",
    "tallest",
    "shortest",
    "taller",
    "bar_count",
    "written_left",
    "written_larger",
    "written_order",
)
"""What a training can ask: the five benchmarks, the three probe types, two that help to learn the words (`color_word`, "What
color is the cat?", and `name`, "What is this?" beside a box, else "What thing is red?"), and those about charts and handwriting."""

GENERATORS = ("scenes", "bars", "written")
"""Kinds of pictures that a training can see: drawn scenes, bar charts, real handwriting (`scenes.suite`)."""


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that decides how one lineage comes out.

    Sizes are in units (hidden), layers, heads and pixels; budgets in optimiser steps, so that they reproduce.
    `projector_share` multiplies the projector's learning rate: at 1 it unlearns what it was aligned to before the language
    model needs it. `box_share` is the percentage of the pointing scenes with the box drawn. `snapshots` are the steps at
    which a checkpoint is kept; the last step is always kept. `shipped` are those of the kept steps whose checkpoints come
    with the package.

    `generators` are the percentages of the pictures of each kind; with more than drawn scenes the vocabulary has the words of the
    suite. `anyres` gives every picture a base view and 2 x 2 tiles (LLaVA-NeXT). `tower_share` multiplies the tower's learning rate
    while the language model learns; 0 freezes it. `noisy_answers` is the percentage of the answers that are replaced by
    a random one of their type. `blind` shows every question another picture.
    """

    name: str
    seed: int
    image_size: int = 48
    patch_size: int = 12
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    key_value_heads: int | None = None
    feed_forward: int = 3
    tower_hidden: int = 64
    tower_layers: int = 2
    tower_heads: int = 4
    tower_steps: int = 600
    tower_batch: int = 48
    tower_learning_rate: float = 2e-3
    alignment_steps: int = 400
    alignment_learning_rate: float = 1e-2
    steps: int = 8000
    batch: int = 16
    turns: int = 6
    learning_rate: float = 2e-3
    projector_share: float = 0.1
    weight_decay: float = 0.05
    warmup: int = 50
    scenes: int = 8000
    box_share: int = 50
    mixture: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TURN_TYPES, 1.0))
    generators: dict[str, int] = field(default_factory=lambda: {"scenes": 100})
    anyres: bool = False
    tower_share: float = 0.0
    label_smoothing: float = 0.0
    noisy_answers: int = 0
    blind: bool = False
    hidden_temperature: float = 1.0
    snapshots: tuple[int, ...] = ()
    shipped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise VisualHeadsError(
                f"A training needs an image size that its patch size divides; {self.name!r} has {self.image_size} and "
                f"{self.patch_size}. Change one of them."
            )
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise VisualHeadsError(
                f"A training needs heads of an even width; {self.name!r} splits {self.hidden} units among {self.heads} "
                "heads. Change one of them."
            )
        if self.heads % (self.key_value_heads or self.heads):
            raise VisualHeadsError(
                f"A training needs query heads that its key heads divide; {self.name!r} has {self.heads} and "
                f"{self.key_value_heads}. Change one of them."
            )
        if not self.generators or set(self.generators) - set(GENERATORS) or sum(self.generators.values()) != 100:
            raise VisualHeadsError(
                f"Generators are percentages of {', '.join(GENERATORS)} that sum to 100; {self.name!r} has {self.generators}. "
                "Correct them."
            )
        unknown = sorted(set(self.mixture) - set(TURN_TYPES))
        if unknown:
            raise VisualHeadsError(
                f"A mixture may name {', '.join(TURN_TYPES)}; {self.name!r} names {', '.join(unknown)}. Remove the others."
            )
        if any(not 0 < step <= self.steps for step in self.snapshots):
            raise VisualHeadsError(
                f"Snapshots need steps from 1 to {self.steps}; {self.name!r} has {list(self.snapshots)}. Change them."
            )
        if not set(self.shipped) <= set(self.kept_steps):
            raise VisualHeadsError(
                f"Only kept steps can be shipped; {self.name!r} keeps {list(self.kept_steps)} and ships {list(self.shipped)}. "
                "Change one of them."
            )

    @property
    def n_visual_tokens(self) -> int:
        """Image embeddings per image; newline embeddings of an anyres picture among them."""
        side = self.image_size // self.patch_size
        return side**2 + 2 * side * (2 * side + 1) if self.anyres else side**2

    @property
    def suite(self) -> bool:
        """Whether the vocabulary has the words of the suite."""
        return set(self.generators) != {"scenes"}

    @property
    def stratum(self) -> str:
        """What was done to the training on purpose: "broken", "noisy", "smoothed" or, nothing, "ordinary"."""
        if self.blind or self.noisy_answers >= 100 or self.steps < 10 or not self.tower_steps:
            return "broken"
        return "noisy" if self.noisy_answers else "smoothed" if self.label_smoothing else "ordinary"

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Steps at which a checkpoint is kept, in order; the last one is the end of the training."""
        return tuple(sorted({*self.snapshots, self.steps}))

    def checkpoint_name(self, step: int) -> str:
        """Name of the checkpoint after `step` steps."""
        return f"{self.name}-s{step}"

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return asdict(self) | {"snapshots": list(self.snapshots), "shipped": list(self.shipped)}


def default_settings_path() -> Path:
    """The settings file inside the package for the checkpoints that come with it."""
    return _package_file("zoo.yaml")


def proof_settings_path() -> Path:
    """The settings file inside the package for the zoo that predictions are judged on."""
    return _package_file("proof.yaml")


def _package_file(name: str) -> Path:
    return Path(str(resources.files("lab.zoo") / name))


def read_settings(path: Path | None = None) -> list[Training]:
    """The trainings of a settings file (default: the one in the package), in its order.

    Raises
    ------
    VisualHeadsError
        If the file is missing or no YAML, if a key is unknown, or if two trainings share a name or a seed.
    """
    path = default_settings_path() if path is None else path
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise VisualHeadsError(f"The zoo needs a settings file; {path} cannot be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise VisualHeadsError(f"The zoo needs a YAML file; {path} is none ({error}). Correct it.") from error
    if isinstance(content, dict) and "draw" in content:
        from lab.zoo.design import drawn_entries

        content = drawn_entries(content)
    if not isinstance(content, dict) or not isinstance(content.get("trainings"), list):
        raise VisualHeadsError(f"A settings file needs a list `trainings`; {path} has none. Add it.")
    known = {f.name for f in fields(Training)}
    trainings: list[Training] = []
    for entry in content["trainings"]:
        values = (content.get("defaults") or {}) | entry
        unknown = sorted(set(values) - known)
        if unknown:
            raise VisualHeadsError(
                f"A training knows the settings {', '.join(sorted(known))}; {path} has {', '.join(unknown)}. Remove them."
            )
        for steps in ("snapshots", "shipped"):
            values[steps] = tuple(values.get(steps, ()))
        trainings.append(Training(**values))
    for what in ("name", "seed"):
        seen = [getattr(training, what) for training in trainings]
        twice = sorted({str(value) for value in seen if seen.count(value) > 1})
        if twice:
            raise VisualHeadsError(
                f"Every training needs its own {what}; {path} repeats {', '.join(twice)}. Change it."
            )
    return trainings
