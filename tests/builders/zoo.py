"""A made-up measured zoo whose truth is known: M lineages x 3 checkpoints x B benchmarks. Never loads a model.

Every lineage has a skill per benchmark that grows with training. Confidence is near calibrated (less so for smoothed
lineages); heads hold a large offset of their lineage that has nothing to do with skill, and a part that grows with training.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.tables.schema import PROMPT_COUNTS
from lab.tables.zoo import ZooTables

PROBES = ("vhead_general", "vhead_obj", "vhead_super")
PROGRESS = (0.35, 0.7, 1.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def benchmark_names(n: int = 13) -> list[str]:
    return [f"suite_{number:02d}" for number in range(n)]


def make_zoo(
    lineages: int = 12,
    benchmarks: int = 4,
    items: int = 200,
    seed: int = 0,
    prefix: str = "run",
    repeats: int = 0,
    corrupted: bool = True,
    heads_follow_skill: float = 0.0,
    layers: int = 2,
    heads: int = 3,
    skill: float = 1.0,
) -> ZooTables:
    """The tables of a zoo; `repeats` lineages are trained once more (names ending in -repeat); `skill` 0: all untrained."""
    random = np.random.default_rng(seed)
    world = np.random.default_rng(12345)  # what belongs to the benchmarks does not change with the seed
    names = benchmark_names(benchmarks)
    chance = world.choice([0.25, 0.5, 0.12], benchmarks)
    base = world.normal(0.3, 0.8, benchmarks)
    difficulty = world.normal(0, 1, (benchmarks, items))
    rows: dict[str, list] = {
        name: [] for name in ("checkpoints", "scores", "corrupted", "items", "answers", "profiles", "causal")
    }
    every = [f"{prefix}-{number:02d}" for number in range(lineages)]
    skills = {name: skill * (random.normal(0, 1.0) + random.normal(0, 0.8, benchmarks)) for name in every}
    for name in every[:repeats]:
        skills[f"{name}-repeat"] = skills[name] + random.normal(0, 0.2, benchmarks)
    for number, (lineage, own) in enumerate(skills.items()):
        stratum = (
            "broken"
            if number % 11 == 10 and skill
            else "smoothed"
            if number % 5 == 4
            else "noisy"
            if number % 7 == 6
            else "ordinary"
        )
        sharp = 0.6 if stratum == "smoothed" else float(np.exp(random.normal(0, 0.1)))
        hot = float(np.exp(random.normal(0, 0.5)))
        offset = random.normal(0, 1)
        width = int(random.choice([32, 64, 96]))
        for step, progress in enumerate(PROGRESS):
            theta = base + (own - 2.0 * skill * (1 - progress)) - (3.0 if stratum == "broken" else 0.0)
            model = f"{lineage}-s{step}"
            final = step == 2
            tokens = 1e7 * progress
            rows["checkpoints"].append(
                (model, lineage, step + 1, 3, final, stratum, layers, heads, heads, width, 16, False, False, width * 3000,
                 width * 2000, 8000, 1000 * (step + 1), tokens, 6 * tokens * width * 2000,
                 float(2.0 - 0.3 * theta.mean() + random.normal(0, 0.2)), number % 4 == 0, hot)
            )  # fmt: skip
            for b, name in enumerate(names):
                _measure(
                    rows, random, model, name, theta[b] - difficulty[b], chance[b], sharp, hot, final and corrupted
                )
            for task, ability in [*zip(names, theta, strict=True), *[(probe, theta.mean()) for probe in PROBES]]:
                if task in PROBES:
                    listed = np.full(5, sigmoid(ability + random.normal(0, 0.5)), dtype=np.float32)
                    rows["answers"].append((model, task, "clean", 256, float(listed[0]), *[listed] * 5))
                _heads(rows, random, model, task, ability, progress, offset, heads_follow_skill, layers, heads)
    checkpoints = pd.DataFrame(rows["checkpoints"], columns=[
        "model", "lineage", "step", "steps", "final", "stratum", "layers", "heads", "key_value_heads", "hidden", "visual_tokens",
        "anyres", "tower_trained", "parameters", "language_model_parameters", "scenes", "answers_seen", "tokens_seen", "flops",
        "training_loss", "written_trained", "hidden_temperature",
    ])  # fmt: skip
    score_columns = ["model", "benchmark", "metric", "scale", "score", "n_items", "source"]
    return ZooTables(
        checkpoints=checkpoints,
        benchmarks=pd.DataFrame(
            {
                "benchmark": names,
                "generator": [("scenes", "bars", "written")[number % 3] for number in range(benchmarks)],
                "counting": [number == benchmarks - 1 for number in range(benchmarks)],
                "chance": chance,
                "n_items": items,
            }
        ),
        scores=pd.DataFrame(rows["scores"], columns=score_columns),
        scores_corrupted=pd.DataFrame(rows["corrupted"], columns=score_columns) if rows["corrupted"] else None,
        items=pd.DataFrame(
            rows["items"], columns=["model", "benchmark", "condition", "correct", "confidence", "entropy"]
        ),
        replies=_replies(rows["items"], dict(zip(names, chance, strict=True)), seed),
        answers=pd.DataFrame(
            rows["answers"],
            columns=[
                "model",
                "task",
                "condition",
                "n_prompts",
                "accuracy",
                "confidence",
                "entropy",
                "information",
                "swap_kl",
                "blank_kl",
            ],
        ),
        profiles=pd.DataFrame(rows["profiles"]),
        causal=pd.DataFrame(rows["causal"]),
    )


def _replies(items, chance, seed) -> pd.DataFrame:
    """Answers that fit the correctness: the key, or one of the wrong ones."""
    random = np.random.default_rng(seed + 1)
    rows = []
    for model, benchmark, condition, right, *_ in items:
        if condition != "temperature":
            k = round(1 / chance[benchmark])
            key = np.arange(len(right)) % k
            rows.append(
                (model, benchmark, condition, np.where(right, key, (key + random.integers(1, k, len(key))) % k))
            )
    return pd.DataFrame(rows, columns=["model", "benchmark", "condition", "answer"])


def _measure(rows, random, model, name, ability, chance, sharp, hot, corrupted) -> None:
    p = chance + (1 - chance) * sigmoid(ability)
    belief = sharp * (ability + random.normal(0, 0.5, len(ability)))
    luck = random.random(len(ability))
    for condition in ("clean", "temperature", "corrupted")[: 3 if corrupted else 2]:
        right = luck < p
        q = belief
        if condition == "temperature":
            q = belief / hot
        if condition == "corrupted":
            right, q = luck < chance + (1 - chance) * sigmoid(ability - 1.5), belief - 0.5
        confidence = (chance + (1 - chance) * sigmoid(q)).astype(np.float32)
        entropy = -(confidence * np.log(confidence) + (1 - confidence) * np.log(np.maximum(1 - confidence, 1e-9) / 4))
        rows["items"].append((model, name, condition, right, confidence, entropy.astype(np.float32)))
        if condition != "temperature":
            key = "scores" if condition == "clean" else "corrupted"
            rows[key].append((model, name, "exact_match", 1.0, float(right.mean()), len(right), "made up"))
        means = [confidence[:n].mean() for n in PROMPT_COUNTS]
        entropies = [entropy[:n].mean() for n in PROMPT_COUNTS]
        knowing = float(np.exp(0.5 * q.mean() + random.normal(0, 0.2)))
        rows["answers"].append(
            (model, name, condition, 256, float(right[:256].mean()), means, entropies, [0.3 * knowing] * 5, [knowing] * 5,
             [0.8 * knowing * float(np.exp(random.normal(0, 0.1)))] * 5)
        )  # fmt: skip


def _heads(rows, random, model, task, ability, progress, offset, follow, layers, heads) -> None:
    n = layers * heads
    layer, head = np.divmod(np.arange(n), heads)
    own = 0.8 * offset * np.cos(np.arange(n)) + 1.5 * progress + follow * ability
    for half in (-1, 0, 1):
        attention = sigmoid(own - 1.5 + random.normal(0, 0.1, n))
        focus = np.abs(0.5 + 0.3 * own + random.normal(0, 0.05, n))
        for i in range(n):
            rows["profiles"].append({
                "model": model, "task": task, "layer": layer[i], "head": head[i], "image_attention": attention[i],
                "concentration": focus[i] / 3, "focus": focus[i], "visual_head_score": attention[i] * focus[i] / 3,
                "region_attention": attention[i] / 8, "newline_attention": 0.0, "sink_attention": 1 - attention[i],
                "region_lift": float(0.3 * own[i] + random.normal(0, 0.2)), "n_documents": 256 if half < 0 else 128,
                "grid_focus": focus[i] * 0.9, "sinkless_attention": attention[i] * 0.7,
                "content_dependence": abs(float(random.normal(0.2, 0.1))), "image_log_share": float(np.log(attention[i] * 3)),
                "half": half, "condition": "clean",
            })  # fmt: skip
    strength = np.exp(0.6 * ability + random.normal(0, 0.5))
    cells = [(-1, -1, strength), *[(i, -1, strength / layers * np.exp(random.normal(0, 0.3))) for i in range(layers)]]
    cells += [(layer[i], head[i], strength / n * np.exp(random.normal(0, 0.5))) for i in range(n)]
    for i, j, kl in cells:
        rows["causal"].append({
            "model": model, "task": task, "layer": i, "head": j, "kl": kl, "kl_half0": kl * np.exp(random.normal(0, 0.1)),
            "kl_half1": kl * np.exp(random.normal(0, 0.1)), "n_documents": 128,
        })  # fmt: skip
