"""Measures one small checkpoint completely and quickly: scores, answers, heads and causal scores, from one loading.

Gives what `lmms-eval --model visual_heads_llava` gives, about a hundred times faster: every picture is read once, and all questions
go on from there. Checkpoints of one training share the tower's features as long as the tower stays the same.
A measured checkpoint is a folder `parts/<model>/`; what is there is passed over. Shapes: N documents, L layers, H heads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.measure.answers import Judge, answer_logits, answers, certainty, over_prefixes
from lab.measure.content_grid import content_grid
from lab.measure.heads import HeadMeasures, PictureTokens, measure_heads, profile
from lab.measure.knockout import cut_kl
from lab.measure.pictures import Pictures, drawn
from lab.measure.small_llama import Past, SmallLanguageModel
from lab.measure.tasks import (
    N_OWN_PROMPTS,
    POOLS,
    PROBE_POOL,
    PromptReader,
    ZooTask,
    regions,
    zoo_tasks,
)
from lab.tables import schema
from lab.tables.zoo import PARTS, ZooTables, write_part
from lab.zoo import packing, tower
from lmms_visual_heads.checkpoints.loading import load_model
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.demo.manifest import FACTS_FILE
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.layout import IMAGE_SIZE

N_CUT = 64
"""Documents of each task on which heads are cut."""
PICTURES_READ, DOCUMENTS_ASKED = 256, 64
"""Pictures that are read together, and documents that are asked together: few enough to stay in the processor's cache."""
STAGES = (*POOLS, "corrupted")
"""What is measured of a checkpoint, in this order."""
SOURCE = "python -m lab measure"
PICTURES = "pictures"
"""Folder of resized pictures beside the parts; it may be removed when all is measured."""

Progress = Callable[[str], Any]
"""Called with each of `STAGES` when it is done."""


@dataclass(slots=True)
class _Record:
    """What is collected of one task under one condition; lists of batches, documents in the order of `numbers`."""

    numbers: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    swapped: list[Tensor] = field(default_factory=list)
    blanked: list[Tensor] = field(default_factory=list)
    heads: list[HeadMeasures] = field(default_factory=list)
    cuts: list[tuple[Tensor, dict[tuple[int, int], Tensor]]] = field(default_factory=list)

    def joined(self, name: str, n: int | None = None) -> Tensor:
        """One of the lists as a tensor in the order of the documents; the first `n` of them."""
        parts: list[Tensor] = getattr(self, name)
        numbers = torch.cat(self.numbers[: len(parts)])
        return torch.cat(parts)[numbers.argsort()][:n]


class TowerFeatures:
    """The tower's features of whole pools, kept as long as the tower's weights are the same."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder, self._limit = folder, limit
        self._tower = ""
        self._known: dict[tuple[str, bool], Tensor] = {}

    def pictures(self, model: VisualModel) -> Pictures:
        """The resized pictures of the checkpoint's image processor."""
        return Pictures(self._folder, model.processor.image_processor, self._limit)

    def pool(self, model: VisualModel, name: str, harder: bool) -> Tensor:
        """Features of every picture of a pool, as `scenes.zoo.tower.tower_features`."""
        digest = hashlib.blake2b(model.processor.image_processor.to_json_string().encode(), digest_size=16)
        for key, weight in sorted(model.model.model.vision_tower.state_dict().items()):
            digest.update(key.encode() + weight.contiguous().numpy().tobytes())
        if digest.hexdigest() != self._tower:
            self._tower, self._known = digest.hexdigest(), {}
        if (name, harder) not in self._known:
            images = self.pictures(model).pool(name, harder=harder)
            self._known[name, harder] = tower.tower_features(model.model, images, model.processor)
        return self._known[name, harder]


