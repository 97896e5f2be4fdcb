"""One training from the first pixel to the kept checkpoints: resumable, deterministic in its settings.

`run_training` works in the folder `<work>/<name>`: `tower.safetensors`, `state.safetensors` (to go on from), `history.jsonl`,
and a folder per kept checkpoint. A finished training has `finished.json`. Losses are in nats per answer word.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaProcessor

from lab.zoo import keeping, lessons, packing, tower
from lab.zoo.labels import PatchLabels, training_labels
from lab.zoo.model import SmallLlava, build_model
from lab.zoo.settings import TURN_TYPES, Training
from lab.zoo.vocabulary import build_processor

HISTORY_EVERY = 250
"""Steps between two lines of the history; a training loss is the mean over as many steps."""
WORD_WEIGHTS = (0.1, 1.0, 0.1)
"""Weight of the loss on the blank, on the answer word and on the end token."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """A training's whole data: resized images uint8 [N, 3, size, size] (with tiles [N, 5, ...]), patch labels, encoded turns."""

    images: Tensor
    labels: PatchLabels
    turns: lessons.EncodedTurns


def prepare_lessons(training: Training, processor: LlavaProcessor, device: str = "cpu") -> Lessons:
    """Draw, resize, label and encode the scenes of a training."""
    images, turns, pictures = lessons.encode_pictures(training, processor)
    labels = training_labels(pictures, training)
    return Lessons(images.to(device), _to(labels, device), _to(turns, device))


def _to(tensors: Any, device: str) -> Any:
    """A dataclass of tensors on another device."""
    return replace(tensors, **{part.name: getattr(tensors, part.name).to(device) for part in fields(tensors)})


