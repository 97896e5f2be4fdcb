"""The tables of a measured zoo as the product's own values: head profiles, measurements, evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lab.tables.schema import PROMPT_COUNTS
from lab.tables.zoo import ZooTables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.features.evidence_table import EvidenceTable, evidence_of
from lmms_visual_heads.features.measurements import ANSWER_MEANS, Measurements
from lmms_visual_heads.schema import PROFILE_COLUMNS, SCHEMA_VERSION


def head_profiles(zoo: ZooTables) -> HeadProfiles:
    """Of the tables of a measured zoo: the heads on its probe, all documents; stands beside `measured`."""
    probes = sorted({str(task) for task in zoo.profiles["task"]} - {str(name) for name in zoo.benchmarks["benchmark"]})
    rows = zoo.profiles[zoo.profiles["task"].isin(probes) & (zoo.profiles["half"] == -1)]
    counted = rows.groupby("task")["n_documents"].max()
    tasks = {task: {"fingerprint": "that of the zoo's probe", "n_documents": int(counted[task])} for task in probes}
    shared = {
        "query": "first_generated",
        "dtype": "float32",
        "image_processor": "pil",
        "tasks": tasks,
        "versions": {},
    }
    documents = {}
    for row in zoo.checkpoints.to_dict("records"):
        sizes = {name: int(row[name]) for name in ("layers", "heads", "language_model_parameters")}
        model = {"name": row["model"], "revision": None, "architecture": "LlavaForConditionalGeneration", **sizes}
        documents[str(row["model"])] = {"schema_version": SCHEMA_VERSION, "model": model, **shared}
    return HeadProfiles(rows[[column.name for column in PROFILE_COLUMNS]].reset_index(drop=True), documents)


def measured(zoo: ZooTables, condition: str = "clean") -> Measurements:
    """Of the tables of a measured zoo, all prompts; the items' confidences stand for the prompts'."""
    answers, items, said, causal = (_rows(frame) for frame in (zoo.answers, zoo.items, zoo.replies, zoo.causal))
    kept = answers[answers["condition"] == condition]
    means = {name: [_last(cell) for cell in kept[name]] for name in ANSWER_MEANS}
    prompts = {
        (str(row["model"]), str(row["benchmark"])): pd.Series(np.asarray(row["confidence"], dtype=np.float64))
        for row in items[items["condition"] == condition].to_dict("records")
    }
    return Measurements(
        kept[["model", "task", "n_prompts", "accuracy"]].assign(**means).reset_index(drop=True),
        prompts,
        causal[["model", "task", "layer", "head", "kl"]],
        checkpoints=zoo.checkpoints,
        replies={
            (str(row["model"]), str(row["benchmark"])): pd.Series(np.asarray(row["answer"]).astype(str))
            for row in said[said["condition"] == condition].to_dict("records")
        },
    )


def evidence_table(
    zoo: ZooTables,
    n_prompts: int = 256,
    condition: str = "clean",
    half: int = -1,
    share: EvidenceTable | None = None,
) -> EvidenceTable:
    """Evidence of all checkpoints of a zoo, in the order of its checkpoint table.

    Parameters
    ----------
    n_prompts : int
        Prompts behind the answer statistics: one of `schema.PROMPT_COUNTS`. Heads and cuts are over all that were measured.
    condition : str
        Heads are the same at another temperature, cuts are not; under corrupted images neither was measured, so it is missing.
    half : int
        -1 all documents; 0 or 1 one half of them, for heads and cuts.
    share : EvidenceTable or None
        Of the same zoo and half: its heads and cuts are taken over, because they do not depend on the number of prompts.
    """
    if n_prompts not in PROMPT_COUNTS:
        raise VisualHeadsError(f"n_prompts is one of {', '.join(map(str, PROMPT_COUNTS))}; {n_prompts} came.")
    position = PROMPT_COUNTS.index(n_prompts)
    answers = zoo.answers[zoo.answers["condition"] == condition]
    scalars = {
        name: [np.nan if cell is None else float(cell[position]) for cell in answers[name]] for name in ANSWER_MEANS
    }
    frame = pd.DataFrame(
        {"model": answers["model"], "task": answers["task"], "accuracy": answers["accuracy"], **scalars}
    )
    clean = condition == "clean"
    profiles = causal = None
    if share is None and condition != "corrupted":
        profiles = zoo.profiles[zoo.profiles["half"] == half]
    if share is None and clean:
        causal = zoo.causal if half < 0 else zoo.causal.assign(kl=zoo.causal[f"kl_half{half}"])
    benchmarks = tuple(zoo.benchmarks["benchmark"])
    table = evidence_of(zoo.checkpoints, benchmarks, frame, profiles, causal, condition, n_prompts)
    if share is None:
        return table
    kept = {"probe_heads", "own_heads"} if condition == "temperature" else set()
    kept |= {"probe_heads", "own_heads", "probe_causal", "own_causal"} if clean else set()
    blocks = {name: share.blocks[name] if name in kept else block for name, block in table.blocks.items()}
    return EvidenceTable(table.models, table.benchmarks, blocks, condition, n_prompts, table.heads)


def _rows(frame: pd.DataFrame | None) -> pd.DataFrame:
    if frame is None:
        raise ValueError("the tables of a zoo stand without rows where nothing was measured, never as None")
    return frame


def _last(cell: Any) -> float:
    """The statistic over the most prompts."""
    if cell is None or np.ndim(cell) == 0:
        return float("nan")
    values = np.array([np.nan if v is None else v for v in cell], dtype=np.float64)
    there = values[np.isfinite(values)]
    return float(there[-1]) if len(there) else float("nan")
