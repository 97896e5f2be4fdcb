"""The two stages before the language model learns: the tower learns to see, the projector learns to name.

Both stand in for what a real LLaVA starts from: a CLIP tower that was trained on captions, and LLaVA's feature alignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlavaProcessor

from lab.zoo.labels import PatchLabels, names_of
from lab.zoo.lessons import normalised
from lab.zoo.model import SmallLlava, tower_config
from lab.zoo.settings import Training
from lmms_visual_heads.probe.layout import COLOUR_NAMES
from lmms_visual_heads.probe.questions import LETTERS

Progress = Callable[[str, int, int, float], None]
"""Called as progress(stage, steps done, steps in all, loss)."""
STATE_DECAY = 0.02
"""Weight of the mean square of the tower's states: without it they grow until the projector cannot be trained."""


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.05) -> float:
    """Factor on the learning rate: linear warm-up, then a half cosine down to `floor`."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(seed: int, n: int, batch: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed << 24) + step)
    return torch.randint(n, (batch,), generator=generator)


def train_tower(
    training: Training, images: Tensor, labels: PatchLabels, processor: LlavaProcessor, progress: Progress
) -> tuple[CLIPVisionModel, dict[str, float]]:
    """Teach a new tower the kind, colour, quadrant and boxedness of what stands on each patch.

    Returns
    -------
    CLIPVisionModel
        The tower in float32.
    dict
        Share of the occupied patches of the last batches whose kind, colour and boxedness were right.
    """
    torch.manual_seed(training.seed + 1)
    tower = CLIPVisionModel(tower_config(training)).to(images.device)
    sizes = (1 + len(names_of(training)), len(COLOUR_NAMES), 2, len(LETTERS))
    head = nn.Linear(training.tower_hidden, sum(sizes)).to(images.device)
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=training.tower_learning_rate, weight_decay=0.01)
    right = torch.zeros(3, device=images.device)
    for step in range(training.tower_steps):
        for group in optimiser.param_groups:
            group["lr"] = training.tower_learning_rate * cosine(step, training.tower_steps)
        rows = _batches(training.seed, len(images), training.tower_batch, step).to(images.device)
        # One view of each picture: the base view and the tiles in turn.
        views: tuple[Tensor, ...] = (rows,) if images.dim() == 4 else (rows, (rows + step) % images.shape[1])
        states = tower(normalised(images[views], processor)).last_hidden_state[:, 1:]
        name, colour, boxed, quadrant = head(states).split(sizes, dim=-1)
        occupied = labels.name[views] > 0
        loss = (
            F.cross_entropy(name.flatten(0, 1), labels.name[views].flatten())
            + F.cross_entropy(colour[occupied], labels.colour[views][occupied])
            + 0.5 * F.cross_entropy(boxed.flatten(0, 1), labels.boxed[views].flatten())
            + STATE_DECAY * states.square().mean()
        )
        placed = labels.quadrant[views] >= 0
        if bool(placed.any()):
            loss = loss + 0.2 * F.cross_entropy(quadrant[placed], labels.quadrant[views][placed])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step >= training.tower_steps - 20:
            pairs = ((name, labels.name), (colour, labels.colour), (boxed, labels.boxed))
            right += torch.stack([(out.argmax(-1) == label[views])[occupied].float().mean() for out, label in pairs])
        progress("tower", step + 1, training.tower_steps, loss.item())
    right /= min(20, training.tower_steps)
    return tower, dict(zip(("kind", "colour", "boxed"), right.tolist(), strict=True))


@torch.no_grad()
def tower_features(model: SmallLlava, images: Tensor, processor: LlavaProcessor) -> Tensor:
    """What the frozen tower gives to the projector, float32 [N, P, tower_hidden]; [N, 5, P, tower_hidden] with tiles."""
    return torch.cat([seen(model, part, processor) for part in images.split(128 if images.dim() == 4 else 32)])


def seen(model: SmallLlava, images: Tensor, processor: LlavaProcessor) -> Tensor:
    """The tower's features of resized images uint8 [N, 3, size, size] or [N, 5, 3, size, size], as `tower_features`."""
    pixels = normalised(images, processor)
    states = model.model.vision_tower(pixels.flatten(0, -4)).last_hidden_state[:, 1:]
    return states.unflatten(0, images.shape[:-3])


@torch.no_grad()
def _standardise_input(layer: nn.Linear, features: Tensor) -> None:
    """Fold the standardisation of the features (zero mean, unit deviation) into a linear layer."""
    flat = features.flatten(0, -2)
    layer.weight.div_(flat.std(0) + 1e-3)
    layer.bias.sub_(layer.weight @ flat.mean(0))


def align_projector(
    training: Training,
    model: SmallLlava,
    features: Tensor,
    labels: PatchLabels,
    processor: LlavaProcessor,
    progress: Progress,
) -> float:
    """Feature alignment: an image embedding becomes the sum of the embeddings of the words that fit its patch.

    The words are the kind (or digit), the colour, the letter of the quadrant, and "these" inside the pointing box. Returns
    the last mean squared error relative to the mean square of the targets.
    """
    index = processor.tokenizer.convert_tokens_to_ids
    weight = model.get_input_embeddings().weight.detach()
    nothing = weight.new_zeros(1, training.hidden)
    names = torch.cat([nothing, weight[index(list(names_of(training)))]])
    colours = torch.cat([weight[index(list(COLOUR_NAMES))], nothing])
    letters = torch.cat([weight[index(list(LETTERS))], nothing])  # the last: no quadrant
    boxed = torch.cat([nothing, weight[index("these")][None]])
    projector = model.model.multi_modal_projector
    _standardise_input(projector.linear_1, features)
    optimiser = torch.optim.AdamW(projector.parameters(), lr=training.alignment_learning_rate, weight_decay=0.0)
    error = float("nan")
    for step in range(training.alignment_steps):
        for group in optimiser.param_groups:
            group["lr"] = training.alignment_learning_rate * cosine(step, training.alignment_steps)
        rows = _batches(training.seed + 2, len(features), 64 if features.dim() == 3 else 16, step).to(features.device)
        occupied = (labels.name[rows] > 0).float()[..., None]
        target = names[labels.name[rows]] + colours[labels.colour[rows]] + boxed[labels.boxed[rows]]
        target = target + 0.7 * occupied * letters[labels.quadrant[rows]]
        # Every second patch or more is empty: weigh the occupied ones up.
        share = 0.3 + occupied
        loss = (share * (projector(features[rows]) - target) ** 2).mean() / (share * target**2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        error = loss.item()
        progress("alignment", step + 1, training.alignment_steps, error)
    return error
