"""The predictor's ways to predict a benchmark's score, declared: which evidence each takes and with which estimator.

A method is usable where each block that it needs has a number; `selection.best_method` chooses among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.evidence import BLOCKS
from lmms_visual_heads.features.evidence_table import EvidenceTable
from lmms_visual_heads.prediction.regressors.extra_trees import PooledTrees
from lmms_visual_heads.prediction.regressors.gaussian_process import LineageProcess
from lmms_visual_heads.prediction.regressors.pooled_ridge import PooledBenchmarks
from lmms_visual_heads.prediction.regressors.ridge import LineageRidge

Array = npt.NDArray[np.float64]

MEAN = "mean"
AGREEMENT = "own_agreement.agreement"
"""Column of a method: how often the answers are those of the fitted models on the same prompts."""
ESTIMATORS: Mapping[str, Any] = {
    "ridge": LineageRidge,
    "process": LineageProcess,
    "pooled": PooledBenchmarks,
    "trees": PooledTrees,
    "checked_trees": partial(PooledTrees, check=(-1,)),
}
"""Factories by the name in `DeclaredMethod.estimator`."""


@dataclass(frozen=True, slots=True)
class DeclaredMethod:
    """One way to predict.

    Attributes
    ----------
    name : str
        As printed.
    words : str
        What it uses, to stand after "predicted from".
    columns : tuple of str
        "block" or "block.feature", names of `features.evidence.BLOCKS`; or `AGREEMENT`, at the end.
    estimator : str
        A key of `ESTIMATORS`; "pooled" and trees fit all benchmarks together.
    """

    name: str
    words: str
    columns: tuple[str, ...]
    estimator: str = "ridge"

    def __post_init__(self) -> None:
        for column in self.columns:
            if column == AGREEMENT:
                continue
            block, _, feature = column.partition(".")
            if block not in BLOCKS or (feature and feature not in {item.name for item in BLOCKS[block]}):
                raise ValueError(f"method {self.name} names {column}, which is not declared")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"method {self.name} needs an estimator out of {', '.join(ESTIMATORS)}")

    @property
    def trees(self) -> bool:
        """Whether trees fit it."""
        return self.estimator in ("trees", "checked_trees")

    @property
    def own_prompts(self) -> bool:
        """Whether prompts of the benchmark itself are needed."""
        return any(column.startswith("own_") for column in self.columns)

    @property
    def probe(self) -> bool:
        """Whether the probe is needed."""
        return any(column.startswith("probe_") for column in self.columns)

    @property
    def heads(self) -> bool:
        """Whether attention heads enter, what they attend to or what knocking them out changes."""
        return any(column.partition(".")[0].endswith(("_heads", "_causal")) for column in self.columns)

    @property
    def extra_passes(self) -> bool:
        """Whether benchmark prompts are run more than once: with other images, or with heads knocked out."""
        return any(column.startswith("own_causal") or column == "own_answers" for column in self.columns)


_FREE = ("own_answers.confidence", "own_answers.entropy", "own_answers.information")

_AGREED = "the answers on benchmark prompts and how often they are those of the fitted models"

PROBE_HEADS = DeclaredMethod("probe_heads", "the heads on the probe", ("probe_heads",))

METHODS = (
    PROBE_HEADS,
    DeclaredMethod("training", "size, amount and loss of the training", ("metadata", "loss")),
    DeclaredMethod("probe_accuracy", "the accuracy on the probe", ("probe_accuracy",)),
    DeclaredMethod("probe_answers", "the answers on the probe", ("probe_answers",)),
    DeclaredMethod("probe_heads_answers", "heads and answers on the probe", ("probe_heads", "probe_answers")),
    DeclaredMethod("probe_heads_causal", "heads on the probe and their knock-outs", ("probe_heads", "probe_causal")),
    DeclaredMethod("own_confidence", "the confidence on benchmark prompts", ("own_answers.confidence",), "pooled"),
    DeclaredMethod("own_answers_free", "the answers on benchmark prompts", _FREE, "pooled"),
    DeclaredMethod(
        "own_answers", "the answers on benchmark prompts, with other images too", ("own_answers",), "pooled"
    ),
    DeclaredMethod("own_answers_curve", "the answers on benchmark prompts, by a curve", _FREE, "process"),
    DeclaredMethod("own_answers_trees", "the answers on benchmark prompts, by trees", _FREE, "trees"),
    DeclaredMethod(
        "own_answers_images_trees",
        "the answers on benchmark prompts, with other images too, by trees",
        ("own_answers",),
        "trees",
    ),
    DeclaredMethod("own_agreement", _AGREED, (*_FREE, AGREEMENT), "pooled"),
    DeclaredMethod("own_agreement_trees", f"{_AGREED}, by trees", (*_FREE, AGREEMENT), "checked_trees"),
    DeclaredMethod("own_causal", "the heads' knock-outs on benchmark prompts", ("own_causal",), "pooled"),
    DeclaredMethod(
        "own_answers_causal", "answers and heads' knock-outs on benchmark prompts", (*_FREE, "own_causal"), "pooled"
    ),
    DeclaredMethod(
        "own_answers_heads", "the answers on benchmark prompts and the heads on the probe", (*_FREE, "probe_heads")
    ),
)
"""From the cheapest to the dearest: of two that are as good, the earlier is used."""

AGREEING = tuple(method for method in METHODS if AGREEMENT in method.columns)
"""Those that need the fitted models' answers."""

METHOD_WORDS = {MEAN: "the mean of the fitted trainings", **{method.name: method.words for method in METHODS}}


def method_named(name: str) -> DeclaredMethod:
    """The declared method of that name."""
    for method in METHODS:
        if method.name == name:
            return method
    raise VisualHeadsError(f"Methods are {', '.join(m.name for m in METHODS)}; {name!r} came. Fit again.")


def evidence_columns(
    table: EvidenceTable, method: DeclaredMethod, features: Sequence[str], agreed: Array
) -> tuple[Array, tuple[str, ...]]:
    """The method's columns [M, B, F] and their names; of the heads on the probe only `features`; agreement [M, B] comes last."""
    values, names = table.stack(column for column in method.columns if column != AGREEMENT)
    if AGREEMENT in method.columns:
        values, names = np.concatenate([values, agreed[:, :, None]], axis=2), (*names, AGREEMENT)
    kept = [
        i for i, name in enumerate(names) if not name.startswith("probe_heads.") or name.partition(".")[2] in features
    ]
    return values[:, :, kept], tuple(names[i] for i in kept)


def has_evidence(values: Array, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether each block of the columns `names` has a number, over the last axis of `values`."""
    blocks = [name.partition(".")[0] for name in names]
    finite = np.isfinite(values)
    found = np.ones(values.shape[:-1], dtype=bool)
    for block in dict.fromkeys(blocks):
        found &= finite[..., [i for i, own in enumerate(blocks) if own == block]].any(axis=-1)
    return found


__all__ = [
    "ESTIMATORS",
    "MEAN",
    "METHODS",
    "METHOD_WORDS",
    "PROBE_HEADS",
    "DeclaredMethod",
    "evidence_columns",
    "has_evidence",
    "method_named",
]
