"""Original `llava` format -> Hugging Face format, one weight file at a time, proven before it appears.

Tensors go from the mapped source file straight into the new one, so writing needs memory for one tensor (for one file,
where it is a pickle of the old, unmappable kind). The result is reloaded and must give equal logits; only then does
the temporary folder get its name. Whatever goes wrong, nothing half-converted stays.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lmms_visual_heads.capture.selfcheck import drawn_image
from lmms_visual_heads.checkpoints import loading, sources
from lmms_visual_heads.checkpoints.encoding import PromptEncoder
from lmms_visual_heads.checkpoints.original import OriginalCheckpoint, load_weights, read_checkpoint, stored_dtype
from lmms_visual_heads.checkpoints.original_config import is_original
from lmms_visual_heads.checkpoints.original_files import (
    OpenWeights,
    hugging_face_name,
    opened,
    published_name,
    return_free_memory,
    tower_name,
)
from lmms_visual_heads.checkpoints.original_model import EMBEDDING, OUTPUT, fitted, used_names
from lmms_visual_heads.checkpoints.shards import write_shard
from lmms_visual_heads.errors import VisualHeadsError

QUESTION = "How many shapes are there in this image? Answer with a number."
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}
"""Largest difference of logits between the two formats; the weights are the same numbers."""
RECORD = "conversion.json"

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done.

    Attributes
    ----------
    destination : Path
    shards : int
    bytes : int
        Of all weights.
    largest_difference : float
        Between the logits of the two formats on an image and a question.
    description : dict
        Of the original checkpoint: conversation, image_aspect, vision_tower, …
    """

    destination: Path
    shards: int
    bytes: int
    largest_difference: float
    description: dict[str, Any]


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    revision: str | None = None,
    conversation: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the original checkpoint `source` in Hugging Face format to `destination`.

    Parameters
    ----------
    source : str or Path
        Folder or hub id.
    destination : str or Path
        A folder that does not exist yet, or is empty.
    revision, conversation : str or None
        As for `load_model`; the conversation becomes the chat template.
    progress : callable or None
        Gets (step, bytes done, bytes in all).

    Raises
    ------
    VisualHeadsError
        When the source is not an original checkpoint or is damaged, the destination is in the way, the disk is full, or
        the proof fails. Nothing is left at the destination then.
    """
    text = sources.checked_source(source)
    stored = sources.stored_config(text, revision)
    if not is_original(stored):
        raise VisualHeadsError(
            f"convert takes a checkpoint in the original llava format; {text} has model_type {stored.get('model_type')!r}, "
            "which is no such. Load it as it is."
        )
    target = _free_destination(Path(destination).expanduser())
    report = progress or (lambda step, done, total: None)
    checkpoint = read_checkpoint(text, stored, revision, conversation)
    total = sum(path.stat().st_size for path in (*checkpoint.files, *checkpoint.tower.files))
    free = shutil.disk_usage(target.parent).free
    if free < total * 1.02:
        raise VisualHeadsError(
            f"The converted checkpoint needs about {total / 1e9:.1f} GB beside it; {target.parent} has {free / 1e9:.1f} GB free. "
            "Make room, or name a destination on another disk."
        )
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.converting-", dir=target.parent))
    try:
        os.chmod(folder, 0o777 & ~_umask())
        config = _write_documents(checkpoint, folder)
        shards, n_bytes = _write_weights(checkpoint, config, folder, total, report)
        report("proof: logits of the original", total, total)
        difference = _proof(checkpoint, folder, report, total)
        record = {"source": text, "revision": revision, **checkpoint.description(), "largest_difference": difference}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        folder.rename(target)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise VisualHeadsError(
            f"The converted checkpoint could not be written to {target.parent} ({error.strerror or error}). "
            "Make room or choose another destination."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Conversion(target, shards, n_bytes, difference, checkpoint.description())


def _free_destination(target: Path) -> Path:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise VisualHeadsError(
            f"convert writes a new folder; {target} exists and is not empty. Name another, or remove it first."
        )
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VisualHeadsError(
            f"The folder for the converted checkpoint, {target.parent}, cannot be made ({error.strerror}). Name another."
        ) from error
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_documents(checkpoint: OriginalCheckpoint, folder: Path) -> Any:
    """Everything but the weights; returns the config."""
    vocabulary = max(checkpoint.vocabulary, checkpoint.image_token + 1)
    config = checkpoint.hugging_face_config(vocabulary)
    config.architectures = [checkpoint.description()["architecture"]]
    config.dtype = str(stored_dtype(checkpoint.config.stored)).removeprefix("torch.")
    processor = _processor(checkpoint, config)
    config.save_pretrained(folder)
    generation = checkpoint.generation(config.get_text_config(decoder=True))
    if vocabulary > checkpoint.vocabulary:
        # rows that the original does not have must never be generated
        generation.suppress_tokens = list(range(checkpoint.vocabulary, vocabulary))
    generation.save_pretrained(folder)
    processor.save_pretrained(folder)
    return config


def _processor(checkpoint: OriginalCheckpoint, config: Any) -> Any:
    """The processor whose chat template gives the original's tokens.

    transformers tokenises a prompt in one go, without the original's extra blank after an image; where that matters, the
    template writes the blank.
    """
    plain = checkpoint.processor()
    original = checkpoint.encoder(plain, config)
    image = _example()
    wanted = original.encode(QUESTION, [image]).input_ids
    for after in ("", " "):
        plain.chat_template = checkpoint.conversation.chat_template(original.image_text + after)
        if torch.equal(PromptEncoder(plain, config).encode(QUESTION, [image]).input_ids, wanted):
            return plain
    raise VisualHeadsError(
        f"A converted checkpoint must tokenise prompts as the original does; for {checkpoint.source} no chat template of "
        f"conversation {checkpoint.conversation_name} does. Load the original as it is, or name another conversation."
    )


def _example() -> Image.Image:
    """A picture that is not square, so that padding and tiles are part of the proof."""
    return drawn_image(336).crop((0, 40, 336, 264))


@dataclass(frozen=True, slots=True)
class _Giver:
    """Gives a tensor of one source file under its published name, embedding and output layer at their new length."""

    weights: OpenWeights
    stored: dict[str, str]
    named: dict[str, str]
    old_vocabulary: int
    new_vocabulary: int

    def __call__(self, published: str) -> Tensor:
        name = self.named[published]
        tensor = self.weights.tensor(self.stored[name])
        if name in (EMBEDDING, OUTPUT):
            tensor = fitted(name, tensor[: self.old_vocabulary], (self.new_vocabulary,))
        return tensor


def _write_weights(
    checkpoint: OriginalCheckpoint, config: Any, folder: Path, total: int, report: Progress
) -> tuple[int, int]:
    """One new file per source file, and the index; returns (files, bytes)."""
    vocabulary = config.get_text_config(decoder=True).vocab_size
    sources = [(path, hugging_face_name) for path in checkpoint.files]
    sources += [(path, tower_name) for path in checkpoint.tower.files]
    skip_tower = bool(checkpoint.tower.files)
    places: dict[str, str] = {}
    written: list[tuple[Path, list[str]]] = []
    done = n_bytes = 0
    for path, rename in sources:
        report(f"writing {path.name}", done, total)
        part = folder / f"part-{len(written)}.safetensors"
        skip = skip_tower and rename is hugging_face_name
        names, size = _write_one(path, part, skip, rename, checkpoint.vocabulary, vocabulary)
        if names:
            written.append((part, names))
            n_bytes += size
        done += path.stat().st_size
    for i, (part, names_in_part) in enumerate(written, start=1):
        name = f"model-{i:05d}-of-{len(written):05d}.safetensors"
        part.rename(folder / name)
        places |= dict.fromkeys(names_in_part, name)
    index = {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return len(written), n_bytes


def _write_one(
    path: Path,
    part: Path,
    skip_tower: bool,
    rename: Callable[[str], str | None],
    old_vocabulary: int,
    new_vocabulary: int,
) -> tuple[list[str], int]:
    """One source file as one new file: (published names, bytes). Nothing of the file is kept afterwards."""
    with opened(path) as weights:
        stored = {new: old for old, new in used_names(weights, skip_tower, rename)}
        named = {published_name(new): new for new in stored}
        if not named:
            return [], 0
        return list(named), write_shard(
            part, list(named), _Giver(weights, stored, named, old_vocabulary, new_vocabulary)
        )


def _proof(checkpoint: OriginalCheckpoint, folder: Path, report: Progress, total: int) -> float:
    """Largest difference of the logits of both formats on an image and a question, in the stored dtype.

    The two models are never in memory together.
    """
    dtype = stored_dtype(checkpoint.config.stored)
    image = _example()
    model = load_weights(checkpoint, dtype, torch.device("cpu"))
    encoder = checkpoint.encoder(checkpoint.processor(), model.config)
    expected = _logits(model, encoder, image, dtype)
    del model, encoder
    gc.collect()
    return_free_memory()
    report("proof: logits of the converted checkpoint", total, total)
    reloaded = loading.load_model(folder, device="cpu", dtype=dtype)
    found = _logits(reloaded.model, reloaded.encoder, image, dtype)[: len(expected)]
    del reloaded
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCES[dtype] * max(1.0, float(expected.abs().max())):
        raise VisualHeadsError(
            f"The converted checkpoint must give the original's logits; they differ by {difference:.2g} on an image and a "
            "question, so it was removed. Load the original as it is, and report this."
        )
    return difference


@torch.inference_mode()
def _logits(model: Any, encoder: PromptEncoder, image: Image.Image, dtype: torch.dtype) -> Tensor:
    """Next-token logits [V], float32."""
    inputs = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in encoder.encode(QUESTION, [image]).inputs.items()
    }
    return model(**inputs, logits_to_keep=1, use_cache=False).logits[0, -1].float()
