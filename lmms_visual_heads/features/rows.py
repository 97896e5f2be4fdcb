"""Head profiles -> one row of declared features per checkpoint, averaged over tasks. A missing feature is NaN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.declared import FEATURE_NAMES, FEATURES, Grid
from lmms_visual_heads.features.profiles import HeadProfiles
from lmms_visual_heads.schema import PROBE_TASKS


def feature_row(profile: pd.DataFrame) -> pd.Series:
    """The declared features of one model.

    Parameters
    ----------
    profile : DataFrame
        `schema.PROFILE_COLUMNS` of one model; every task in it counts the same.

    Returns
    -------
    Series
        One number per name in `FEATURE_NAMES`; NaN where no task has it.

    Raises
    ------
    VisualHeadsError
        When the profile has no row, or rows of several models.
    """
    if profile["model"].nunique() != 1:
        raise VisualHeadsError(f"A feature row needs the profile of one model; {profile['model'].nunique()} came.")
    values = np.array(
        [[feature.compute(_grid(part)) for feature in FEATURES] for _, part in profile.groupby("task", sort=True)]
    )
    there = np.isfinite(values)
    counts = there.sum(axis=0)
    totals = np.where(there, values, 0.0).sum(axis=0)
    row = np.full(len(FEATURES), np.nan)
    np.divide(totals, counts, out=row, where=counts > 0)
    return pd.Series(row, index=list(FEATURE_NAMES), name=profile["model"].iloc[0])


def feature_table(profiles: HeadProfiles, tasks: Iterable[str]) -> pd.DataFrame:
    """Feature rows of all models on the same tasks, shape [M, F], index: model.

    Raises
    ------
    VisualHeadsError
        When a model lacks one of the tasks.
    """
    wanted = list(tasks)
    rows = []
    for model, profile in profiles.frame.groupby("model", sort=True):
        missing = [task for task in wanted if task not in set(profile["task"])]
        if missing:
            raise VisualHeadsError(
                f"Heads on the tasks {', '.join(wanted)} are required; {model} has none on {', '.join(missing)}. "
                f"Run lmms-eval with --tasks {','.join(missing)} for it."
            )
        rows.append(feature_row(profile[profile["task"].isin(wanted)]))
    table = pd.DataFrame(rows, columns=list(FEATURE_NAMES))
    table.index.name = "model"
    return table


def common_tasks(profiles: HeadProfiles, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """Tasks that every model has: among `wanted`, or else among the probe tasks.

    Raises
    ------
    VisualHeadsError
        When there is none.
    """
    candidates = tuple(PROBE_TASKS if wanted is None else wanted)
    sets = [set(part["task"]) for _, part in profiles.frame.groupby("model")]
    common = tuple(task for task in candidates if sets and all(task in tasks for tasks in sets))
    if not common:
        found = ", ".join(sorted(set().union(*sets))) if sets else "no task"
        raise VisualHeadsError(
            f"Every model needs heads on at least one common task out of {', '.join(candidates)}; they have {found}. "
            "Run the probe for all of them: lmms-eval ... --tasks vhead."
        )
    return common


def _grid(part: pd.DataFrame) -> Grid:
    shape = (int(part["layer"].max()) + 1, int(part["head"].max()) + 1)

    def spread(name: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        values[part["layer"].to_numpy(), part["head"].to_numpy()] = part[name].to_numpy(
            dtype=np.float64, na_value=np.nan
        )
        return values

    return Grid(spread("image_attention"), spread("focus"), spread("region_lift"), spread("sink_attention"))
