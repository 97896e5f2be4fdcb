"""Frames about heads and runs: every number of sections 4 and 5 of the page. Pure functions on plain DataFrames.

Never draws and never reads a file. Missing stays missing (NaN in a float column). Units: W, C, S 0..1; F and region lift in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lmms_visual_heads.report.inputs import PLAIN_TASKS, ReportModel

DEFAULT_THRESHOLD = 0.1
"""Mean S above which a head is called a visual head, unless the caller says otherwise."""

HEAD_KEY = ["model", "layer", "head"]
QUESTION_TYPES = {task: task.split("_")[1] for task in PLAIN_TASKS}


def profile_frame(models: Iterable[ReportModel]) -> pd.DataFrame:
    """Head profiles of all models below each other: one row per (model, task, layer, head)."""
    return pd.concat([model.profile.assign(model=model.name) for model in models], ignore_index=True)


def head_frame(models: Iterable[ReportModel]) -> pd.DataFrame:
    """One row per head: its statistics over all documents of the model's pooled tasks.

    Means weigh each task by its documents, C and F also by image attention, and the region lift is pooled as
    ln(sum r / sum w b): where no document lacks a statistic, the result is that of one profile over all documents together.

    Returns
    -------
    DataFrame
        model, layer, head, depth (0 first layer, 1 last), the profile statistics, region_lift, n_documents.
    """
    parts = []
    for model in models:
        rows = model.profile[model.profile["task"].isin(model.pooled_tasks)]
        pooled = pool_tasks(rows)
        last = max(int(model.profile["layer"].max()), 1)
        pooled.insert(0, "model", model.name)
        pooled.insert(3, "depth", pooled["layer"].astype(float) / last)
        parts.append(pooled)
    return pd.concat(parts, ignore_index=True)


def pool_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Pool profile rows of several tasks of one model into one row per (layer, head); see `head_frame`."""
    n = rows["n_documents"].astype(float)
    attention = rows["image_attention"].astype(float)
    work = rows[["layer", "head"]].copy()
    weights = {
        "image_attention": n,
        "concentration": n * attention,
        "focus": n * attention,
        "visual_head_score": n,
        "region_attention": n,
        "newline_attention": n,
        "sink_attention": n,
    }
    for name, weight in weights.items():
        value = rows[name].astype(float)
        known = value.notna() & weight.notna() & (weight > 0)
        work[f"{name}|sum"] = (value * weight).where(known)
        work[f"{name}|weight"] = weight.where(known)
    region = n * rows["region_attention"].astype(float)
    with np.errstate(over="ignore"):
        expected: pd.Series = region / np.exp(rows["region_lift"].astype(float))
    known = region.notna() & expected.notna() & np.isfinite(expected) & (expected > 0)
    work["lift|sum"], work["lift|weight"] = region.where(known), expected.where(known)
    work["n_documents"] = rows["n_documents"]
    sums = work.groupby(["layer", "head"], sort=True).sum(min_count=1)
    out = pd.DataFrame({name: sums[f"{name}|sum"] / sums[f"{name}|weight"] for name in weights}, index=sums.index)
    lift, weight = sums["lift|sum"].astype(float), sums["lift|weight"].astype(float)
    usable = (lift > 0) & (weight > 0)
    out["region_lift"] = np.log((lift / weight).where(usable))
    out["n_documents"] = sums["n_documents"].astype(int)
    return out.reset_index()


