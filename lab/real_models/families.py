"""Families of the real models, and which of them are sealed. Looks at names only, never at a score.

`families.csv` is reviewed by hand, one row per model name of the tables: `family` (a developer's line; a model that was tuned
from another vision-language model's weights belongs to that model's family), `language_model` (empty where it is not
disclosed), `kinship` (the series of weights that the language model comes from; the family where it is not disclosed).
Two models are kin in the stricter sense when they share a family or a kinship.
`split.csv` says which families are sealed: written from the hash of their names before a score was looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError

FOLDER = Path(__file__).parent
FAMILIES = FOLDER / "families.csv"
SPLIT = FOLDER / "split.csv"

_COLUMNS = ["model", "family", "language_model", "kinship"]
_SEALED_SHARE = 3
"""One family in this many is sealed."""


def read_families(path: Path = FAMILIES) -> pd.DataFrame:
    """The reviewed table; index: model.

    Raises
    ------
    VisualHeadsError
        A column or a cell is missing, or a model stands twice.
    """
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != _COLUMNS:
        raise VisualHeadsError(
            f"A table of families needs the columns {', '.join(_COLUMNS)}; {path} has {', '.join(frame.columns)}."
        )
    empty = frame[(frame[["model", "family", "kinship"]] == "").any(axis=1)]
    if len(empty) or frame["model"].duplicated().any():
        raise VisualHeadsError(f"Every model needs one row with family and kinship; {path} has not. Mend it.")
    return frame.set_index("model")


def family_of(models: Iterable[str], families: pd.DataFrame) -> dict[str, str]:
    """model -> family.

    Raises
    ------
    VisualHeadsError
        A model that the reviewed table does not have.
    """
    names = list(models)
    missing = sorted(set(names) - set(families.index))
    if missing:
        raise VisualHeadsError(
            f"Every model needs a declared family; {', '.join(missing[:3])} has none. Add a row to {FAMILIES.name}."
        )
    return {name: str(families.at[name, "family"]) for name in names}


def digest(family: str) -> str:
    """The hash that decides whether a family is sealed."""
    return hashlib.sha256(f"real models: {family}".encode()).hexdigest()


def sealed_split(with_answers: Iterable[str], others: Iterable[str]) -> pd.DataFrame:
    """Which families are sealed: in either part the third with the smallest hash.

    Parameters
    ----------
    with_answers : iterable of str
        Families with a model in the answer table: few, so they are split by themselves.
    others : iterable of str
        All other families.

    Returns
    -------
    DataFrame
        family, has_answers, digest, sealed.
    """
    rows = []
    for has_answers, names in ((True, set(with_answers)), (False, set(others) - set(with_answers))):
        ordered = sorted(names, key=digest)
        n_sealed = round(len(ordered) / _SEALED_SHARE)
        rows += [(name, has_answers, digest(name)[:16], at < n_sealed) for at, name in enumerate(ordered)]
    return pd.DataFrame(rows, columns=["family", "has_answers", "digest", "sealed"])


def sealed_families(path: Path = SPLIT) -> frozenset[str]:
    """Families that are opened once, at the end."""
    frame = pd.read_csv(path, dtype={"family": str, "digest": str})
    return frozenset(frame.loc[frame["sealed"], "family"])
