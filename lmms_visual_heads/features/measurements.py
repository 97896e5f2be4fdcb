"""Everything that was measured of checkpoints, in one object: head profiles, answers, every prompt's confidence, knock-outs.

`read_measurements` is the one reader: head, answer and causal tables, and files of head profiles. Missing is NaN.
Units: probability 0..1, entropy and KL in nats.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.profiles import PROFILES_SUFFIX, HeadProfiles, read_profiles
from lmms_visual_heads.schema import ANSWERS_SUFFIX, CAUSAL_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables import AnswerTable, CausalTable, HeadTable, read_answer_tables, read_causal_tables

ANSWER_MEANS = ("confidence", "entropy", "information", "swap_kl", "blank_kl")
NUMBERS_OF_TRAINING = ("parameters", "layers", "visual_tokens", "tokens_seen", "flops", "training_loss")
_ANSWERS = ("model", "task", *ANSWER_MEANS, "n_prompts")
_CAUSAL = ("model", "task", "layer", "head", "kl")


def _empty(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series(dtype="object" if name in ("model", "task") else "float64") for name in columns}
    )


@dataclass(frozen=True)
class Measurements:
    """What was measured of M models: heads on the probe, answers and knock-outs on the probe and on benchmark prompts.

    Attributes
    ----------
    heads : HeadProfiles or None
        Head profiles with the metadata of their tables; None where no head was read.
    answers : DataFrame
        model, task, means over prompts (`ANSWER_MEANS`), n_prompts.
    prompts : dict
        (model, task) -> confidences, a Series indexed by doc_id: joins labelled items.
    replies : dict
        (model, task) -> what was answered, lower case, a Series indexed by doc_id: joins the fitted models' answers.
    causal : DataFrame
        model, task, layer, head, kl: means over documents; -1 as in `tables.CAUSAL_COLUMNS`.
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
    heads: HeadProfiles | None = None

    def __post_init__(self) -> None:
        for name, columns in (("answers", _ANSWERS), ("causal", _CAUSAL)):
            frame = getattr(self, name)
            missing = [column for column in columns if column not in frame.columns]
            if missing:
                raise VisualHeadsError(
                    f"The measured {name} need the columns {', '.join(missing)}. Read them with read_measurements."
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

    def __repr__(self) -> str:
        parts = []
        if self.heads is not None:
            parts.append(f"heads ({_counted(self.heads.frame['task'].nunique(), 'task')})")
        for name, frame in (("answers", self.answers), ("knock-outs", self.causal)):
            if len(frame):
                parts.append(f"{name} ({_counted(frame['task'].nunique(), 'task')})")
        return f"<Measurements of {_counted(len(self.models), 'model')}: {', '.join(parts) or 'nothing'}>"

    @property
    def models(self) -> list[str]:
        """Names of all models, sorted."""
        named = set(self.answers["model"]) | set(self.causal["model"]) | {model for model, _ in self.prompts}
        return sorted(map(str, named | set(() if self.heads is None else self.heads.models)))

    def only(self, models: Iterable[str]) -> Self:
        """What was measured of some of the models."""
        wanted = {str(model) for model in models}

        def rows(frame: pd.DataFrame) -> pd.DataFrame:
            return frame[frame["model"].isin(wanted)].reset_index(drop=True)

        return replace(
            self,
            answers=rows(self.answers),
            causal=rows(self.causal),
            checkpoints=rows(self.checkpoints),
            prompts={key: value for key, value in self.prompts.items() if key[0] in wanted},
            replies={key: value for key, value in self.replies.items() if key[0] in wanted},
            fingerprints={key: value for key, value in self.fingerprints.items() if key[0] in wanted},
            item_flops={key: value for key, value in self.item_flops.items() if key[0] in wanted},
            heads=None if self.heads is None else self.heads.only(wanted),
        )

    def without_heads(self) -> Self:
        """The same without head profiles."""
        return replace(self, heads=None)

    @classmethod
    def join(cls, several: Iterable[Measurements]) -> Self:
        """One object out of several; what two of them hold of one model's task is refused.

        Raises
        ------
        VisualHeadsError
            When a model has heads, or answers to one task, twice.
        """
        parts = list(several)
        heads = [part.heads for part in parts if part.heads is not None]

        def frames(name: str, columns: Sequence[str]) -> pd.DataFrame:
            filled = [frame for part in parts if len(frame := getattr(part, name))]
            return pd.concat(filled, ignore_index=True) if filled else _empty(columns)

        def mappings(name: str) -> dict[tuple[str, str], Any]:
            return {key: value for part in parts for key, value in getattr(part, name).items()}

        return cls(
            answers=frames("answers", _ANSWERS),
            prompts=mappings("prompts"),
            causal=frames("causal", _CAUSAL),
            fingerprints=mappings("fingerprints"),
            item_flops=mappings("item_flops"),
            checkpoints=frames("checkpoints", ("model",)),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            replies=mappings("replies"),
            heads=HeadProfiles.join(heads) if heads else None,
        )

    @classmethod
    def of_tables(
        cls,
        answers: Iterable[AnswerTable] = (),
        causal: Iterable[CausalTable] = (),
        heads: HeadProfiles | None = None,
    ) -> Self:
        """Means over documents of answer and causal tables, one model each, beside head profiles.

        Parameters
        ----------
        answers : iterable of AnswerTable
        causal : iterable of CausalTable
        heads : HeadProfiles or None
        """
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
            notes=tuple(dict.fromkeys([*(() if heads is None else heads.notes), *notes])),
            replies=replies,
            heads=heads,
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


def read_measurements(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    checkpoints: pd.DataFrame | str | os.PathLike[str] | None = None,
) -> Measurements:
    """Read everything that was measured under `paths`: heads, answers and knock-outs of any number of models.

    Parameters
    ----------
    paths : path, or several
        Folders (searched through), head tables (the answer and causal tables beside them come along), answer tables, causal
        tables, files of head profiles.
    checkpoints : DataFrame, path or None
        What is known of the trainings: model, and columns such as training_loss, tokens_seen, flops.

    Returns
    -------
    Measurements
        `heads` is None where no head table and no head profile was found, but answers were.

    Raises
    ------
    VisualHeadsError
        No table at all; a table that is damaged, of a newer version, or of a model that comes twice with other data.

    Examples
    --------
    >>> from lmms_visual_heads import read_measurements
    >>> from lmms_visual_heads.demo.measured import measured_folder
    >>> read_measurements(measured_folder())
    <Measurements of 22 models: heads (3 tasks), answers (5 tasks), knock-outs (5 tasks)>
    """
    named = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    tables: dict[str, list[Path]] = {ANSWERS_SUFFIX: [], CAUSAL_SUFFIX: []}
    heads: list[Path] = []
    for path in named:
        for suffix, collected in tables.items():
            if path.is_dir():
                collected += sorted(path.rglob(f"*{suffix}"))
            elif path.name.endswith(suffix):
                collected.append(path)
            elif path.name.endswith(HEADS_SUFFIX):
                beside = path.with_name(path.name.removesuffix(HEADS_SUFFIX) + suffix)
                collected += [beside] if beside.exists() else []
        if not path.name.endswith((ANSWERS_SUFFIX, CAUSAL_SUFFIX)) and (not path.is_dir() or _holds_heads(path)):
            heads.append(path)
    answers, causal = (list(dict.fromkeys(collected)) for collected in tables.values())
    if not (heads or answers or causal) and all(path.is_dir() for path in named):
        raise VisualHeadsError(
            f"A folder with head or answer tables is required; {', '.join(map(str, named)) or 'no path'} has none. Run the probe "
            "first, or name the folder that its heads= argument wrote to."
        )
    # What is no folder and no table is named by the reader of head tables.
    profiles = read_profiles(heads or named) if heads or not (answers or causal) else None
    measurements = Measurements.of_tables(
        read_answer_tables(answers) if answers else (), read_causal_tables(causal) if causal else (), profiles
    )
    known = (
        checkpoints if checkpoints is None or isinstance(checkpoints, pd.DataFrame) else read_checkpoints(checkpoints)
    )
    return measurements.with_checkpoints(known)


def _holds_heads(folder: Path) -> bool:
    return any(any(folder.rglob(f"*{suffix}")) for suffix in (HEADS_SUFFIX, PROFILES_SUFFIX))


def as_measurements(source: Any) -> Measurements:
    """Measurements out of what people hold in their hands: themselves, paths, head profiles, head tables.

    Raises
    ------
    VisualHeadsError
        For anything else: a bare frame does not say which probe it comes from.
    """
    if isinstance(source, Measurements):
        return source
    if isinstance(source, HeadProfiles):
        return Measurements(heads=source, notes=source.notes)
    if isinstance(source, HeadTable):
        return as_measurements(HeadProfiles.from_tables([source]))
    if isinstance(source, str | os.PathLike):
        return read_measurements(source)
    if isinstance(source, Iterable) and not isinstance(source, pd.DataFrame | bytes | Mapping):
        entries = list(source)
        if not entries:
            raise VisualHeadsError("Measurements of at least one model are required; none came. Name head tables.")
        if all(isinstance(entry, str | os.PathLike) for entry in entries):
            return read_measurements(entries)
        if all(isinstance(entry, Measurements | HeadProfiles | HeadTable) for entry in entries):
            return Measurements.join(as_measurements(entry) for entry in entries)
        source = next(entry for entry in entries if not isinstance(entry, Measurements | HeadProfiles | HeadTable))
    raise VisualHeadsError(
        f"Measurements, or paths of head tables, are required; a {type(source).__name__} came. Read them with "
        "lmms_visual_heads.read_measurements(paths)."
    )


def read_measured(paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> Measurements:
    """Deprecated: `read_measurements`, which reads heads, too."""
    warnings.warn(
        "read_measured is now lmms_visual_heads.read_measurements, which reads heads, too",
        DeprecationWarning,
        stacklevel=2,
    )
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    return read_measurements(named).without_heads() if named else Measurements()


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


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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


__all__ = [
    "ANSWER_MEANS",
    "NUMBERS_OF_TRAINING",
    "Measurements",
    "answer_means",
    "as_measurements",
    "read_checkpoints",
    "read_measurements",
]
