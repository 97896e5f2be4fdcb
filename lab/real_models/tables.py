"""Real answers of real models as tables of the product's own formats: importing them, and reading them again.

`right_wrong.items.parquet` and `answers.items.parquet` are item tables (`tables.ITEM_COLUMNS`, and `group`): rotated copies of one
MMBench question, and variants of one DynaMath question, share a group, and are never split between known and unknown.
`answers.parquet` holds the logits of the six options at the first answer token, `questions.parquet` the right letter.
`scores.csv` is the score table that follows from the items. Nothing here looks at a score.
Units: correct 0 or 1, logits in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lab.real_models.families import family_of, read_families
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables import ITEM_COLUMNS, write_scores

LETTERS = tuple("ABCDEF")
"""Options of the answer table: E is "I don't know", F "none of the above"; the source added both to every question."""
LOGITS = tuple(f"logit_{letter}" for letter in LETTERS)

TABLES = Path("reports/real_models/tables")
RIGHT_WRONG = "right_wrong.items.parquet"
ANSWERS_ITEMS = "answers.items.parquet"
ANSWERS = "answers.parquet"
QUESTIONS = "questions.parquet"
SCORES = "scores.csv"

_ROTATION = 1_000_000
"""MMBench numbers the copies of a question with rotated options n, n + 1e6, n + 2e6, ..."""
_PARENTS = {"mmbench": "MMBench", "oodcv": "OOD-CV"}
_DYNAMATH = "DynaMath"
_VARIANTS = 10
_SOURCES = {
    "AI2D_TEST": "IMNearth/AutoJudger",
    "MMMU_DEV_VAL": "IMNearth/AutoJudger",
    "MMT-Bench_VAL": "IMNearth/AutoJudger",
    _DYNAMATH: "DynaMath/DynaMath",
}
_ANSWERS_SOURCE = "EnSec-AI/VLM-Uncertainty-Bench"
_MOST_BYTES = 8_000_000


def import_tables(source: Path, out: Path = TABLES) -> list[Path]:
    """Write the tables from the files of `source`.

    Parameters
    ----------
    source : path
        Folder with answers_26x7221.parquet, correct_169models.parquet and dynamath_correct.parquet.
    out : path

    Returns
    -------
    list of path

    Raises
    ------
    VisualHeadsError
        A file is missing, an item stands twice, a model has no family, or the tables grow beyond 8 MB.
    """
    raw = {
        name: _read(source / f"{name}.parquet") for name in ("answers_26x7221", "correct_169models", "dynamath_correct")
    }
    answers = raw["answers_26x7221"]
    benchmark = answers["category"].astype(str) + " (" + answers["benchmark"].astype(str).map(_PARENTS) + ")"
    answers = pd.DataFrame(
        {
            "model": answers["model"].astype(str),
            "benchmark": benchmark,
            "doc_id": answers["item"].astype("int32"),
            "answer": answers["answer"].astype(str),
            "correct": _right(answers),
            # MMBench: the number without the rotation. OOD-CV: every question is its own group.
            "group": np.where(answers["benchmark"] == "mmbench", answers["item"] % _ROTATION, answers["item"]),
            **{name: answers[name].astype("float32") for name in LOGITS},
        }
    )
    right_wrong = pd.concat([_autojudger(raw["correct_169models"]), _dynamath(raw["dynamath_correct"])])
    out.mkdir(parents=True, exist_ok=True)
    key = ["benchmark", "doc_id"]
    questions = answers[[*key, "group", "answer"]].drop_duplicates()
    if questions.duplicated(key).any():
        raise VisualHeadsError("A question has one right answer and one group; one has two. Look at the source again.")
    written = [
        _write_items(right_wrong, out / RIGHT_WRONG),
        _write_items(answers, out / ANSWERS_ITEMS),
        _write(answers[["model", *key, *LOGITS]], ["benchmark", "model", "doc_id"], out / ANSWERS),
        _write(questions.astype({"group": "int32"}), key, out / QUESTIONS),
        _write_scores(right_wrong, answers, out / SCORES),
    ]
    size = sum(path.stat().st_size for path in written)
    if size > _MOST_BYTES:
        raise VisualHeadsError(f"The tables may take {_MOST_BYTES} bytes; they take {size}.")
    return written


def read_table(name: str, folder: Path = TABLES) -> pd.DataFrame:
    """One of the tables.

    Raises
    ------
    VisualHeadsError
        When it has not been imported.
    """
    return _read(folder / name)


def matrix(items: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Right and wrong of one benchmark, [M models, N items], float32; models that did not answer every item are left out."""
    rows = items[items["benchmark"] == benchmark]
    if rows.empty:
        raise VisualHeadsError(f"No item of {benchmark}. One of {', '.join(sorted(set(items['benchmark'])))} is there.")
    wide = rows.pivot(index="model", columns="doc_id", values="correct")
    return wide[wide.notna().all(axis=1)].astype("float32")


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise VisualHeadsError(
            f"No such table: {path}. Write the tables with: python -m lab real-models import SOURCE."
        )
    return pd.read_parquet(path)


