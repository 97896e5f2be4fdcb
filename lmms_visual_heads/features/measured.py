"""What was measured of checkpoints beside their heads: means of answer statistics and causal scores, and every prompt's confidence.

Read from the answer and causal tables that lie beside head tables, or taken from the tables of a zoo. Missing is NaN.
Units: probability 0..1, entropy and KL in nats.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import ANSWERS_SUFFIX, CAUSAL_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables import AnswerTable, CausalTable, read_answer_tables, read_causal_tables

ANSWER_MEANS = ("confidence", "entropy", "information", "swap_kl", "blank_kl")
NUMBERS_OF_TRAINING = ("parameters", "layers", "visual_tokens", "tokens_seen", "flops", "training_loss")
_ANSWERS = ("model", "task", *ANSWER_MEANS, "n_prompts")
_CAUSAL = ("model", "task", "layer", "head", "kl")


def _empty(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series(dtype="object" if name in ("model", "task") else "float64") for name in columns}
    )


@dataclass(frozen=True)
class Measured:
    """Answers and causal scores of M models, on the probe and on own prompts of benchmarks.

    Attributes
    ----------
    answers : DataFrame
        model, task, means over prompts (`ANSWER_MEANS`), n_prompts.
    prompts : dict
        (model, task) -> confidences, a Series indexed by doc_id: joins labelled items.
    replies : dict
        (model, task) -> what was answered, lower case, a Series indexed by doc_id: joins the fitted models' answers.
    causal : DataFrame
        model, task, layer, head, kl: means over documents; -1 as in `schema.CAUSAL_COLUMNS`.
    fingerprints : dict
        (model, task) -> fingerprint of the task's data and the number of documents in it, where there is one: runs over different
        numbers of documents have different fingerprints of one data set.
    item_flops : dict
        (model, task) -> floating point operations of one answered document, where the run wrote its cost.
    checkpoints : DataFrame
        model and what is known of its training (columns of `schema.ZOO_CHECKPOINT_COLUMNS`).
    notes : tuple of str
    """

    answers: pd.DataFrame = field(default_factory=lambda: _empty(_ANSWERS))
    prompts: Mapping[tuple[str, str], pd.Series] = field(default_factory=dict)
    causal: pd.DataFrame = field(default_factory=lambda: _empty(_CAUSAL))
    fingerprints: Mapping[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    item_flops: Mapping[tuple[str, str], float] = field(default_factory=dict)
    checkpoints: pd.DataFrame = field(default_factory=lambda: _empty(("model",)))
    notes: tuple[str, ...] = ()
    replies: Mapping[tuple[str, str], pd.Series] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, columns in (("answers", _ANSWERS), ("causal", _CAUSAL)):
            frame = getattr(self, name)
            missing = [column for column in columns if column not in frame.columns]
            if missing:
                raise VisualHeadsError(
                    f"The measured {name} need the columns {', '.join(missing)}. Read them with read_measured."
                )
        for name, frame in (("answers", self.answers[list(ANSWER_MEANS)]), ("causal scores", self.causal[["kl"]])):
            if np.isinf(frame.to_numpy(dtype=np.float64)).any():
                raise VisualHeadsError(
                    f"Features must be finite or missing; the {name} hold an infinite one. Measure again."
                )
        if self.answers.duplicated(["model", "task"]).any() or self.checkpoints.duplicated(["model"]).any():
            raise VisualHeadsError(
                "A model has one row of answers per task and one of its training; one came twice. Keep one."
            )

    @classmethod
    def of_tables(cls, answers: Iterable[AnswerTable] = (), causal: Iterable[CausalTable] = ()) -> Self:
        """Means over documents of answer and causal tables, one model each."""
        said: list[dict[str, Any]] = []
        cut: list[pd.DataFrame] = []
        notes: list[str] = []
        prompts: dict[tuple[str, str], pd.Series] = {}
        replies: dict[tuple[str, str], pd.Series] = {}
        fingerprints: dict[tuple[str, str], tuple[str, int]] = {}
        flops: dict[tuple[str, str], float] = {}
        for table in answers:
            frame = table.frame
            for task, part in frame.groupby("task"):
                said.append({"model": table.model, "task": str(task), **answer_means(part)})
                prompts[table.model, str(task)] = part.set_index("doc_id")["confidence"].astype(float).sort_index()
                text = part.set_index("doc_id")["answer"].dropna().astype(str).str.lower().sort_index()
                if len(text):
                    replies[table.model, str(task)] = text
            for task, description in table.tasks.items():
                if description.get("fingerprint") is not None:
                    n = description.get("n_documents")
                    fingerprints[table.model, task] = str(description["fingerprint"]), n if isinstance(n, int) else -1
                cost = _item_flops(description)
                if cost is not None:
                    flops[table.model, task] = cost
            notes += table.notes
        for kl in causal:
            means = kl.frame.astype({"kl": "float64"}).groupby(["task", "layer", "head"], as_index=False)["kl"].mean()
            cut.append(means.assign(model=kl.model))
            notes += kl.notes
        return cls(
            pd.DataFrame(said, columns=list(_ANSWERS)) if said else _empty(_ANSWERS),
            prompts,
            pd.concat(cut, ignore_index=True)[list(_CAUSAL)] if cut else _empty(_CAUSAL),
            fingerprints,
            flops,
            notes=tuple(dict.fromkeys(notes)),
            replies=replies,
        )

    def with_checkpoints(self, checkpoints: pd.DataFrame | None) -> Self:
        """The same with what is known of the trainings: model, and columns of `schema.ZOO_CHECKPOINT_COLUMNS`."""
        if checkpoints is None:
            return self
        if "model" not in checkpoints.columns:
            raise VisualHeadsError("A table of checkpoints needs the column model. Write one row per checkpoint.")
        return replace(self, checkpoints=checkpoints)


def answer_means(frame: pd.DataFrame) -> dict[str, float]:
    """Means over the documents of one task of one model.

    The information is H(mean p) - mean H(p) over the tokens that are listed, everything else lumped into one: a lower bound that
    is exact where the 20 most probable tokens hold everything.
    """
    tokens: dict[Any, float] = {}
    entropies = []
    listed = frame[["top_tokens", "top_probabilities"]].dropna()
    for ids, shares in zip(listed["top_tokens"], listed["top_probabilities"], strict=True):
        p = np.asarray(shares, dtype=np.float64)
        if not len(p):
            continue
        rest = max(1.0 - float(p.sum()), 0.0)
        for token, share in [*zip(np.asarray(ids).tolist(), p.tolist(), strict=True), (None, rest)]:
            tokens[token] = tokens.get(token, 0.0) + share
        entropies.append(_entropy(np.append(p, rest)))
    information = float("nan")
    if entropies:
        information = max(_entropy(np.array(list(tokens.values())) / len(entropies)) - float(np.mean(entropies)), 0.0)
    return {
        "confidence": float(frame["confidence"].mean()),
        "entropy": float(frame["answer_entropy"].mean()),
        "information": information,
        "swap_kl": float(frame["swap_kl"].mean()),
        "blank_kl": float(frame["blank_kl"].mean()),
        "n_prompts": int(frame["confidence"].notna().sum()),
    }


def read_measured(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> Measured:
    """Answer and causal tables that are named, under folders, and beside named head tables; nothing where there are none.

    Raises
    ------
    VisualHeadsError
        As `tables.read_answer_tables`.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    found: dict[str, list[Path]] = {ANSWERS_SUFFIX: [], CAUSAL_SUFFIX: []}
    for path in given:
        for suffix, kept in found.items():
            if path.is_dir():
                kept += sorted(path.rglob(f"*{suffix}"))
            elif path.name.endswith(suffix):
                kept.append(path)
            elif path.name.endswith(HEADS_SUFFIX):
                beside = path.with_name(path.name.removesuffix(HEADS_SUFFIX) + suffix)
                kept += [beside] if beside.exists() else []
    answers, causal = (list(dict.fromkeys(kept)) for kept in found.values())
    return Measured.of_tables(
        read_answer_tables(answers) if answers else (), read_causal_tables(causal) if causal else ()
    )