def batch_rows(training: Training, step: int) -> Tensor:
    """Rows of the scenes that step number `step` learns from: every scene once per epoch, in the epoch's own order."""
    epoch, place = divmod(step, training.scenes // training.batch)
    generator = torch.Generator().manual_seed((training.seed << 20) + epoch)
    order = torch.randperm(training.scenes, generator=generator)
    return order[place * training.batch : (place + 1) * training.batch]


class Learner:
    """The language model's stage: takes steps, and remembers how well the last ones went.

    Attributes
    ----------
    step : int
        Steps done.
    recent : deque of float
        Loss of the last `HISTORY_EVERY` steps.
    """

    def __init__(self, training: Training, model: SmallLlava, data: Lessons, processor: LlavaProcessor) -> None:
        self._training, self._model, self._turns, self._processor = training, model, data.turns, processor
        self._images = data.images
        self._features = tower.tower_features(model, data.images, processor)
        sight = list(model.model.vision_tower.parameters())
        projector = list(model.model.multi_modal_projector.parameters())
        apart = {id(p) for p in (*sight, *projector)}
        rest = [p for p in model.parameters() if id(p) not in apart]
        self._parameters = [*rest, *projector]
        groups = [{"params": rest, "share": 1.0}, {"params": projector, "share": training.projector_share}]
        if training.tower_share:
            self._parameters += sight
            groups.append({"params": sight, "share": training.tower_share})
        else:
            model.model.vision_tower.requires_grad_(False)
        self._optimiser = torch.optim.AdamW(groups, weight_decay=training.weight_decay, betas=(0.9, 0.98))
        self._weights = torch.tensor(WORD_WEIGHTS, device=model.device)
        self._hits = torch.zeros(2, len(TURN_TYPES), device=model.device)
        self.step = 0
        self.recent: deque[float] = deque(maxlen=HISTORY_EVERY)

    def start(self, state: Path, labels: PatchLabels, progress: tower.Progress) -> None:
        """Go on from `state`, or align the projector and begin."""
        if state.exists():
            self.step, recent = keeping.load_state(state, self._model, self._optimiser)
            self.recent.extend(recent.tolist())
        else:
            tower.align_projector(self._training, self._model, self._features, labels, self._processor, progress)
        self._model.train()

    def save(self, state: Path) -> None:
        """Write the state that `start` goes on from."""
        recent = torch.tensor(list(self.recent), dtype=torch.float64)
        keeping.save_state(state, self._model, self._optimiser, self.step, recent)

    def take_step(self) -> float:
        """Learn from one batch; return its loss on the answer words."""
        training = self._training
        for group in self._optimiser.param_groups:
            factor = tower.cosine(self.step, training.steps, training.warmup)
            group["lr"] = group["share"] * training.learning_rate * factor
        rows = batch_rows(training, self.step).to(self._model.device)
        logits = packing.answer_logits(self._model, self._seen(rows), self._turns, rows, self._processor)
        targets = packing.answer_targets(self._turns, rows, self._processor)
        losses = F.cross_entropy(
            logits.flatten(0, 2), targets.flatten(), reduction="none", label_smoothing=training.label_smoothing
        ).view_as(targets)
        self._optimiser.zero_grad(set_to_none=True)
        (losses * self._weights).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self.step += 1
        self.recent.append(losses[..., 1].detach().mean().item())
        right = (logits.detach()[..., 1, :].argmax(-1) == targets[..., 1]).flatten().float()
        kinds = self._turns.kind[rows].flatten()
        self._hits.index_add_(1, kinds, torch.stack([right, torch.ones_like(right)]))
        return self.recent[-1]

    def _seen(self, rows: Tensor) -> Tensor:
        """The tower's features of the pictures `rows`; of others where the training is blind."""
        if self._training.blind:
            rows = (rows + 1) % len(self._images)
        if not self._training.tower_share:
            return self._features[rows]
        return tower.seen(self._model, self._images[rows], self._processor)

    @property
    def loss(self) -> float:
        """Mean loss of the last steps."""
        return sum(self.recent) / len(self.recent)

    def accuracy(self) -> dict[str, float]:
        """Share of right answers per type of turn since the last call, 0..1; types that were not asked are left out."""
        right, asked = self._hits.tolist()
        self._hits.zero_()
        return {kind: round(r / n, 4) for kind, r, n in zip(TURN_TYPES, right, asked, strict=True) if n}


def _put_tower(
    training: Training,
    model: SmallLlava,
    data: Lessons,
    processor: LlavaProcessor,
    path: Path,
    progress: tower.Progress,
) -> None:
    """Put a trained tower into `model`, from `path` where it was trained before."""
    if not path.exists():
        trained, accuracy = tower.train_tower(training, data.images, data.labels, processor, progress)
        keeping.write_json(path.with_suffix(".json"), accuracy)
        keeping.write_tensors(path, trained.state_dict())
    model.model.vision_tower.load_state_dict(load_file(path))


def run_training(
    training: Training,
    work: Path,
    progress: tower.Progress = lambda *_: None,
    *,
    save_every: int = 1000,
    device: str = "cpu",
) -> Path:
    """Train one lineage, or go on where it stopped; return its folder.

    Parameters
    ----------
    training : Training
        A finished training is passed over.
    work : Path
        Folder for all trainings; this one uses `work / training.name`.
    progress : callable
        Called as `progress(stage, done, total, loss)` after every step of every stage.
    save_every : int
        Steps between two saved states; a stopped training loses at most as many.
    device : str
        Where it learns. The start, the pictures and their order are the same everywhere, rounding is not: the same training on
        another device ends as another repeat would.
    """
    folder = work / training.name
    if (folder / "finished.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    started, on_the_clock = time.process_time(), time.perf_counter()
    processor = build_processor(training.image_size, training.patch_size, suite=training.suite, anyres=training.anyres)
    data = prepare_lessons(training, processor, device)
    model = build_model(training, processor).to(device)
    _put_tower(training, model, data, processor, folder / "tower.safetensors", progress)
    learner = Learner(training, model, data, processor)
    state, history = folder / "state.safetensors", folder / "history.jsonl"
    learner.start(state, data.labels, progress)
    keeping.cut_history(history, learner.step)
    while learner.step < training.steps:
        loss = learner.take_step()
        step = learner.step
        progress("language model", step, training.steps, loss)
        if step % HISTORY_EVERY == 0 or step in training.kept_steps:
            entry = {"step": step, "loss": learner.loss, "accuracy": learner.accuracy()}
            with history.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if step in training.kept_steps:
            facts = keeping.checkpoint_facts(training, model, data.turns.ids.shape[-1], step, learner.loss)
            keeping.keep_checkpoint(model, processor, facts, folder)
        if step % save_every == 0:
            learner.save(state)
    cost = {
        "settings": training.to_dict(),
        "device": device,
        "cpu_seconds_of_the_last_start": time.process_time() - started,
        "seconds_of_the_last_start": time.perf_counter() - on_the_clock,
    }
    keeping.write_json(folder / "finished.json", cost)
    state.unlink(missing_ok=True)
    return folder
