"""What is known of checkpoints beside the heads on the probe, as the methods' columns; labelled items, joined and checked.

Shapes: M models, B benchmarks. What does not belong together is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.features.evidence import BLOCKS
from lmms_visual_heads.features.evidence_table import EvidenceTable, evidence_of
from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.prediction.calibration import ConfidenceMap
from lmms_visual_heads.prediction.labelled_items import LabelledItems
from lmms_visual_heads.prediction.methods import METHODS, DeclaredMethod, evidence_columns
from lmms_visual_heads.tables import ITEM_COLUMNS

Array = npt.NDArray[np.float64]

Columns = dict[str, tuple[Array, tuple[str, ...]]]
"""method -> (values [M, B, F], names of the F columns)."""


def method_columns(
    profiles: HeadProfiles,
    features: pd.DataFrame,
    measured: Measurements,
    benchmarks: Sequence[str],
    methods: Sequence[DeclaredMethod] = METHODS,
    agreed: Array | None = None,
) -> Columns:
    """The columns of every method for the models of `features`.

    Parameters
    ----------
    features : DataFrame [M, F]
        Declared features of the heads on the probe; index: model.
    measured : Measurements
    agreed : array [M, B] or None
        Agreement with the fitted models' answers (`references.agreement_of`); NaN where there is none.
    """
    models = [str(model) for model in features.index]
    table = evidence_of(
        _checkpoints(profiles, measured, models),
        benchmarks,
        measured.answers[measured.answers["model"].isin(models)],
        profiles.frame[profiles.frame["model"].isin(models)],
        measured.causal[measured.causal["model"].isin(models)],
    )
    names = [item.name for item in BLOCKS["probe_heads"]]
    heads = features.reindex(columns=names).to_numpy(dtype=np.float64)
    blocks = {**table.blocks, "probe_heads": np.repeat(heads[:, None], len(benchmarks), axis=1)}
    table = EvidenceTable(table.models, table.benchmarks, blocks, table.condition, table.n_prompts, table.heads)
    shape = (len(models), len(benchmarks))
    beside = np.full(shape, np.nan) if agreed is None else agreed
    return {method.name: evidence_columns(table, method, list(features.columns), beside) for method in methods}


def prompt_fingerprints(
    measured: Measurements, models: Sequence[str], benchmarks: Sequence[str]
) -> dict[str, dict[int, str]]:
    """Per benchmark, fingerprint of the own prompts by their number.

    Raises
    ------
    VisualHeadsError
        When two models answered different data under one task's name.
    """
    found: dict[str, dict[int, str]] = {}
    first: dict[tuple[str, int], str] = {}
    for model in models:
        for benchmark in benchmarks:
            if (model, benchmark) not in measured.fingerprints:
                continue
            fingerprint, number = measured.fingerprints[model, benchmark]
            if found.setdefault(benchmark, {}).setdefault(number, fingerprint) != fingerprint:
                raise VisualHeadsError(
                    f"All models of a fit must have answered the same prompts; {first[benchmark, number]} and {model} have "
                    f"different fingerprints of {benchmark}. Leave one out, or run the same data for both."
                )
            first.setdefault((benchmark, number), model)
    return found


def prompt_counts(measured: Measurements, models: Sequence[str], benchmarks: Sequence[str]) -> Array:
    """Own prompts behind the answer statistics [M, B]; NaN where there are none."""
    counts = measured.answers.set_index(["model", "task"])["n_prompts"].to_dict()
    return np.array([[float(counts.get((m, b), np.nan)) for b in benchmarks] for m in models]).reshape(
        len(models), len(benchmarks)
    )


def check_items(
    items: pd.DataFrame, models: Sequence[str], benchmarks: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Labelled items of known models and benchmarks, and a sentence on what was left out.

    Raises
    ------
    VisualHeadsError
        A column is missing; no item is of a model or a benchmark that is asked for; an item has two labels; a label lies outside
        0..1.
    """
    missing = [c.name for c in ITEM_COLUMNS if c.name not in items.columns]
    if missing:
        raise VisualHeadsError(
            f"Labelled items need the columns {', '.join(missing)}. Read them with read_items(paths)."
        )
    notes = []
    strangers = sorted(set(items["model"]) - set(models))
    own = items[items["model"].isin(models)]
    if own.empty:
        raise VisualHeadsError(
            f"Labelled items must be of the models whose heads are given ({', '.join(map(str, models))}); they are of "
            f"{', '.join(strangers) or 'nobody'}. Give runs of one model one name with model_name=."
        )
    if strangers:
        notes.append(f"Left out the labelled items of models without heads: {', '.join(strangers)}.")
    others = sorted(set(own["benchmark"]) - set(benchmarks))
    own = own[own["benchmark"].isin(benchmarks)]
    if own.empty:
        raise VisualHeadsError(
            f"Labelled items must be of a benchmark that was fitted ({', '.join(benchmarks)}); they are of {', '.join(others)}."
        )
    if others:
        notes.append(f"Left out the labelled items of benchmarks that were not fitted: {', '.join(others)}.")
    labels = own["correct"].to_numpy(dtype=np.float64)
    if not ((labels >= 0) & (labels <= 1)).all():
        raise VisualHeadsError("Labels must lie in 0..1; another value came. Leave items without a label out.")
    key = ["model", "benchmark", "doc_id"]
    own = own.drop_duplicates([*key, "correct"])
    if own.duplicated(key).any():
        twice = own[own.duplicated(key)].iloc[0]
        raise VisualHeadsError(
            f"An item has one label; document {twice['doc_id']} of {twice['benchmark']} has two for {twice['model']}. "
            "Keep one run's samples file."
        )
    return own, notes