def model_frame(heads: pd.DataFrame, threshold: float = DEFAULT_THRESHOLD) -> pd.DataFrame:
    """One row per model: what its heads do on average, and how many are visual heads.

    Parameters
    ----------
    heads : DataFrame
        As `head_frame` gives it.
    threshold : float
        A head is a visual head when its mean S exceeds this.

    Returns
    -------
    DataFrame
        model, n_heads, n_missing (heads without W), image_attention (mean over heads), concentration (mean over heads,
        weighted by W), focus (likewise), largest_score, visual_heads, threshold, top_layer (the layer of the largest S).
    """
    rows = []
    for name, part in heads.groupby("model", sort=False):
        attention = part["image_attention"]
        score = part["visual_head_score"]
        best_layer = float(part["layer"].to_numpy()[score.argmax()]) if score.notna().any() else np.nan
        rows.append(
            {
                "model": name,
                "n_heads": len(part),
                "n_missing": int(attention.isna().sum()),
                "image_attention": attention.mean(),
                "concentration": _weighted(part["concentration"], attention),
                "focus": _weighted(part["focus"], attention),
                "largest_score": score.max(),
                "visual_heads": int((score > threshold).sum()),
                "threshold": threshold,
                "top_layer": best_layer,
                "region_lift": part["region_lift"].mean(),
            }
        )
    return pd.DataFrame(rows)


def top_head_frame(heads: pd.DataFrame, n: int = 10, threshold: float = DEFAULT_THRESHOLD) -> pd.DataFrame:
    """The `n` heads of each model with the largest S, ranked from 1; heads without S are left out.

    Ties keep the order layer, head. `visual_head` says whether S exceeds `threshold`.
    """
    order = heads.dropna(subset=["visual_head_score"]).sort_values(
        ["visual_head_score", "layer", "head"], ascending=[False, True, True], kind="stable"
    )
    top = order.groupby("model", sort=False).head(n).copy()
    top["rank"] = top.groupby("model", sort=False).cumcount() + 1
    top["visual_head"] = top["visual_head_score"] > threshold
    position = {name: i for i, name in enumerate(heads["model"].unique())}
    top = top.assign(_at=top["model"].map(position)).sort_values(["_at", "rank"], kind="stable").drop(columns="_at")
    names = ["model", "rank", "layer", "head", "image_attention", "concentration", "focus", "visual_head_score"]
    return top[[*names, "region_attention", "region_lift", "visual_head", "n_documents"]].reset_index(drop=True)


