"""What a small checkpoint is asked: the suite's benchmarks and the probe, as texts, answers and regions; and as token ids.

Questions of one pool are about the same pictures: document number i asks about picture number i. Shapes: N documents, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lab import suite
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.preprocessing import Preprocessing
from lmms_visual_heads.geometry.regions import patch_regions
from lmms_visual_heads.probe import documents
from lmms_visual_heads.probe.layout import IMAGE_SIZE
from lmms_visual_heads.probe.questions import PROBE_TYPES, full_prompt

PROBE_POOL = "probe"
POOLS = (*suite.POOLS, PROBE_POOL)
N_OWN_PROMPTS = 256
"""Documents of each benchmark that serve as its own prompts; the probe has as many."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ZooTask:
    """One benchmark or probe task.

    Attributes
    ----------
    name, pool : str
    generator : str
        Kind of pictures.
    counting : bool
    chance : float
        Share of the most frequent answer, 0..1.
    probe : bool
    texts, answers : tuple of str
        One prompt and one answer per document.
    boxes : tuple of tuple of Box
        What each is about, pixels of the drawn picture; none where that is not in the picture.
    """

    name: str
    pool: str
    generator: str
    counting: bool
    chance: float
    probe: bool
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]


@cache
def zoo_tasks() -> tuple[ZooTask, ...]:
    """Every benchmark of the suite, then the probe's three tasks."""
    tasks = []
    for one in suite.BENCHMARKS:
        asked = suite.documents(one.name)
        boxes = tuple(tuple(map(tuple, d["boxes"])) for d in asked)
        tasks.append(
            ZooTask(one.name, one.pool, one.generator, one.counting, one.chance, False, *_read(asked), boxes=boxes)
        )
    for kind in PROBE_TYPES:
        asked = documents.documents(kind)
        chance = documents.benchmark_facts(kind).chance
        pointed = tuple((tuple(d["pointed_box"]),) for d in asked)
        tasks.append(ZooTask(f"vhead_{kind}", PROBE_POOL, "scenes", True, chance, True, *_read(asked), boxes=pointed))
    return tuple(tasks)


def _read(asked: Sequence[documents.Document]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    texts = tuple(full_prompt(d["question"], d.get("choices")) for d in asked)
    return texts, tuple(d["answer"] for d in asked)


@cache
def regions(task: ZooTask, preprocessing: Preprocessing, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Regions of the first `n` documents: bool [n, patches], and which of them have one, bool [n]."""
    masks: list[np.ndarray | None] = []
    for boxes in task.boxes[:n]:
        found = patch_regions((IMAGE_SIZE, IMAGE_SIZE), boxes, preprocessing) if boxes else None
        masks.append(None if found is None else np.any(found, axis=0))
    there = np.array([mask is not None for mask in masks])
    width = next((len(mask) for mask in masks if mask is not None), 0)
    return np.stack([np.zeros(width, bool) if mask is None else mask for mask in masks]), there


@dataclass(frozen=True, slots=True)
class Prompts:
    """A task's prompts as token ids, without the picture.

    Attributes
    ----------
    opening : tuple of int
        Tokens before the picture.
    groups : tuple of (Tensor [n], Tensor [n, T])
        Documents whose tokens behind the picture are equally many, ascending: their numbers and those tokens.
    """

    opening: tuple[int, ...]
    groups: tuple[tuple[Tensor, Tensor], ...]


class PromptReader:
    """Prompts in the words of a checkpoint; what was read for one checkpoint is used for all with its tokenizer and template."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Prompts] = {}

    def prompts(self, model: VisualModel, task: ZooTask) -> Prompts:
        """All prompts of `task`.

        Raises
        ------
        VisualHeadsError
            When they do not begin alike.
        """
        template = str(getattr(model.processor, "chat_template", None))
        key = (model.tokenizer.backend_tokenizer.to_str() + template, task.name)
        if key not in self._known:
            self._known[key] = self._read(model, task)
        return self._known[key]

    @staticmethod
    def _read(model: VisualModel, task: ZooTask) -> Prompts:
        behind: dict[str, tuple[int, ...]] = {}
        openings = set()
        for text in dict.fromkeys(task.texts):
            ids = model.encoder.text_ids(model.prompt(text, 1))
            place = ids.index(model.image_token_id)
            openings.add(tuple(ids[:place]))
            behind[text] = tuple(ids[place + 1 :])
        if len(openings) != 1:
            raise VisualHeadsError(
                f"Prompts of a task must begin alike up to the picture; those of {task.name} begin in {len(openings)} ways. "
                "Measure this checkpoint with lmms-eval --model visual_heads_llava."
            )
        lengths: dict[int, list[int]] = {}
        for number, text in enumerate(task.texts):
            lengths.setdefault(len(behind[text]), []).append(number)
        groups = tuple(
            (torch.tensor(numbers), torch.tensor([behind[task.texts[number]] for number in numbers]))
            for _, numbers in sorted(lengths.items())
        )
        return Prompts(openings.pop(), groups)