def labelled_items(items: pd.DataFrame, measured: Measurements) -> dict[str, dict[str, LabelledItems]]:
    """model -> benchmark -> labelled items with their confidences, joined by doc_id.

    A task without an answer table has labels alone.

    Raises
    ------
    VisualHeadsError
        When a label names a document that the model did not answer.
    """
    joined: dict[str, dict[str, LabelledItems]] = {}
    for (model, benchmark), part in items.groupby(["model", "benchmark"], sort=True):
        prompts = measured.prompts.get((str(model), str(benchmark)))
        ids = part["doc_id"].to_numpy(dtype=np.int64)
        confidence, rest = np.full(len(part), np.nan), np.zeros(0)
        if prompts is not None and len(prompts):
            unknown = sorted(set(ids.tolist()) - set(prompts.index.tolist()))
            if unknown:
                raise VisualHeadsError(
                    f"Labels must be of documents that were answered; {len(unknown)} labels of {benchmark} name documents that "
                    f"the answer table of {model} does not have, the first {unknown[0]} (it has {len(prompts)} documents, "
                    f"{prompts.index.min()} to {prompts.index.max()}). Name the samples file of the same data."
                )
            confidence = prompts.reindex(ids).to_numpy(dtype=np.float64)
            rest = prompts[~prompts.index.isin(ids)].to_numpy(dtype=np.float64)
        joined.setdefault(str(model), {})[str(benchmark)] = LabelledItems(
            part["correct"].to_numpy(dtype=np.float64), confidence, rest[np.isfinite(rest)]
        )
    return joined


def confidence_maps(
    items: pd.DataFrame, measured: Measurements, lineages: Mapping[str, str], benchmarks: Sequence[str]
) -> dict[str, ConfidenceMap]:
    """Per benchmark the map from confidence to correctness, learnt on the fitted models' own items.

    Raises
    ------
    VisualHeadsError
        As `labelled_items`.
    """
    joined = labelled_items(items[items["model"].isin(lineages) & items["benchmark"].isin(benchmarks)], measured)
    maps = {}
    for benchmark in benchmarks:
        of = [(model, parts[benchmark]) for model, parts in joined.items() if benchmark in parts]
        learnt = ConfidenceMap.fit(
            [part.confidence for _, part in of], [part.correct for _, part in of], [lineages[model] for model, _ in of]
        )
        if learnt.n_models:
            maps[benchmark] = learnt
    return maps


def _checkpoints(profiles: HeadProfiles, measured: Measurements, models: Sequence[str]) -> pd.DataFrame:
    """One row per model: layers and heads from its head table, the rest from what is known of its training."""
    rows = pd.DataFrame({"model": list(models)})
    described = [profiles.metadata_by_model[model]["model"] for model in models]
    given = measured.checkpoints
    known = rows.merge(given, on="model", how="left") if len(given.columns) > 1 else rows
    for name in ("layers", "heads"):
        if name not in known.columns:
            known[name] = [float(about[name]) for about in described]
    return known


__all__ = [
    "Columns",
    "check_items",
    "confidence_maps",
    "labelled_items",
    "method_columns",
    "prompt_counts",
    "prompt_fingerprints",
]
