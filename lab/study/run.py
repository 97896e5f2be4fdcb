"""A study from tables to its page: plan, judge, summarise, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from lab.study import figures, head_reliability, summary
from lab.study.contestants import PRODUCT, Contestant, contestants
from lab.study.judge import Sets, judge_all, trainings
from lab.study.page import StudyFrames, page
from lab.study.settings import OWN, plan
from lab.tables.zoo import ZooTables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.files import write_bytes

Folder = str | os.PathLike[str]


def write_study(
    folders: Sequence[Folder],
    out: Folder,
    held_out: Mapping[str, Folder] | None = None,
    *,
    folds: int = 4,
    draws: int = 1,
    seed: int = 0,
    work: Folder = "zoo-work/judged",
    jobs: int = 1,
    everyone: Sequence[Contestant] | None = None,
    progress: Callable[[int, int], None] | None = None,
    command: str = "python -m lab study",
) -> Path:
    """Judge everybody, and write the page with its tables.

    Parameters
    ----------
    folders : sequence of path
        Tables of measured zoos, studied as one.
    out : path
        Gets README.md, CSV tables and a picture.
    held_out : mapping of name to path
        Further trainings, asked about after one fit on everything studied.
    folds, draws, seed : int
        As `settings.plan`.
    work, jobs, everyone, progress
        As `judge.judge_all`; None: `contestants`.
    command : str
        Remakes it; stands on the page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    VisualHeadsError
        Fewer than three separate trainings, a held-out set with a training of the studied one, or as the readers.
    """
    further = tuple((name, Path(path)) for name, path in (held_out or {}).items())
    sets = Sets(tuple(Path(folder) for folder in folders), further)
    own = sets.tables(OWN)
    groups, notes = trainings(sets)
    if groups.nunique() < 3:
        raise VisualHeadsError(
            "A study needs at least three separate trainings, and at least 15 before a coverage means anything; "
            f"{groups.nunique()} came ({len(groups)} checkpoints). Train and measure more. " + " ".join(notes)
        )
    fits = plan(own, {name: sets.tables(name) for name, _ in further}, folds, draws, seed, groups)
    judged = judge_all(
        sets,
        fits,
        everyone or contestants(own.benchmarks),
        {str(model): str(name) for model, name in groups.items()},
        Path(work),
        jobs,
        progress,
    )
    frames = study_frames(judged, own, notes)
    target = Path(out)
    for name, frame in {
        "summary": frames.table, "differences": frames.differences, "benchmarks": frames.benchmarks, "strata": frames.strata,
        **{f"which_heads_{name}": frame for name, frame in frames.which.items()},
    }.items():  # fmt: skip
        write_bytes(target / f"{name}.csv", frame.round(3).to_csv(index=False, lineterminator="\n").encode())
    shown = judged[(judged["contestant"] == PRODUCT) & (judged["setting"] == "new_training") & (judged["draw"] == 0)]
    write_bytes(target / "predictions.csv", shown.round(3).to_csv(index=False, lineterminator="\n").encode())
    figures.save(figures.labels_figure(frames.table), target / "labels.svg")
    return write_bytes(target / "README.md", page(frames, command).encode())


def study_frames(judged: pd.DataFrame, own: ZooTables, notes: tuple[str, ...] = ()) -> StudyFrames:
    """The frames that the page is made of."""
    cells = summary.primary(judged)
    table = summary.summary(cells)
    headline = table[(table["contestant"] == PRODUCT) & (table["setting"] == "new_training") & (table["labels"] == 0)]
    shares = {name: [f"{share:.0%}" for share in headline[name]] for name in ("learnt", "at_chance")}
    facts = headline[["set", "n_trainings", "n_cells"]].assign(**shares)
    facts = facts.rename(columns={"n_trainings": "trainings", "n_cells": "cells", "at_chance": "at chance"})
    maps = head_reliability.head_maps(own)
    return StudyFrames(
        facts=facts,
        table=table,
        differences=summary.differences(cells),
        benchmarks=summary.by_benchmark(judged),
        strata=summary.by_stratum(judged),
        which={
            "split_half": head_reliability.split_half(maps),
            "stability": head_reliability.stability(maps, own.checkpoints),
            "depths": head_reliability.depths(maps, own.checkpoints),
            "features": head_reliability.feature_reliability(own),
        },
        notes=notes,
    )


__all__ = ["study_frames", "write_study"]