class CheckpointMeter:
    """Measures one checkpoint.

    Parameters
    ----------
    folder : Path
        In Hugging Face format.
    facts : mapping
        Its `training.json`: name, lineage, step, steps and what else `schema.ZOO_CHECKPOINT_COLUMNS` names.
    features : TowerFeatures
    reader : PromptReader
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], features: TowerFeatures, reader: PromptReader) -> None:
        self._facts = facts
        self._model = load_model(folder, device="cpu", dtype="float32")
        self._language = SmallLanguageModel(self._model.model)
        self._judge = Judge(self._model)
        self._features, self._reader = features, reader
        encoded = self._model.encode(zoo_tasks()[0].texts[0], [drawn(PROBE_POOL, 0)])
        grid = content_grid((IMAGE_SIZE, IMAGE_SIZE), self._model.preprocessing)
        self._tokens = PictureTokens(
            encoded.visual_positions,
            encoded.patch_positions,
            encoded.sink_positions,
            None if grid is None else torch.from_numpy(grid),
        )
        blank = self._features.pictures(self._model).blank()
        self._blank = self._read(tower.tower_features(self._model.model, blank, self._model.processor))

    @torch.inference_mode()
    def measure(self, progress: Progress = lambda _: None) -> ZooTables:
        """Everything that is measured of the checkpoint, as the tables of a zoo with one model."""
        clean = {task.name: _Record() for task in zoo_tasks()}
        for pool in POOLS:
            self._ask_pool(pool, clean, harder=False)
            progress(pool)
        harder: dict[str, _Record] = {}
        if self._facts.get("final", self._facts["step"] == self._facts["steps"]):
            harder = {task.name: _Record() for task in zoo_tasks() if not task.probe}
            for pool in POOLS:
                if pool != PROBE_POOL:
                    self._ask_pool(pool, harder, harder=True)
        progress(STAGES[-1])
        return self._tables(clean, harder)

    def _read(self, features: Tensor) -> Past:
        """Read pictures and what stands before them."""
        image = packing.image_embeddings(self._model.model, features)
        opening = self._language.embed(torch.tensor(self._opening)).expand(len(image), -1, -1)
        return self._language.read(torch.cat([opening, image], dim=1))

    @property
    def _opening(self) -> tuple[int, ...]:
        return self._reader.prompts(self._model, zoo_tasks()[0]).opening

    def _ask_pool(self, pool: str, records: dict[str, _Record], harder: bool) -> None:
        features = self._features.pool(self._model, pool, harder)
        asked = [task for task in zoo_tasks() if task.pool == pool]
        for first in range(0, len(features), PICTURES_READ):
            past = self._read(features[first : first + PICTURES_READ])
            for task in asked:
                for numbers, ids in self._batches(task, first, min(first + PICTURES_READ, len(features))):
                    self._ask(task, records[task.name], numbers, ids, past, first, harder)

    def _batches(self, task: ZooTask, first: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Documents `first` to `end` whose prompts are equally long, `DOCUMENTS_ASKED` at most: numbers and token ids."""
        prompts = self._reader.prompts(self._model, task)
        if prompts.opening != self._opening:
            raise VisualHeadsError(
                f"All prompts must begin alike up to the picture; those of {task.name} begin otherwise. "
                "Measure this checkpoint with lmms-eval --model visual_heads_llava."
            )
        for numbers, ids in prompts.groups:
            start, stop = np.searchsorted(numbers.numpy(), [first, end])
            yield from zip(
                numbers[start:stop].split(DOCUMENTS_ASKED), ids[start:stop].split(DOCUMENTS_ASKED), strict=True
            )

    def _ask(
        self, task: ZooTask, record: _Record, numbers: Tensor, ids: Tensor, past: Past, first: int, harder: bool
    ) -> None:
        """Ask one batch of documents, whose pictures number `first` and on are in `past`."""
        if not len(numbers):
            return
        own = first == 0
        at = numbers - first
        batch = past.of(slice(int(at[0]), int(at[-1]) + 1)) if int(at[-1] - at[0]) + 1 == len(at) else past.of(at)
        targets = [task.answers[number] for number in numbers.tolist()]
        given = answers(self._language, self._judge, batch, ids, targets, rows=own and not harder)
        record.numbers.append(numbers)
        record.correct.append(given.correct)
        record.logits.append(given.logits)
        if not own:
            return
        n_pictures = past.layers[0][0].shape[0]
        record.swapped.append(answer_logits(self._language, past.of((at + 1) % n_pictures), given))
        blanked = self._language.ask_each(self._blank, given.ids)
        record.blanked.append(blanked[torch.arange(len(at)), given.index])
        if given.rows is None:
            return
        region, there = regions(task, self._model.preprocessing, min(N_OWN_PROMPTS, n_pictures))
        record.heads.append(measure_heads(given.rows, self._tokens, region[numbers], there[numbers]))
        n_cut = int((numbers < N_CUT).sum())
        if n_cut:
            cut = cut_kl(self._language, batch.of(slice(n_cut)), given, slice(n_cut), self._tokens.visual)
            record.cuts.append((numbers[:n_cut], cut))

    def _tables(self, clean: dict[str, _Record], harder: dict[str, _Record]) -> ZooTables:
        name = str(self._facts["name"])
        temperature = self._facts.get("hidden_temperature")
        items, replies, told, profiles, causal = [], [], [], [], []
        scores: dict[str, list[dict[str, Any]]] = {"clean": [], "corrupted": []}
        benchmarks = [
            {
                "benchmark": task.name,
                "generator": task.generator,
                "counting": task.counting,
                "chance": task.chance,
                "n_items": len(clean[task.name].joined("correct")),
            }
            for task in zoo_tasks()
            if not task.probe
        ]
        for task in zoo_tasks():
            cases = [("clean", clean[task.name], 1.0)]
            cases += [("temperature", clean[task.name], float(temperature))] if temperature else []
            cases += [("corrupted", harder[task.name], 1.0)] if task.name in harder else []
            for condition, record, divisor in cases:
                logits, correct = record.joined("logits") / divisor, record.joined("correct")
                confidence, entropy = certainty(logits)
                row = {"model": name, "benchmark": task.name, "condition": condition}
                if not task.probe:
                    items.append(
                        row | {"correct": correct.numpy(), "confidence": confidence.numpy(), "entropy": entropy.numpy()}
                    )
                    if condition in scores:  # another temperature changes neither answers nor scores
                        replies.append(row | {"answer": logits.argmax(-1).short().numpy()})
                        scores[condition].append(_score(name, task, correct))
                others = (record.joined("swapped") / divisor, record.joined("blanked") / divisor)
                n = len(others[0])
                told.append(
                    {"model": name, "task": task.name, "condition": condition, "n_prompts": n}
                    | {"accuracy": float(correct[:n].double().mean())}
                    | over_prefixes(logits[:n], *others)
                )
            record = clean[task.name]
            measures = HeadMeasures.join(record.heads, torch.cat(record.numbers[: len(record.heads)]))
            profiles.append(profile(measures).assign(model=name, task=task.name, condition="clean"))
            causal += [{"model": name, "task": task.name} | row for row in _causal_rows(record)]
        return ZooTables(
            checkpoints=pd.DataFrame([checkpoint_row(self._facts)]),
            benchmarks=pd.DataFrame(benchmarks),
            scores=pd.DataFrame(scores["clean"]),
            scores_corrupted=pd.DataFrame(scores["corrupted"]),
            items=pd.DataFrame(items),
            replies=pd.DataFrame(replies),
            answers=pd.DataFrame(told),
            profiles=pd.concat(profiles, ignore_index=True),
            causal=pd.DataFrame(causal),
        )


