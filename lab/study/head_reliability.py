"""Which heads: how reliable head statistics are, where in the model they lie, and whether they stay over tasks, steps and seeds.

Of a measured zoo. Correlations are over the heads of a model, Pearson's; the numbers given are medians over models.
Shapes: L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from lab.tables.as_product import evidence_table
from lab.tables.zoo import ZooTables
from lmms_visual_heads.features.evidence import BLOCKS, PROBE_NAMES

Array = npt.NDArray[np.float64]

STATISTICS = (
    "image_attention", "sinkless_attention", "image_log_share", "focus", "grid_focus", "content_dependence", "region_lift",
)  # fmt: skip
THIRDS = ("first third", "middle third", "last third")


def head_maps(tables: ZooTables) -> pd.DataFrame:
    """One row per model, task and head: the head statistics over all documents and both halves, and the causal score.

    Returns
    -------
    DataFrame
        model, task, layer, head, then per statistic NAME, NAME_0, NAME_1 (halves), and kl, kl_0, kl_1.
    """
    key = ["model", "task", "layer", "head"]
    profiles = tables.profiles[tables.profiles["condition"] == "clean"]
    parts = []
    for half, suffix in ((-1, ""), (0, "_0"), (1, "_1")):
        part = profiles[profiles["half"] == half].set_index(key)[list(STATISTICS)]
        parts.append(part.add_suffix(suffix))
    heads = tables.causal[(tables.causal["layer"] >= 0) & (tables.causal["head"] >= 0)].set_index(key)
    cuts = heads[["kl", "kl_half0", "kl_half1"]].set_axis(["kl", "kl_0", "kl_1"], axis=1)
    return pd.concat([*parts, cuts], axis=1).reset_index()


def split_half(maps: pd.DataFrame) -> pd.DataFrame:
    """Split-half reliability of every statistic over the heads of a model, stepped up to all documents (Spearman and Brown).

    Returns
    -------
    DataFrame
        statistic, prompts ("own" or "probe"), reliability (median over models and tasks), low, high (quartiles), n.
    """
    rows = []
    for name in (*STATISTICS, "kl"):
        for prompts, part in _by_prompts(maps):
            r = np.array([_correlation(m[f"{name}_0"], m[f"{name}_1"]) for _, m in part.groupby(["model", "task"])])
            r = r[np.isfinite(r)]
            if len(r):
                full = 2 * r / (1 + np.maximum(r, -0.99))
                rows.append((name, prompts, float(np.median(full)), *_quartiles(full), len(full)))
    return pd.DataFrame(rows, columns=["statistic", "prompts", "reliability", "low", "high", "n"])


def stability(maps: pd.DataFrame, checkpoints: pd.DataFrame) -> pd.DataFrame:
    """Whether the same heads stand out: median correlation over heads between two maps of one statistic.

    Compared are the question types of the probe, the benchmarks, probe and benchmark, a training's last two checkpoints, and
    trainings of equal shape with other seeds (heads have no names across seeds, so layers' means are compared there, too).

    Returns
    -------
    DataFrame
        statistic, between, correlation, low, high (quartiles), n.
    """
    final = set(checkpoints["model"][checkpoints["final"]])
    rows = []
    for name in ("image_attention", "grid_focus", "region_lift", "kl"):
        wide = maps.pivot(index=["model", "layer", "head"], columns="task", values=name)
        own = [task for task in wide.columns if task not in PROBE_NAMES]
        probe = [task for task in wide.columns if task in PROBE_NAMES]
        of_model = {str(model): part.droplevel("model") for model, part in wide.groupby(level="model")}
        finals = {model: part for model, part in of_model.items() if model in final}
        pairs = {
            "question types of the probe": (
                _correlation(m[a], m[b]) for m in finals.values() for a, b in combinations(probe, 2)
            ),
            "benchmarks": (_correlation(m[a], m[b]) for m in finals.values() for a, b in combinations(own, 2)),
            "probe and benchmark": (_correlation(m[a], m[b]) for m in finals.values() for a in probe for b in own),
            "last two checkpoints of a training": _neighbours(of_model, checkpoints),
            "other seeds, same shape: heads": _seeds(finals, layers=False),
            "other seeds, same shape: layers": _seeds(finals, layers=True),
        }
        for between, found in pairs.items():
            r = np.array(list(found))
            r = r[np.isfinite(r)]
            if len(r):
                rows.append((name, between, float(np.median(r)), *_quartiles(r), len(r)))
    return pd.DataFrame(rows, columns=["statistic", "between", "correlation", "low", "high", "n"])


def depths(maps: pd.DataFrame, checkpoints: pd.DataFrame) -> pd.DataFrame:
    """Share of a statistic that lies in each third of the layers, means over final checkpoints that were not broken.

    Returns
    -------
    DataFrame
        statistic, prompts, then a share per third, 0..1, and n_models.
    """
    good = set(checkpoints["model"][checkpoints["final"] & (checkpoints["stratum"] != "broken")])
    kept = maps[maps["model"].isin(good)]
    size = kept.groupby("model")["layer"].transform("max") + 1
    kept = kept.assign(third=np.minimum((3 * (kept["layer"] + 0.5) / size).astype(int), 2))
    rows = []
    for name in ("image_attention", "sinkless_attention", "kl"):
        for prompts, part in _by_prompts(kept):
            value = part.groupby(["model", "third"])[name].mean().unstack("third").reindex(columns=[0, 1, 2])
            share = value.div(value.sum(axis=1), axis=0)
            if share.notna().any(axis=None):
                rows.append((name, prompts, *share.mean().tolist(), len(share)))
    return pd.DataFrame(rows, columns=["statistic", "prompts", *THIRDS, "n_models"])


def feature_reliability(tables: ZooTables) -> pd.DataFrame:
    """Split-half reliability of the declared features across final checkpoints, benchmark by benchmark, stepped up.

    Returns
    -------
    DataFrame
        block, feature, reliability (median over benchmarks), n_models.
    """
    halves = [evidence_table(tables, half=half) for half in (0, 1)]
    primary = (tables.checkpoints["final"].astype(bool) & (tables.checkpoints["stratum"] != "broken")).to_numpy()
    rows = []
    for block in ("probe_heads", "own_heads", "own_causal"):
        for position, item in enumerate(BLOCKS[block]):
            a, b = (half.blocks[block][primary, :, position] for half in halves)
            r = [_correlation(a[:, t], b[:, t]) for t in range(a.shape[1])]
            good = [value for value in r if np.isfinite(value)]
            if good:
                middle = float(np.median(good))
                rows.append((block, item.name, 2 * middle / (1 + max(middle, -0.99)), int(primary.sum())))
    return pd.DataFrame(rows, columns=["block", "feature", "reliability", "n_models"])


def _by_prompts(maps: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    probe = maps["task"].isin(PROBE_NAMES)
    yield "own", maps[~probe]
    yield "probe", maps[probe]


def _correlation(a: object, b: object) -> float:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 3 or np.ptp(x[there]) < 1e-12 or np.ptp(y[there]) < 1e-12:
        return float("nan")
    return float(np.corrcoef(x[there], y[there])[0, 1])


def _quartiles(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(high)


def _neighbours(of_model: dict[str, pd.DataFrame], checkpoints: pd.DataFrame) -> Iterable[float]:
    for _, rows in checkpoints.sort_values("step").groupby("lineage"):
        last = [str(name) for name in rows["model"]][-2:]
        if len(last) == 2 and all(name in of_model for name in last):
            a, b = (of_model[name].mean(axis=1) for name in last)
            yield _correlation(a, b.reindex(a.index))


def _seeds(finals: dict[str, pd.DataFrame], layers: bool) -> Iterable[float]:
    means = {model: part.mean(axis=1) for model, part in finals.items()}
    for a, b in combinations(sorted(means), 2):
        x, y = means[a], means[b]
        if len(x) == len(y) and x.index.equals(y.index):
            if layers:
                x, y = x.groupby(level="layer").mean(), y.groupby(level="layer").mean()
            yield _correlation(x, y)
