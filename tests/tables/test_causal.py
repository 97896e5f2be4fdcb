"""Causal tables, and the columns that the answer table got later: round trips, merging, older files, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import METADATA_KEY, Column
from lmms_visual_heads.tables import (
    CAUSAL_COLUMNS,
    AnswerTable,
    AnswerTableWriter,
    CausalTable,
    CausalTableWriter,
    read_answer_table,
    read_causal_table,
    read_causal_tables,
)
from lmms_visual_heads.tables.journal import RunJournal
from tests.builders import synthetic
from tests.builders.paths import SAMPLES

HEADS = np.array([[0.1, 0.2], [np.nan, 0.4]])


def described(tasks: dict[str, int], **changes: Any) -> dict[str, Any]:
    document = synthetic.metadata("runs/a", **changes)
    one = next(iter(document["tasks"].values()))
    return {**document, "tasks": {task: {**one, "n_knockout": n} for task, n in tasks.items()}}


def write(path: Path, tasks: dict[str, int], shift: float = 0.0, **changes: Any) -> None:
    with CausalTableWriter(path, described(tasks, **changes)) as writer:
        for task, n in tasks.items():
            for doc_id in range(n):
                assert writer.add(task, doc_id, all=1.5, layers=[0.5, 0.6], heads=HEADS + shift, item_id=f"i{doc_id}")


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "a.causal.parquet", {"pope": 2})
    table = read_causal_table(tmp_path)
    assert table.kind == "causal"
    frame = table.frame
    assert list(frame.columns) == [c.name for c in CAUSAL_COLUMNS]
    assert (
        frame[["layer", "head"]].to_numpy().tolist() == [[-1, -1], [0, -1], [0, 0], [0, 1], [1, -1], [1, 0], [1, 1]] * 2
    )
    expected = np.array([1.5, 0.5, 0.1, 0.2, 0.6, np.nan, 0.4], dtype=np.float32)
    np.testing.assert_array_equal(frame.kl.to_numpy(), np.tile(expected, 2))
    assert frame.kl.dtype == np.float32
    assert frame.item_id.tolist() == ["i0"] * 7 + ["i1"] * 7
    raw = pq.read_table(tmp_path / "a.causal.parquet").column("kl")
    assert raw.null_count == 2, "a missing number is null, not NaN"


def test_only_what_was_measured_has_a_row(tmp_path: Path) -> None:
    with CausalTableWriter(tmp_path / "a.causal.parquet", described({"t": 3})) as writer:
        writer.add("t", 0, all=float("nan"))
        writer.add("t", 1, layers=[0.1, 0.2])
        writer.add("t", 2, heads=HEADS)
        assert not writer.add("t", 2, all=9.0), "a key stands once"
    frame = read_causal_table(tmp_path).frame
    assert frame.groupby("doc_id").size().to_dict() == {0: 1, 1: 2, 2: 4}
    assert frame.kl.isna().tolist() == [True, False, False, False, False, True, False]


def test_files_of_one_model_are_merged_by_the_documents_that_were_cut(tmp_path: Path) -> None:
    write(tmp_path / "1.causal.parquet", {"pope": 3, "mme": 0}, written="2026-01-01")
    write(tmp_path / "2.causal.parquet", {"mme": 2, "pope": 0}, written="2026-02-01")
    (table,) = read_causal_tables(tmp_path)
    assert table.frame.groupby("task").doc_id.nunique().to_dict() == {"pope": 3, "mme": 2}
    write(tmp_path / "3.causal.parquet", {"pope": 3}, shift=1.0, written="2026-03-01")
    again = read_causal_table(tmp_path)
    assert again.frame[again.frame.task == "pope"].kl.max() == pytest.approx(1.5)
    assert again.frame[(again.frame.task == "pope") & (again.frame["head"] == 0)].kl.min() == pytest.approx(1.1)
    assert any("measured twice" in note and "3.causal.parquet (it is newer)" in note for note in again.notes)


@pytest.mark.parametrize(
    "values",
    [{}, {"layers": [[1.0]]}, {"heads": [1.0]}, {"layers": [1.0], "heads": HEADS}],
    ids=["nothing", "layers", "heads", "both"],
)
def test_wrong_shapes_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    writer = CausalTableWriter(tmp_path / "a.causal.parquet")
    with pytest.raises(
        VisualHeadsError, match=r"one per layer \[L\] or one per head .* task 't', document 4 has others"
    ):
        writer.add("t", 4, **values)


def test_other_kinds_of_table_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.causal.parquet", {"pope": 1})
    with pytest.raises(VisualHeadsError, match=r"answers needs the columns n_images"):
        read_answer_table(tmp_path / "a.causal.parquet")
    with pytest.raises(VisualHeadsError, match=r"causal needs the columns layer, head, kl"):
        read_causal_table(SAMPLES / "schema_1.answers.parquet")


def test_rows_go_through_a_journal_and_merging_of_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmms_visual_heads.tables.journal.MOST_CHUNKS", 3)
    journal = RunJournal(tmp_path, "run", described({"t": 8}))
    for doc_id in reversed(range(8)):
        journal.add_causal("t", doc_id, all=0.5 + doc_id, heads=HEADS)
        journal.add_response({"task": "t", "doc_id": doc_id, "request": "control.knockout"})
        journal.flush()
    journal.close()
    again = RunJournal(tmp_path, "run", described({"t": 8}))
    assert sorted(one["doc_id"] for one in again.responses()) == list(range(8))
    writer = CausalTableWriter(tmp_path / "a.causal.parquet", described({"t": 7}))
    cut = {("t", doc_id) for doc_id in range(7)}
    again.merge({("t", 7)}, None, None, writer, cut)
    writer.close()
    again.remove()
    frame = read_causal_table(tmp_path).frame
    assert frame[frame["layer"] < 0].kl.tolist() == [0.5 + doc_id for doc_id in range(7)]


def answer(doc_id: int) -> dict[str, Any]:
    tokens = {"n_visual_tokens": 4, "n_prompt_tokens": 9, "n_answer_tokens": 2}
    return {"task": "t", "doc_id": doc_id, "n_images": 1, **tokens, "answer_token_index": 0, "confidence": 0.5}


def test_image_controls_join_rows_that_were_written_before(tmp_path: Path) -> None:
    first = AnswerTableWriter(tmp_path / "a.answers.parquet", described({"t": 0}))
    for doc_id in range(3):
        first.add(**answer(doc_id))
    first.close()
    kl = {("t", 0): {"swap_kl": 0.25, "blank_kl": None}, ("t", 2): {"blank_kl": 4.0}}
    second = AnswerTableWriter(tmp_path / "b.answers.parquet", described({"t": 0}), image_kl=kl)
    (batch,) = pq.read_table(tmp_path / "a.answers.parquet").combine_chunks().to_batches()
    for doc_id in range(3):
        second.append_batch(batch.slice(doc_id, 1), ("t", doc_id))
    second.close()
    frame = read_answer_table(tmp_path / "b.answers.parquet").frame
    np.testing.assert_array_equal(frame.swap_kl, np.array([0.25, np.nan, np.nan], dtype=np.float32))
    np.testing.assert_array_equal(frame.blank_kl, np.array([np.nan, np.nan, 4.0], dtype=np.float32))
    assert frame.confidence.tolist() == [0.5] * 3


def test_answer_tables_from_before_these_columns_still_read(tmp_path: Path) -> None:
    old = SAMPLES / "schema_1.answers.parquet"
    assert "swap_kl" not in pq.read_schema(old).names
    table = read_answer_table(old)
    added = ["swap_kl", "blank_kl", "answer"]
    assert table.frame[added].isna().all(axis=None)
    assert table.frame.confidence.tolist() == [0.5, 0.5]
    bare = table.frame.drop(columns=added)
    memory = AnswerTable.from_frame(bare, table.metadata)
    assert memory.frame[added].isna().all(axis=None)
    written = pa.Table.from_batches(list(memory.batches()))
    assert [written.column(name).null_count for name in added] == [2, 2, 2]
    with AnswerTableWriter(tmp_path / "new.answers.parquet", table.metadata) as writer:
        assert writer.append(bare) == 2
    pd.testing.assert_frame_equal(read_answer_table(tmp_path).frame, table.frame)


def test_a_wrong_type_is_named_and_a_later_column_must_be_nullable(tmp_path: Path) -> None:
    write(tmp_path / "a.causal.parquet", {"pope": 1})
    table = pq.read_table(tmp_path / "a.causal.parquet")
    position = table.schema.get_field_index("kl")
    wrong = table.set_column(position, "kl", table.column("kl").cast(pa.float64()))
    pq.write_table(
        wrong.replace_schema_metadata({METADATA_KEY: table.schema.metadata[METADATA_KEY]}),
        tmp_path / "w.causal.parquet",
    )
    with pytest.raises(VisualHeadsError, match=r"'kl' must hold float; .*w\.causal\.parquet holds double"):
        read_causal_table(tmp_path / "w.causal.parquet")
    with pytest.raises(ValueError, match="must be nullable"):
        Column("x", pa.int8(), "", "", added=True)
    assert CausalTable.suffix == ".causal.parquet"