def _score(name: str, task: ZooTask, correct: Tensor) -> dict[str, Any]:
    return {
        "model": name,
        "benchmark": task.name,
        "metric": "exact_match",
        "scale": 1.0,
        "score": float(correct.double().mean()),
        "n_items": len(correct),
        "source": SOURCE,
    }


def _causal_rows(record: _Record) -> list[dict[str, Any]]:
    """One row per cut: the mean KL over all documents, over even ones, over odd ones."""
    numbers = torch.cat([numbers for numbers, _ in record.cuts])
    rows = []
    for cut in record.cuts[0][1]:
        kl = torch.cat([found[cut] for _, found in record.cuts])
        means = {f"kl_half{half}": float(kl[numbers % 2 == half].nanmean()) for half in (0, 1)}
        rows.append(
            {"layer": cut[0], "head": cut[1], "kl": float(kl.nanmean()), "n_documents": int(kl.isfinite().sum())}
            | means
        )
    return rows


def checkpoint_row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `schema.ZOO_CHECKPOINT_COLUMNS` of a checkpoint, from its `training.json`; what is not known is missing."""
    known = {column.name: facts.get(column.name) for column in schema.ZOO_CHECKPOINT_COLUMNS}
    final = facts.get("final", facts["step"] == facts["steps"])
    return known | {"model": facts["name"], "final": final, "stratum": facts.get("stratum", "ordinary")}


def read_facts(folder: Path) -> dict[str, Any]:
    """What a training wrote beside a checkpoint.

    Raises
    ------
    VisualHeadsError
        When there is nothing, or no JSON.
    """
    path = folder / FACTS_FILE
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise VisualHeadsError(
            f"A checkpoint of a zoo needs {FACTS_FILE}; {path} cannot be read ({error}). Train it with: python -m lab train."
        ) from error


def is_trained(folder: Path) -> bool:
    """Whether the training in `folder` has come to its end."""
    return (folder / "finished.json").exists()


def is_measured(name: str, out: Path) -> bool:
    """Whether the checkpoint `name` was measured into `out`."""
    return (out / PARTS / name).is_dir()


def measure_checkpoint(
    folder: Path,
    facts: Mapping[str, Any],
    out: Path,
    *,
    features: TowerFeatures | None = None,
    reader: PromptReader | None = None,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Measure one checkpoint into `out/parts/<model>/`; passed over where that is there.

    Parameters
    ----------
    folder : Path
        The checkpoint in Hugging Face format.
    facts : mapping
        Its `training.json`.
    out : Path
        Folder of the zoo's tables. Resized pictures are kept in `out/pictures` and may be removed afterwards.
    features, reader
        Shared by checkpoints of one training.
    limit : int or None
        Documents of each task; None: all.
    progress : callable

    Returns
    -------
    Path
        The part's folder: complete, or not there.
    """
    name = str(facts["name"])
    target = out / PARTS / name
    if target.is_dir():
        return target
    features = TowerFeatures(out / PICTURES, limit) if features is None else features
    tables = CheckpointMeter(folder, facts, features, PromptReader() if reader is None else reader).measure(progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out, prefix=f"{name}-"))
    try:
        os.replace(write_part(tables, scratch), target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def measure_lineage(
    folders: Sequence[Path],
    out: Path,
    *,
    reader: PromptReader | None = None,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> list[Path]:
    """Measure checkpoints of one training, one after the other; the features of an equal tower are taken over."""
    features, reader = TowerFeatures(out / PICTURES, limit), PromptReader() if reader is None else reader
    return [
        measure_checkpoint(folder, read_facts(folder), out, features=features, reader=reader, progress=progress)
        for folder in folders
    ]