def _right(answers: pd.DataFrame) -> np.ndarray:
    """1 where the most probable option is the right letter."""
    best = answers[list(LOGITS)].to_numpy(dtype=np.float64).argmax(axis=1)
    return (np.array(LETTERS)[best] == answers["answer"].astype(str).to_numpy()).astype(np.float32)


def _autojudger(correct: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": correct["model"].astype(str),
            "benchmark": correct["benchmark"].astype(str),
            "doc_id": correct["item"].astype("int32"),
            "correct": correct["correct"].astype("float32"),
            "group": correct["item"].astype("int32"),
        }
    )


def _dynamath(table: pd.DataFrame) -> pd.DataFrame:
    """Long rows; the sheet's rows without a question's number are sums and notes."""
    named = table["Question ID"].astype(str).str.fullmatch(r"Q\d+")
    rows = table[named]
    question = rows["Question ID"].str[1:].astype(int)
    variant = rows[rows.columns[1]].str.removeprefix("Variant ").astype(int)
    doc_id = ((question - 1) * _VARIANTS + variant - 1).astype("int32")
    wide = rows[rows.columns[2:]].set_axis(pd.Index(doc_id, name="doc_id"))
    long = wide.melt(var_name="model", value_name="correct", ignore_index=False).reset_index()
    return pd.DataFrame(
        {
            "model": long["model"].astype(str),
            "benchmark": _DYNAMATH,
            "doc_id": long["doc_id"].astype("int32"),
            "correct": long["correct"].astype("float32"),
            "group": (long["doc_id"] // _VARIANTS).astype("int32"),
        }
    )


def _write_items(items: pd.DataFrame, path: Path) -> Path:
    names = [column.name for column in ITEM_COLUMNS]
    key = names[:3]
    if items.duplicated(key).any():
        twice = items[items.duplicated(key)].iloc[0]
        raise VisualHeadsError(f"An item has one label; document {twice['doc_id']} of {twice['benchmark']} has two.")
    family_of(items["model"].unique(), read_families())
    return _write(items[[*names, "group"]].astype({"group": "int32"}), ["benchmark", "model", "doc_id"], path)


def _write(frame: pd.DataFrame, order: Sequence[str], path: Path) -> Path:
    table = pa.Table.from_pandas(frame.sort_values(list(order)), preserve_index=False).replace_schema_metadata(None)
    numbers = [name for name in ("doc_id", "group") if name in table.column_names]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in table.column_names if name not in numbers],
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
    )
    return path


def _write_scores(right_wrong: pd.DataFrame, answers: pd.DataFrame, path: Path) -> Path:
    items = pd.concat([right_wrong, answers[right_wrong.columns]])
    scores = items.groupby(["model", "benchmark"], sort=True)["correct"].agg(["mean", "size"]).reset_index()
    table = pd.DataFrame(
        {
            "model": scores["model"],
            "benchmark": scores["benchmark"],
            "metric": "accuracy",
            "scale": 1.0,
            "score": scores["mean"].astype(float).round(6),
            "n_items": scores["size"],
            "source": scores["benchmark"].map(_SOURCES).fillna(_ANSWERS_SOURCE),
        }
    )
    return write_scores(table, path)
