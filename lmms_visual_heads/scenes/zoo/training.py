"""One training from the first pixel to the kept checkpoints: resumable, deterministic in its settings.

`run_training` works in a folder `<work>/<name>`: `tower.safetensors`, `state.safetensors` (parameters and optimiser, at the last
saved step), `history.jsonl`, and a folder per kept checkpoint. A finished training has `finished.json`.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lmms_visual_heads.scenes.zoo import lessons, packing, tower
from lmms_visual_heads.scenes.zoo.model import build_model
from lmms_visual_heads.scenes.zoo.settings import TURN_TYPES, Training
from lmms_visual_heads.scenes.zoo.vocabulary import build_processor

SAVE_EVERY = 1000
"""Steps between two saved states; a stopped training goes on from the last one."""
HISTORY_EVERY = 250
WORD_WEIGHTS = (0.1, 1.0, 0.1)
"""Weight of the loss on the blank, on the answer word and on the end token."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """A training's whole data: scenes, resized images, patch labels and encoded turns."""

    images: Tensor
    labels: lessons.PatchLabels
    turns: lessons.EncodedTurns


def prepare_lessons(training: Training, processor: LlavaProcessor) -> Lessons:
    """Draw, resize, label and encode the scenes of a training."""
    scenes = [lessons.training_scene(training.seed, index, training.box_share) for index in range(training.scenes)]
    turns = [lessons.turns_about(item, training, index) for index, item in enumerate(scenes)]
    side = training.image_size // training.patch_size
    return Lessons(
        lessons.resized_images(scenes, processor),
        lessons.patch_labels(scenes, side),
        lessons.encode_turns(turns, processor),
    )


def batch_rows(training: Training, step: int) -> Tensor:
    """Rows of the scenes that step number `step` learns from: every scene once per epoch, in the epoch's own order."""
    per_epoch = training.scenes // training.batch
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed((training.seed << 20) + epoch)
    order = torch.randperm(training.scenes, generator=generator)
    return order[place * training.batch : (place + 1) * training.batch]


def training_flops(training: Training, model: LlavaForConditionalGeneration, length: int, step: int) -> float:
    """Floating point operations of `step` steps, 6 per parameter and token; the tower's own stage is included."""
    tower_size = sum(p.numel() for p in model.model.vision_tower.parameters())
    layers_size = sum(p.numel() for p in model.model.language_model.layers.parameters())
    patches = training.n_visual_tokens
    tower_flops = 6.0 * tower_size * (patches + 1) * training.tower_batch * training.tower_steps
    return tower_flops + 6.0 * layers_size * (patches + 2 + training.turns * length) * training.batch * step