def read_checkpoints(path: str | os.PathLike[str]) -> pd.DataFrame:
    """What is known of trainings: a CSV with the column model and columns of `schema.ZOO_CHECKPOINT_COLUMNS`.

    Raises
    ------
    VisualHeadsError
        No such file, no column model, one model twice, or a declared number that is none.
    """
    target = Path(path)
    if not target.is_file():
        raise VisualHeadsError(
            f"No such table of checkpoints: {target}. Write one row per checkpoint: model,training_loss,..."
        )
    try:
        frame = pd.read_csv(target)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise VisualHeadsError(f"A CSV file with the column model is required; {target} is none: {error}.") from error
    if "model" not in frame.columns or frame["model"].duplicated().any():
        raise VisualHeadsError(
            f"A table of checkpoints needs the column model, each name once; {target} has not. Mend it."
        )
    for name in (name for name in NUMBERS_OF_TRAINING if name in frame.columns):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise VisualHeadsError(f"Column {name!r} of {target} must hold numbers. Mend the cell or leave it empty.")
        if np.isinf(frame[name].to_numpy(dtype=np.float64)).any():
            raise VisualHeadsError(
                f"Features must be finite or missing; {name} of {target} holds an infinite one. Leave it empty."
            )
    return frame.astype({"model": str})


def _item_flops(description: Mapping[str, Any]) -> float | None:
    """Operations of one answer out of a task's metadata; None where they are not told."""
    answered = description.get("cost", {}).get("ordinary") if isinstance(description.get("cost"), Mapping) else None
    n = description.get("n_documents")
    if (
        not isinstance(answered, Mapping)
        or not isinstance(answered.get("flops"), int)
        or not isinstance(n, int)
        or n < 1
    ):
        return None
    return answered["flops"] / n


def _entropy(p: np.ndarray) -> float:
    there = p[p > 0]
    return float(-(there * np.log(there)).sum())


__all__ = ["ANSWER_MEANS", "NUMBERS_OF_TRAINING", "Measured", "answer_means", "read_checkpoints", "read_measured"]
