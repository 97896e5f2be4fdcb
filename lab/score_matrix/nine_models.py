"""What nine models can and cannot show: thresholds by permutation, errors of the plainest predictors, rank of the design.

Reads `nine_models.csv` (model, field, value, source). No torch, no training.
"""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd

FIRST_SOURCE = "haotian-liu/LLaVA"
"""The models' own table comes first; the ViP-LLaVA authors' table where it has nothing."""

SCORES = ("POPE", "GQA", "MMBench", "SEED_IMG", "TextVQA")


def critical_rho(n: int = 9, level: float = 0.05) -> tuple[float, float]:
    """Smallest |Spearman rho| with two-sided p of at most `level` over all n! orders, and that p."""
    orders = np.array(list(permutations(range(n))), dtype=np.int8)
    distance = ((orders - np.arange(n, dtype=np.int8)).astype(np.int64) ** 2).sum(axis=1)
    rho = np.abs(1 - 6 * distance / (n * (n * n - 1)))
    values, counts = np.unique(rho.round(9), return_counts=True)
    tail = counts[::-1].cumsum()[::-1] / len(rho)
    first = int(np.flatnonzero(tail <= level)[0])
    return float(values[first]), float(tail[first])


def largest_of_random(n: int = 9, features: int = 1024, draws: int = 300, seed: int = 0) -> tuple[float, float]:
    """Median and 95 % point of the largest |Spearman rho| among random features (1,024: the heads of a 7B model)."""
    random = np.random.default_rng(seed)
    ranks = random.random((draws, features, n)).argsort(axis=2) - (n - 1) / 2
    rho = np.abs(ranks @ (np.arange(n) - (n - 1) / 2)) / ((np.arange(n) - (n - 1) / 2) ** 2).sum()
    return float(np.median(rho.max(axis=1))), float(np.quantile(rho.max(axis=1), 0.95))


def nine(path: Path) -> pd.DataFrame:
    """One row per model of the study: scores, and the facts that could explain them."""
    table = pd.read_csv(path, dtype=str)
    members = table[(table["field"] == "id.in_seed_paper_nine") & (table["value"] == "yes")]["model"].tolist()
    rows = []
    for model in members:
        own = table[table["model"] == model]
        row: dict[str, object] = {"model": model}
        for score in SCORES:
            found = own[own["field"] == f"score.{score}"]
            first = found[found["source"].str.contains(FIRST_SOURCE, regex=False)]
            if len(found):
                row[score] = float((first if len(first) else found)["value"].iloc[0])
        facts = own.drop_duplicates("field").set_index("field")["value"]
        size = re.findall(r"(\d+(?:\.\d+)?)b\b", model.lower())
        row["billions"] = float(size[-1])
        row["more than 2,000 tokens"] = float("2928" in facts["arch.visual_tokens"])
        row["760K samples"] = float(facts["train.stage2_samples"].startswith("760K"))
        row["tower trained"] = float(not facts["train.vision_encoder"].startswith("frozen"))
        row["ViP data"] = float("520K" in facts["train.stage2_samples"])
        rows.append(row)
    frame = pd.DataFrame(rows)
    pope = table[(table["field"] == "score.POPE") & (table["model"] == "llava-v1.5-7b")]["value"].astype(float)
    if len(pope) > 1:
        frame.attrs["two sources"] = (
            f"Two published tables differ by {pope.max() - pope.min():.1f} points on POPE for LLaVA-1.5-7B, more than the "
            "models differ: sources must not be mixed within a benchmark. The table above takes the models' own table "
            "first, so its errors hold a part of that difference."
        )
    return frame


def left_out_errors(models: pd.DataFrame) -> pd.DataFrame:
    """Leave-one-model-out mean absolute errors of the mean and of least squares on {1.6, ViP, log parameters}, points."""
    rows = []
    for score in [s for s in SCORES if s in models]:
        known = models.dropna(subset=[score])
        y = known[score].to_numpy()
        X = np.column_stack(
            [np.ones(len(y)), known["tower trained"], known["ViP data"], np.log(known["billions"].to_numpy())]
        )
        mean, squares = [], []
        for i in range(len(y)):
            rest = np.arange(len(y)) != i
            mean.append(abs(y[i] - y[rest].mean()))
            squares.append(abs(y[i] - X[i] @ np.linalg.lstsq(X[rest], y[rest], rcond=None)[0]))
        rows.append((score, len(y), float(np.mean(mean)), float(np.mean(squares))))
    return pd.DataFrame(rows, columns=["benchmark", "models", "mean of the others", "least squares on three facts"])


def design(models: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """Settings that were changed together: their distinct rows, number of columns with the constant, and the rank."""
    names = ["more than 2,000 tokens", "760K samples", "tower trained"]
    X = np.column_stack([np.ones(len(models)), models[names].to_numpy()])
    distinct = models.groupby(names).agg(models=("model", ", ".join)).reset_index()
    return distinct, X.shape[1], int(np.linalg.matrix_rank(X))


def words(path: Path) -> str:
    """The section of the page, Markdown."""
    models = nine(path)
    rho, p = critical_rho()
    median, high = largest_of_random()
    errors, (distinct, columns, rank) = left_out_errors(models), design(models)
    lines = [
        "## The nine real models of the study",
        "",
        f"- **A correlation below {rho:.2f} is nothing.** Over all 362,880 orders of nine models, |rho| of {rho:.3f} or more comes "
        f"up with p = {p:.3f}; anything smaller more often than one time in twenty.",
        f"- **A thousand head features always fit.** The best of 1,024 features of pure noise reaches |rho| {median:.2f} "
        f"(median), {high:.2f} in one of twenty draws. With nine models, fix a few statistics in advance.",
        "- **The benchmarks hardly differ between them.** Leave-one-out error in points (one source per model):",
        "",
        "| benchmark | models | mean of the others | least squares on {1.6, ViP, log parameters} |",
        "|---|---|---|---|",
        *(f"| {a} | {n} | {m:.2f} | {s:.2f} |" for a, n, m, s in errors.itertuples(index=False)),
        "",
        f"- **What the number of visual tokens does cannot be told from these models.** The design matrix of (constant, "
        f"more than 2,000 tokens, 760K samples, tower trained) has {columns} columns and rank {rank}: the three settings "
        "are one column, as the table shows. Any effect of one is an effect of all three.",
        "",
        "| more than 2,000 tokens | 760K samples | tower trained | models |",
        "|---|---|---|---|",
        *("| " + " | ".join("yes" if v == 1 else "no" for v in row[:3]) + f" | {row[3]} |" for row in distinct.values),
        "",
    ]
    if "two sources" in models.attrs:
        lines += [models.attrs["two sources"], ""]
    return "\n".join(lines)
