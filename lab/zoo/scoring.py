"""Quick accuracies of a checkpoint on the drawn data, in packed form; for watching trainings, not for reported scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, LlavaProcessor

from lab.zoo import lessons, packing, tower
from lmms_visual_heads.probe.documents import DATA_NAMES, documents
from lmms_visual_heads.probe.layout import Scene
from lmms_visual_heads.probe.questions import full_prompt


@torch.no_grad()
def accuracies(
    folder: Path, processor: LlavaProcessor, names: Sequence[str] = DATA_NAMES, limit: int | None = None
) -> dict[str, float]:
    """Share of the documents of each data set whose answer word is right, 0..1; the first `limit` documents each."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    result = {}
    for name in names:
        asked = documents(name)[:limit]
        scenes = [lessons.TrainingScene(Scene.from_text(d["scene"]), d["with_box"]) for d in asked]
        turns = [[lessons.Turn("existence", full_prompt(d["question"], d.get("choices")), d["answer"])] for d in asked]
        encoded = lessons.encode_turns(turns, processor)
        features = tower.tower_features(model, lessons.resized_images(scenes, processor), processor)
        rows = torch.arange(len(asked))
        right = 0
        for part in rows.split(128):
            logits = packing.answer_logits(model, features[part], encoded, part, processor)
            right += int((logits.argmax(-1) == packing.answer_targets(encoded, part, processor))[..., :2].all(-1).sum())
        result[name] = right / len(asked)
    return result
