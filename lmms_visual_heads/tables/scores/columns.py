"""Columns of the score table, one row per (model, benchmark), and the checks that every user of scores relies on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import Column

SCORE_COLUMNS = (
    Column("model", pa.string(), "", "model name; joins heads and scores"),
    Column("benchmark", pa.string(), "", "lmms-eval task name"),
    Column("metric", pa.string(), "", "the benchmark's primary metric"),
    Column("scale", pa.float64(), "", "the metric's best value: 1 or 100 (2800 for MME's sum)"),
    Column("score", pa.float64(), "scale", "the model's score on that scale"),
    Column("n_items", pa.int64(), "items", "items that were scored", nullable=True),
    Column("source", pa.string(), "", "file or publication that the score comes from"),
)

SCORE_REQUIRED = ("model", "benchmark", "score")
"""Columns that a score table must bring; the others have defaults."""

_PERCENT_LOOKS_REAL = 5.0
"""Above this many percent a benchmark's median makes scores of at most 1 look like fractions, not like percent."""
_MANY_SCORES = 20


def check_scores(frame: pd.DataFrame, where: str = "the score table") -> pd.DataFrame:
    """A clean copy of a score table: declared columns, one row per (model, benchmark), one scale per benchmark.

    Raises
    ------
    VisualHeadsError
        A column, name or score is missing; one model has two different scores of one benchmark; a benchmark has two
        metrics or scales; a score lies outside 0..scale; fractions stand beside percent.
    """
    missing = [name for name in SCORE_REQUIRED if name not in frame.columns]
    if missing:
        raise VisualHeadsError(
            f"A score table needs the columns {', '.join(SCORE_REQUIRED)}; {where} lacks {', '.join(missing)}."
        )
    clean = _with_defaults(frame, where)
    for name in ("model", "benchmark"):
        if clean[name].isna().any():
            raise VisualHeadsError(
                f"Every row of a score table needs a {name}; {where} has {int(clean[name].isna().sum())} rows "
                "without. Fill them in."
            )
    finite = np.isfinite(clean["score"].to_numpy(dtype=float)) & np.isfinite(clean["scale"].to_numpy(dtype=float))
    if not finite.all():
        row = clean[~finite].iloc[0]
        raise VisualHeadsError(
            f"Every score and scale must be a finite number; {where} has score {row['score']} of scale "
            f"{row['scale']} for "
            f"{row['model']} on {row['benchmark']}. Mend the row or leave it out."
        )
    clean = clean.drop_duplicates(["model", "benchmark", "score", "scale"], keep="first")
    _refuse_two_scores(clean, where)
    percent = _surely_percent(clean)
    for benchmark, rows in clean.groupby("benchmark", sort=True):
        _check_benchmark(str(benchmark), rows, where, percent)
    return clean.reset_index(drop=True)


def _with_defaults(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    clean = frame.copy()
    clean["score"] = _number(clean["score"], "score", where)
    if "scale" not in clean.columns:
        clean["scale"] = np.nan
    clean["scale"] = _number(clean["scale"], "scale", where)
    largest = clean.groupby("benchmark")["score"].transform("max")
    clean["scale"] = clean["scale"].fillna(largest.map(lambda value: 1.0 if value <= 1 else 100.0))
    for name, default in (("metric", "score"), ("source", where)):
        clean[name] = clean[name].fillna(default) if name in clean.columns else default
    if "n_items" not in clean.columns:
        clean["n_items"] = np.nan
    clean["n_items"] = _number(clean["n_items"], "n_items", where).round().astype("Int64")
    return clean[[c.name for c in SCORE_COLUMNS]]


def _number(column: pd.Series, name: str, where: str) -> pd.Series:
    try:
        # float() reads every printed number back exactly; pandas' own parser need not.
        return pd.Series([np.nan if pd.isna(v) else float(v) for v in column], index=column.index, dtype="float64")
    except (TypeError, ValueError) as error:
        raise VisualHeadsError(
            f"Column {name!r} of {where} must hold numbers: {error}. Mend the cell or leave it empty."
        ) from error


def _refuse_two_scores(clean: pd.DataFrame, where: str) -> None:
    twice = clean[clean.duplicated(["model", "benchmark"], keep=False)]
    if twice.empty:
        return
    model, benchmark = twice.iloc[0]["model"], twice.iloc[0]["benchmark"]
    values = twice[(twice["model"] == model) & (twice["benchmark"] == benchmark)]["score"]
    raise VisualHeadsError(
        f"A model has one score per benchmark; {where} has {' and '.join(f'{v:g}' for v in values)} for {model} on "
        f"{benchmark}. "
        "Keep the row that was measured over more items."
    )


def _surely_percent(clean: pd.DataFrame) -> pd.Index:
    """Rows of a model and source with twenty other scores in percent, at most one in twenty of 0..1: a small one is small."""
    percent = clean[clean["scale"] >= 100]
    by_source = [percent["model"], percent["source"]]
    small = ((percent["score"] > 0) & (percent["score"] <= 1)).groupby(by_source).transform("sum")
    large = (percent["score"] > 1).groupby(by_source).transform("sum")
    return percent.index[(large >= _MANY_SCORES) & (small * _MANY_SCORES <= large)]


def _check_benchmark(benchmark: str, rows: pd.DataFrame, where: str, percent: pd.Index) -> None:
    def example(row: pd.Series) -> str:
        return f"{row['score']:g} for {row['model']} (scale {row['scale']:g}, {row['metric']}, {row['source']})"

    for name in ("scale", "metric"):
        if rows[name].nunique() > 1:
            first = rows.iloc[0]
            other = rows[rows[name] != first[name]].iloc[0]
            raise VisualHeadsError(
                f"All scores of a benchmark need one {name}; {where} has {example(first)} beside {example(other)} "
                f"on {benchmark}. "
                f"Bring them to one {name}, or leave one source out."
            )
    scale = float(rows["scale"].iloc[0])
    outside = rows[(rows["score"] < 0) | (rows["score"] > scale * (1 + 1e-9))]
    inside = rows.drop(outside.index)
    if len(outside):
        worst = outside.iloc[0]
        beside = f" beside {example(inside.iloc[0])}" if len(inside) else ""
        raise VisualHeadsError(
            f"Scores of {benchmark} must lie in 0..{scale:g}; {where} has {example(worst)}{beside}. "
            "Fractions and percent must not be mixed: bring them to one scale."
        )
    fractions = rows[(rows["score"] > 0) & (rows["score"] <= 1) & ~rows.index.isin(percent)]
    others = rows.drop(fractions.index)
    if scale >= 100 and len(fractions) and len(others) and others["score"].median() > _PERCENT_LOOKS_REAL:
        raise VisualHeadsError(
            f"Scores of {benchmark} must be on one scale; {where} has {example(fractions.iloc[0])} beside "
            f"{example(others.iloc[0])}, "
            "which looks like a fraction beside percent. Bring them to one scale."
        )
