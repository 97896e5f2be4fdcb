"""What a training leaves on disk: checkpoints in Hugging Face format, its state for going on, its history. Writes are atomic."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaProcessor

from lab.zoo.model import SmallLlava
from lab.zoo.settings import Training
from lmms_visual_heads.demo.manifest import FACTS_FILE

_ADAM = ("step", "exp_avg", "exp_avg_sq")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; a reader sees the old file or the whole new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file; a reader sees the old file or the whole new one."""
    part = path.with_name(path.name + ".part")
    save_file(tensors, part)
    os.replace(part, path)


def tokens_per_picture(training: Training, turn_length: int) -> int:
    """Positions of one packed row: begin token, "USER:", the image, the turns."""
    return training.n_visual_tokens + 2 + training.turns * turn_length


def training_flops(training: Training, model: SmallLlava, turn_length: int, step: int) -> float:
    """Floating point operations of `step` steps, 6 per parameter and token; the tower's own stage is included."""
    tower_size = sum(p.numel() for p in model.model.vision_tower.parameters())
    layers_size = sum(p.numel() for p in model.model.language_model.layers.parameters())
    views = 5 if training.anyres else 1
    seen = views * ((training.image_size // training.patch_size) ** 2 + 1)
    own_stage = 6.0 * tower_size * (seen // views) * training.tower_batch * training.tower_steps
    per_image = 6.0 * layers_size * tokens_per_picture(training, turn_length)
    if training.tower_share:
        per_image += 6.0 * tower_size * seen
    return own_stage + per_image * training.batch * step


def checkpoint_facts(training: Training, model: SmallLlava, turn_length: int, step: int, loss: float) -> dict[str, Any]:
    """Where a checkpoint comes from, as plain values; `loss` is the mean over the last steps, in nats per answer word."""
    return {
        "name": training.checkpoint_name(step),
        "lineage": training.name,
        "step": step,
        "steps": training.steps,
        "training_loss": loss,
        "answers_seen": step * training.batch * training.turns,
        "flops": training_flops(training, model, turn_length, step),
        "parameters": sum(p.numel() for p in model.parameters()),
        "language_model_parameters": sum(p.numel() for p in model.model.language_model.parameters()),
        "layers": training.layers,
        "heads": training.heads,
        "hidden": training.hidden,
        "visual_tokens": training.n_visual_tokens,
        "image_size": training.image_size,
        "patch_size": training.patch_size,
        "seed": training.seed,
        "final": step == training.steps,
        "stratum": training.stratum,
        "key_value_heads": training.key_value_heads or training.heads,
        "anyres": training.anyres,
        "tower_trained": training.tower_share > 0,
        "scenes": training.scenes,
        "tokens_seen": step * training.batch * tokens_per_picture(training, turn_length),
        "written_trained": training.generators.get("written", 0) > 0,
        "hidden_temperature": training.hidden_temperature,
    }


def keep_checkpoint(model: SmallLlava, processor: LlavaProcessor, facts: dict[str, Any], folder: Path) -> Path:
    """Write a checkpoint, float16 safetensors with its complete processor, to `folder / facts["name"]`."""
    kept, part = folder / facts["name"], folder / (facts["name"] + ".part")
    for old in (kept, part):
        if old.exists():
            shutil.rmtree(old)
    copy.deepcopy(model).to("cpu", torch.float16).save_pretrained(part)
    processor.save_pretrained(part)
    write_json(part / FACTS_FILE, facts)
    part.rename(kept)
    return kept


def save_state(path: Path, model: SmallLlava, optimiser: torch.optim.Optimizer, step: int, recent: Tensor) -> None:
    """Write all that is needed to go on after `step`: parameters, Adam's moments and the losses of the last steps."""
    tensors = {"step": torch.tensor(step), "recent": recent}
    for name, parameter in model.named_parameters():
        tensors[f"parameter.{name}"] = parameter.detach().clone()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.detach().clone()
    write_tensors(path, tensors)


@torch.no_grad()
def load_state(path: Path, model: SmallLlava, optimiser: torch.optim.Optimizer) -> tuple[int, Tensor]:
    """Put a saved state back; return its step and the losses of the last steps."""
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"parameter.{name}"])
        if f"step.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in _ADAM[1:]}
            optimiser.state[parameter] = {"step": tensors[f"step.{name}"], **moments}
    return int(tensors["step"]), tensors["recent"]


def cut_history(path: Path, last_step: int) -> None:
    """Drop the lines of a history that lie behind `last_step`: they will be written again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= last_step]
        path.write_text("".join(line + "\n" for line in lines))