def save_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write a checkpoint in Hugging Face format, float16 safetensors, with its processor."""
    half = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def _save_state(path: Path, model: LlavaForConditionalGeneration, optimiser: torch.optim.Optimizer, step: int) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        tensors[f"parameter.{name}"] = parameter.detach().clone()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.detach().clone()
    part = path.with_name(path.name + ".part")
    save_file(tensors, part)
    os.replace(part, path)


@torch.no_grad()
def _load_state(path: Path, model: LlavaForConditionalGeneration, optimiser: torch.optim.Optimizer) -> int:
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"parameter.{name}"])
        state = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
        if state:
            optimiser.state[parameter] = state
    return int(tensors["step"])


def _optimiser(training: Training, model: LlavaForConditionalGeneration) -> torch.optim.AdamW:
    model.model.vision_tower.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.98))


def _tower_stage(
    training: Training,
    model: LlavaForConditionalGeneration,
    data: Lessons,
    processor: LlavaProcessor,
    path: Path,
    progress: tower.Progress,
) -> None:
    """Put a trained tower into `model`, from `path` where it was trained before."""
    if not path.exists():
        trained, accuracy = tower.train_tower(training, data.images, data.labels, processor, progress)
        save_file(trained.state_dict(), path, {"accuracy": json.dumps(accuracy)})
        _write_json(path.with_suffix(".json"), accuracy)
    model.model.vision_tower.load_state_dict(load_file(path))


def run_training(
    training: Training, work: Path, progress: tower.Progress = lambda *_: None, on_kept: Callable[[Path], None] = lambda _: None
) -> Path:
    """Train one lineage, or go on where it stopped; return its folder.

    Parameters
    ----------
    training : Training
    work : Path
        Folder for all trainings; this one uses `work / training.name`.
    progress : callable
        Called as `progress(stage, done, total, loss)` after every step.
    on_kept : callable
        Called with the folder of every checkpoint after it was written.
    """
    folder = work / training.name
    if (folder / "finished.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    processor = build_processor(training.image_size, training.patch_size)
    data = prepare_lessons(training, processor)
    model = build_model(training, processor)
    _tower_stage(training, model, data, processor, folder / "tower.safetensors", progress)
    features = tower.tower_features(model, data.images, processor)
    optimiser = _optimiser(training, model)
    state = folder / "state.safetensors"
    if state.exists():
        first = _load_state(state, model, optimiser)
    else:
        first = 0
        tower.align_projector(training, model, features, data.labels, processor, progress)
    model.train()
    recent: list[Tensor] = []
    right = torch.zeros(len(TURN_TYPES), 2)
    weights = torch.tensor(WORD_WEIGHTS)
    for step in range(first, training.steps):
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * tower.cosine(step, training.steps, training.warmup)
        rows = batch_rows(training, step)
        logits = packing.answer_logits(model, features[rows], data.turns, rows, processor)
        targets = packing.answer_targets(data.turns, rows, processor)
        losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)
        loss = (losses * weights).sum(-1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        done = step + 1
        recent.append(losses[..., 1].detach().mean())
        with torch.no_grad():
            kinds = data.turns.kind[rows].flatten()
            hit = (logits[..., 1, :].argmax(-1) == targets[..., 1]).flatten().float()
            right += torch.stack([torch.zeros(len(TURN_TYPES)).index_add_(0, kinds, v) for v in (hit, torch.ones_like(hit))], -1)
        progress("language model", done, training.steps, float(recent[-1]))
        if done % HISTORY_EVERY == 0 or done in training.kept_steps:
            word_loss = float(torch.stack(recent[-HISTORY_EVERY:]).mean())
            accuracy = {kind: round(float(h / n), 3) for kind, (h, n) in zip(TURN_TYPES, right, strict=True) if n}
            right.zero_()
            entry = {"step": done, "loss": word_loss, "cpu_seconds": time.process_time() - started, "accuracy": accuracy}
            with (folder / "history.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if done in training.kept_steps:
            kept = folder / training.checkpoint_name(done)
            save_checkpoint(model, processor, kept)
            length = data.turns.ids.shape[-1]
            facts = {
                "name": kept.name,
                "lineage": training.name,
                "step": done,
                "steps": training.steps,
                "training_loss": word_loss,
                "answers_seen": done * training.batch * training.turns,
                "flops": training_flops(training, model, length, done),
                "parameters": sum(p.numel() for p in model.parameters()),
                "language_model_parameters": sum(p.numel() for p in model.model.language_model.parameters()),
                "layers": training.layers,
                "heads": training.heads,
                "hidden": training.hidden,
                "visual_tokens": training.n_visual_tokens,
                "image_size": training.image_size,
                "patch_size": training.patch_size,
                "seed": training.seed,
            }
            _write_json(kept / "training.json", facts)
            on_kept(kept)
        if done % SAVE_EVERY == 0 and done < training.steps:
            _save_state(state, model, optimiser, done)
    _write_json(folder / "finished.json", {"settings": training.to_dict(), "cpu_seconds": time.process_time() - started})
    state.unlink(missing_ok=True)
    return folder
