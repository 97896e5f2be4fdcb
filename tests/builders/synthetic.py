"""Made-up head tables and scores of M models in G lineages, with a relation that is planted on purpose. Never loads a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmms_visual_heads.tables import SCORE_COLUMNS, HeadTable

TASKS = ("vhead_general", "vhead_obj", "vhead_super")
BENCHMARKS = ("scenes_existence", "scenes_color", "scenes_digit")


@dataclass(frozen=True)
class World:
    """What a product run leaves behind: tables, scores, lineages, and each model's hidden skill."""

    tables: list[HeadTable]
    scores: pd.DataFrame
    lineages: dict[str, str]
    skill: dict[str, float]


def metadata(name: str, layers: int = 3, heads: int = 4, parameters: int = 100_000, **changes: Any) -> dict[str, Any]:
    """A metadata document as the harness writes it."""
    document: dict[str, Any] = {
        "model": {
            "name": name,
            "revision": None,
            "architecture": "LlavaForConditionalGeneration",
            "layers": layers,
            "heads": heads,
            "language_model_parameters": parameters,
        },
        "query": "first_generated",
        "dtype": "float32",
        "image_processor": "pil",
        "tasks": {
            task: {"fingerprint": f"{number:064x}", "n_documents": 6, "n_without_image": 0, "n_several_images": 0}
            for number, task in enumerate(TASKS)
        },
        "versions": {"lmms_eval": "0.7.3"},
    }
    return {**document, **changes}


def head_rows(
    random: np.random.Generator,
    skill: float = 0.5,
    layers: int = 3,
    heads: int = 4,
    documents: int = 6,
    tasks: tuple[str, ...] = TASKS,
    patches: int = 16,
) -> pd.DataFrame:
    """Rows of a head table whose image attention and region lift rise with `skill` (0..1)."""
    size = layers * heads
    n_rows = len(tasks) * documents * size
    layer, head = np.divmod(np.tile(np.arange(size), len(tasks) * documents), heads)
    attention = 0.15 + 0.5 * skill * np.linspace(0.2, 1.0, layers)[layer]
    attention = np.clip(attention + random.normal(0, 0.02, n_rows), 0.01, 0.98)
    focus = np.clip(0.3 + skill + random.normal(0, 0.05, n_rows), 0, np.log(patches))
    concentration = focus / np.log(patches)
    doc_id = np.tile(np.repeat(np.arange(documents), size), len(tasks))
    return pd.DataFrame(
        {
            "task": np.repeat(tasks, documents * size),
            "doc_id": doc_id,
            "item_id": [f"scene-{document:04d}" for document in doc_id],
            "layer": layer,
            "head": head,
            "image_attention": attention,
            "concentration": concentration,
            "focus": focus,
            "visual_head_score": attention * concentration,
            "region_attention": np.clip(attention * 0.125 * np.exp(skill), 0, attention),
            "region_attention_base": np.nan,
            "region_attention_tiles": np.nan,
            "newline_attention": 0.0,
            "sink_attention": np.clip(0.9 - attention, 0, 1) * 0.5,
            "region_share": 0.125,
            "n_visual_tokens": patches,
            "n_patch_tokens": patches,
            "n_prompt_tokens": patches + 12,
        }
    )


def world(
    lineages: int = 6,
    per_lineage: int = 2,
    noise: float = 0.02,
    relation: str = "planted",
    seed: int = 0,
    benchmarks: tuple[str, ...] = BENCHMARKS,
    copies: bool = False,
) -> World:
    """A world of models.

    Parameters
    ----------
    relation : {"planted", "none"}
        Whether the scores follow the skill that also moves the heads, or are drawn apart from it.
    copies : bool
        Whether the checkpoints of a lineage are copies of each other (same heads, same scores).
    """
    random = np.random.default_rng(seed)
    tables, rows, of, skills = [], [], {}, {}
    for lineage in range(lineages):
        lineage_skill, lineage_score = random.uniform(0.05, 0.95, 2)
        last: dict[str, float] = {}
        layers, heads = int(random.integers(2, 5)), int(random.choice([2, 4]))
        for checkpoint in range(per_lineage):
            if copies and checkpoint:
                skill, drawn = lineage_skill, lineage_score
            else:
                skill = lineage_skill = float(np.clip(lineage_skill + random.normal(0, 0.05), 0, 1))
                drawn = lineage_score = float(np.clip(lineage_score + random.normal(0, 0.05), 0, 1))
            name = f"runs/lineage{lineage}-step{checkpoint}"
            parameters = 100_000 + 10_000 * lineage
            document = metadata(name, layers, heads, parameters)
            seeded = np.random.default_rng(lineage) if copies else random
            tables.append(HeadTable.from_frame(head_rows(seeded, skill, layers, heads), document))
            of[name], skills[name] = f"lineage{lineage}", skill
            truth = skill if relation == "planted" else drawn
            for number, benchmark in enumerate(benchmarks):
                slope = 0.5 - 0.1 * (number % 3)
                error = 0.0 if copies and checkpoint else random.normal(0, noise)
                if not copies or not checkpoint:
                    value = float(np.clip(0.3 + slope * truth + error, 0, 1))
                    last[benchmark] = value
                rows.append((name, benchmark, "exact_match", 1.0, last[benchmark], 1000, "synthetic"))
    scores = pd.DataFrame(rows, columns=[c.name for c in SCORE_COLUMNS])
    return World(tables, scores, of, skills)
