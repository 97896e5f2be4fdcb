"""Made-up profiles, scores and left-out predictions for the tests of the report; plain frames, nothing is fitted or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmms_visual_heads.report.inputs import PLAIN_TASKS

BENCHMARKS = ("scenes_existence", "scenes_colour", "scenes_position", "scenes_counting", "scenes_digits")
CHANCE = (52.0, 22.0, 30.0, 37.0, 13.0)


@dataclass(frozen=True)
class Profile:
    """One model's head profile beside its metadata, as the report takes it."""

    frame: pd.DataFrame
    metadata: Mapping[str, Any]


@dataclass
class FakePredictor:
    """What the report uses of a predictor."""

    evaluation_: pd.DataFrame | None
    description: dict[str, Any] = field(default_factory=dict)
    predictions: pd.DataFrame | None = None
    asked: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return self.description

    def predict(self, measurements: Any, *, known_scores: Any = None, force: bool = False) -> pd.DataFrame:
        self.asked = list(dict.fromkeys(measurements.heads.frame["model"]))
        assert self.predictions is not None
        return self.predictions[self.predictions["model"].isin(self.asked)]


def profile(
    name: str,
    layers: int = 3,
    heads: int = 4,
    *,
    seed: int = 0,
    tasks: tuple[str, ...] = PLAIN_TASKS,
    missing: bool = False,
    lift: bool = True,
    parameters: float | None = 120_000,
    query: str = "first_generated",
    fingerprint: str = "9f3a61c2",
    documents: int = 256,
) -> Profile:
    """A model whose middle layers look at the image; `missing` takes a head and a statistic away."""
    random = np.random.default_rng(seed)
    layer, head = (grid.ravel() for grid in np.mgrid[:layers, :heads])
    depth = layer / max(layers - 1, 1)
    peak = random.uniform(0.25, 0.6)
    strength = 0.08 + 0.6 * np.exp(-(((depth - peak) / 0.25) ** 2)) * random.beta(1.2, 3.0, layer.size)
    spread = random.beta(1.6, 6.0, layer.size) * (0.4 + 0.9 * np.exp(-(((depth - peak) / 0.35) ** 2)))
    parts = []
    for task in tasks:
        attention = np.clip(strength * random.normal(1, 0.06, layer.size), 0, 1)
        concentration = np.clip(spread * random.normal(1, 0.08, layer.size), 0, 1)
        part = pd.DataFrame(
            {
                "model": name,
                "task": task,
                "layer": layer.astype(np.int16),
                "head": head.astype(np.int16),
                "image_attention": attention,
                "concentration": concentration,
                "focus": concentration * np.log(36.0),
                "visual_head_score": attention * concentration,
                "region_attention": attention * 0.08 if lift else np.nan,
                "newline_attention": 0.0,
                "sink_attention": (1 - attention) * 0.4,
                "region_lift": random.normal(0.1, 0.4, layer.size) + 0.8 * attention if lift else np.nan,
                "n_documents": documents,
            }
        )
        if missing:
            gone = (part["layer"] == layers - 1) & (part["head"] == 0)
            part.loc[gone, part.columns[4:12]] = np.nan
            part.loc[(part["layer"] == 0) & (part["head"] == 1), ["concentration", "focus", "visual_head_score"]] = (
                np.nan
            )
        parts.append(part)
    metadata = {
        "schema_version": 1,
        "model": {
            "name": name, "revision": "4481d270", "architecture": "LlavaForConditionalGeneration",
            "layers": layers, "heads": heads, "language_model_parameters": parameters,
        },
        "query": query,
        "dtype": "float32",
        "image_processor": "pil",
        "tasks": {
            task: {"fingerprint": fingerprint, "n_documents": documents, "n_without_image": 0, "n_several_images": 0}
            for task in tasks
        },
        "versions": {"lmms_eval": "0.7.3", "transformers": "5.23.0", "torch": "2.15.0"},
    }  # fmt: skip
    return Profile(pd.concat(parts, ignore_index=True), metadata)


def evaluation(
    n_models: int = 12,
    n_lineages: int = 8,
    *,
    noise: float = 5.0,
    baseline_noise: float = 12.0,
    benchmarks: tuple[str, ...] = BENCHMARKS,
    seed: int = 0,
) -> pd.DataFrame:
    """Left-out predictions whose errors have the given sizes (standard deviations, points)."""
    random = np.random.default_rng(seed)
    rows = []
    for benchmark, chance in zip(benchmarks, CHANCE, strict=False):
        for i in range(n_models):
            actual = float(random.uniform(chance + 4, 97))
            predicted = float(np.clip(actual + random.normal(0, noise), 0, 100))
            half = 1.7 * max(noise, 1.0)
            rows.append(
                {
                    "model": f"zoo/model-{i:02d}", "lineage": f"training-{i % n_lineages}", "benchmark": benchmark,
                    "actual": actual, "predicted": predicted, "low": predicted - half, "high": predicted + half,
                    "baseline": float(np.clip(actual + random.normal(0, baseline_noise), 0, 100)),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def predictions(
    names: list[str], benchmarks: tuple[str, ...] = BENCHMARKS, *, seed: int = 1, flags: str = ""
) -> pd.DataFrame:
    """Predictions of the given models."""
    random = np.random.default_rng(seed)
    rows = []
    for name in names:
        for benchmark, chance in zip(benchmarks, CHANCE, strict=False):
            predicted = float(random.uniform(chance + 5, 92))
            rows.append(
                {
                    "model": name, "benchmark": benchmark, "predicted": predicted, "low": predicted - 9.0,
                    "high": min(predicted + 9.0, 100.0), "level": 0.9, "baseline": float(random.uniform(40, 65)), "flags": flags,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def scores_of(frame: pd.DataFrame, *, scale: float = 1.0, seed: int = 2) -> pd.DataFrame:
    """A score table near the predictions of `frame`."""
    random = np.random.default_rng(seed)
    actual = np.clip(frame["predicted"].to_numpy(float) + random.normal(0, 6, len(frame)), 0, 100)
    return pd.DataFrame(
        {
            "model": frame["model"], "benchmark": frame["benchmark"], "metric": "accuracy", "scale": scale,
            "score": actual / 100 * scale, "n_items": 1000, "source": "made up",
        }
    )  # fmt: skip
