"""The tables of a measured zoo as the product's own values: measurements, labelled items, evidence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from lab.tables.schema import PROMPT_COUNTS
from lab.tables.zoo import ZooTables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.features.evidence_table import EvidenceTable, evidence_of
from lmms_visual_heads.features.measurements import ANSWER_MEANS, Measurements
from lmms_visual_heads.schema import PROFILE_COLUMNS, SCHEMA_VERSION

HIDDEN = ("stratum", "hidden_temperature")
"""Columns of the checkpoint table that say what was done to a training on purpose: nobody who predicts knows them."""


def head_profiles(zoo: ZooTables) -> HeadProfiles:
    """Of the tables of a measured zoo: the heads on its probe, all documents; part of `measurements`."""
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


def measurements(zoo: ZooTables, condition: str = "clean", prompts: int = 256) -> Measurements:
    """What a user has of the checkpoints of a zoo: no score, and no label of a benchmark's item.

    Parameters
    ----------
    condition : str
        How the benchmarks are asked. The probe's heads are the same under every condition; knock-outs were measured under the clean
        one only.
    prompts : int
        Answered prompts of each benchmark, the first ones; one of `PROMPT_COUNTS`.
    """
    if prompts not in PROMPT_COUNTS:
        raise VisualHeadsError(f"prompts is one of {', '.join(map(str, PROMPT_COUNTS))}; {prompts} came.")
    benchmarks = set(zoo.benchmarks["benchmark"])
    asked = zoo.answers[zoo.answers["condition"] == condition]
    probe = zoo.answers[(zoo.answers["condition"] == "clean") & ~zoo.answers["task"].isin(benchmarks)]
    probe = probe[~probe["task"].isin(asked["task"])]
    parts = [_means(asked, prompts), _means(probe, PROMPT_COUNTS[-1])]
    answers = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    # What a benchmark's prompts scored is what is to be predicted: only the probe's accuracy is known.
    answers["accuracy"] = answers["accuracy"].where(~answers["task"].isin(benchmarks))
    causal = zoo.causal if condition == "clean" else zoo.causal[~zoo.causal["task"].isin(benchmarks)]
    heard = "clean" if condition == "temperature" else condition
    items = zoo.items[zoo.items["condition"] == condition].to_dict("records")
    replies = zoo.replies[zoo.replies["condition"] == heard].to_dict("records")
    return Measurements(
        heads=head_profiles(zoo),
        answers=answers,
        prompts={
            (str(row["model"]), str(row["benchmark"])): pd.Series(
                np.asarray(row["confidence"][:prompts], dtype=np.float64)
            )
            for row in items
        },
        replies={
            (str(row["model"]), str(row["benchmark"])): pd.Series(np.asarray(row["answer"][:prompts]).astype(str))
            for row in replies
        },
        causal=causal[["model", "task", "layer", "head", "kl"]],
        checkpoints=zoo.checkpoints.drop(columns=list(HIDDEN)),
    )


def labels(zoo: ZooTables, doc_ids: npt.ArrayLike | None = None, condition: str = "clean") -> pd.DataFrame:
    """Labelled items of all checkpoints of a zoo, `schema.ITEM_COLUMNS`: those of `doc_ids`, or all."""
    rows = zoo.items[zoo.items["condition"] == ("clean" if condition == "temperature" else condition)]
    chosen = [np.arange(len(cell)) if doc_ids is None else np.asarray(doc_ids) for cell in rows["correct"]]
    sizes = [len(positions) for positions in chosen]
    correct = [np.asarray(cell)[positions] for cell, positions in zip(rows["correct"], chosen, strict=True)]
    return pd.DataFrame(
        {
            "model": np.repeat(rows["model"].to_numpy(dtype=object), sizes),
            "benchmark": np.repeat(rows["benchmark"].to_numpy(dtype=object), sizes),
            "doc_id": np.concatenate([*chosen, np.zeros(0, dtype=int)]).astype(np.int64),
            "correct": np.concatenate([*correct, np.zeros(0)]).astype(np.float64),
        }
    )


def _means(answers: pd.DataFrame, prompts: int) -> pd.DataFrame:
    """Means over the first prompts, one row per model and task."""
    position = PROMPT_COUNTS.index(prompts)
    means = {
        name: [np.nan if cell is None else float(cell[position]) for cell in answers[name]] for name in ANSWER_MEANS
    }
    counts = np.minimum(answers["n_prompts"], prompts)
    return answers[["model", "task", "accuracy"]].assign(n_prompts=counts, **means).reset_index(drop=True)


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
