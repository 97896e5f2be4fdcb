"""Lineages: checkpoints of one training belong together, and are left out together.

CSV with the columns model, lineage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError


def read_lineages(path: str | os.PathLike[str]) -> dict[str, str]:
    """model -> lineage out of a CSV file.

    Raises
    ------
    VisualHeadsError
        No such file, not that CSV, an empty cell, or one model in two lineages.
    """
    target = Path(path)
    how = "Write one line per checkpoint: model,lineage."
    if not target.is_file():
        raise VisualHeadsError(f"No such lineage table: {target}. {how}")
    try:
        frame = pd.read_csv(target, dtype=str, comment="#", skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise VisualHeadsError(
            f"A CSV file with the columns model and lineage is required; {target} is none: {error}. {how}"
        ) from error
    if not {"model", "lineage"} <= set(frame.columns):
        raise VisualHeadsError(
            f"A lineage table needs the columns model and lineage; {target} has {', '.join(frame.columns)}. {how}"
        )
    if frame[["model", "lineage"]].isna().to_numpy().any():
        raise VisualHeadsError(
            f"Every row of a lineage table needs a model and a lineage; {target} has an empty cell. {how}"
        )
    lineages: dict[str, str] = {}
    for model, lineage in zip(frame["model"], frame["lineage"], strict=True):
        if lineages.setdefault(model, lineage) != lineage:
            raise VisualHeadsError(
                f"A model belongs to one lineage; {target} puts {model} into {lineages[model]} and {lineage}. Keep "
                "one row."
            )
    return lineages


def lineage_of(models: Iterable[str], lineages: Mapping[str, str] | None) -> dict[str, str]:
    """The lineage of every model; a model that is not named is its own lineage, told apart from named ones.

    >>> lineage_of(["a", "b"], {"a": "run 1"})
    {'a': 'run 1', 'b': 'b'}
    """
    known = dict(lineages or {})
    return {model: known.get(model, model) for model in models}