def question_type_frame(profiles: pd.DataFrame, threshold: float = DEFAULT_THRESHOLD) -> pd.DataFrame:
    """One row per (model, probe task): the summary of `model_frame` for each question type by itself.

    Returns
    -------
    DataFrame
        model, task, question_type, box_drawn, image_attention, concentration, focus, visual_heads, region_lift,
        same_heads (share of the tenth of heads with the largest S that the model's first listed type has, too), n_documents.
    """
    rows = []
    for name, of_model in profiles.groupby("model", sort=False):
        first: set[tuple[int, int]] | None = None
        for task in [t for t in _probe_order(of_model["task"].unique())]:
            part = of_model[of_model["task"] == task]
            score = part["visual_head_score"].astype(float)
            leading = part.loc[score.nlargest(max(1, len(part) // 10)).index, ["layer", "head"]]
            these = set(leading.itertuples(index=False, name=None))
            first = these if first is None else first
            rows.append(
                {
                    "model": name,
                    "task": task,
                    "question_type": task.removeprefix("vhead_").removesuffix("_visual"),
                    "box_drawn": task.endswith("_visual"),
                    "image_attention": part["image_attention"].mean(),
                    "concentration": _weighted(part["concentration"], part["image_attention"]),
                    "focus": _weighted(part["focus"], part["image_attention"]),
                    "visual_heads": int((score > threshold).sum()),
                    "region_lift": part["region_lift"].mean(),
                    "same_heads": len(these & first) / len(first) if first and these else np.nan,
                    "n_documents": int(part["n_documents"].max()),
                }
            )
    names = ["model", "task", "question_type", "box_drawn", "image_attention", "concentration", "focus"]
    return pd.DataFrame(rows, columns=[*names, "visual_heads", "region_lift", "same_heads", "n_documents"])


def matrix(heads: pd.DataFrame, statistic: str) -> np.ndarray:
    """Values of one model's `statistic` as float64 [L, H]; a head without a row or without a value is NaN."""
    shape = int(heads["layer"].max()) + 1, int(heads["head"].max()) + 1
    values = np.full(shape, np.nan)
    values[heads["layer"].to_numpy(int), heads["head"].to_numpy(int)] = heads[statistic].to_numpy(float)
    return values


def run_frame(models: Iterable[ReportModel]) -> pd.DataFrame:
    """One row per model: what was run, from the metadata of its head table; what is not written there is missing."""
    rows = []
    for model in models:
        about = model.description
        rows.append(
            {
                "model": model.name,
                "revision": _text(about.get("revision")),
                "architecture": _text(about.get("architecture")),
                "layers": _first(about.get("layers"), int(model.profile["layer"].max()) + 1),
                "heads": _first(about.get("heads"), int(model.profile["head"].max()) + 1),
                "language_model_parameters": _first(about.get("language_model_parameters"), np.nan),
                "query": _text(model.metadata.get("query")),
                "dtype": _text(_first(model.metadata.get("dtype"), about.get("dtype"))),
                "image_processor": _text(_first(model.metadata.get("image_processor"), about.get("image_processor"))),
                "maps_pool": " + ".join(model.pooled_tasks),
            }
        )
    return pd.DataFrame(rows)


def task_frame(models: Iterable[ReportModel]) -> pd.DataFrame:
    """One row per (model, task): fingerprint of the data and numbers of documents, as the head table records them."""
    rows = []
    for model in models:
        recorded = model.metadata.get("tasks") or {}
        measured = model.profile.groupby("task", sort=False)["n_documents"].max()
        for task in dict.fromkeys([*_probe_order(measured.index), *recorded]):
            about = recorded.get(task) or {}
            rows.append(
                {
                    "model": model.name,
                    "task": task,
                    "fingerprint": _text(about.get("fingerprint")),
                    "n_documents": _first(about.get("n_documents"), measured.get(task), np.nan),
                    "n_without_image": _first(about.get("n_without_image"), np.nan),
                    "n_several_images": _first(about.get("n_several_images"), np.nan),
                }
            )
    return pd.DataFrame(rows)


def version_frame(models: Sequence[ReportModel]) -> pd.DataFrame:
    """One row per (package, version) with the number of models that were measured with it."""
    pairs = [
        (str(package), str(version))
        for model in models
        for package, version in (model.metadata.get("versions") or {}).items()
    ]
    frame = pd.DataFrame(pairs, columns=["package", "version"])
    return frame.groupby(["package", "version"], sort=True).size().rename("n_models").reset_index()


def mixed_measurements(models: Sequence[ReportModel]) -> list[str]:
    """One sentence for each way in which the models were not measured alike; empty when they may be compared."""
    sentences = []
    queries = {model.metadata.get("query") for model in models} - {None}
    if len(queries) > 1:
        sentences.append(
            f"The models were read at different queries ({', '.join(sorted(map(str, queries)))}): do not compare their maps."
        )
    tasks = task_frame(models).dropna(subset=["fingerprint"])
    for task, prints in tasks.groupby("task")["fingerprint"]:
        if prints.nunique() > 1:
            sentences.append(
                f"The data of {task} differ between models ({prints.nunique()} fingerprints): do not compare their maps."
            )
    pools = {model.pooled_tasks for model in models}
    if len(pools) > 1:
        sentences.append(
            "The models were probed with different tasks: compare their maps with care (section 5 lists them)."
        )
    return sentences


def _weighted(values: pd.Series, weights: pd.Series) -> float:
    """Mean of `values` weighted by `weights`; NaN where nothing has both."""
    known = values.notna() & weights.notna() & (weights > 0)
    if not known.any():
        return float("nan")
    return float(np.average(values[known].astype(float), weights=weights[known].astype(float)))


def _probe_order(tasks: Iterable[str]) -> list[str]:
    """Tasks with the plain probe first, then the probe with the box drawn, then the others in their own order."""
    named = list(dict.fromkeys(tasks))
    probe = [*PLAIN_TASKS, *(f"{task}_visual" for task in PLAIN_TASKS)]
    return [t for t in probe if t in named] + [t for t in named if t not in probe]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
