"""Head and answer tables on disk: round trips, streaming, merging, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import METADATA_KEY, SCHEMA_VERSION
from lmms_visual_heads.tables import (
    ANSWER_COLUMNS,
    HEAD_COLUMNS,
    STATISTICS_BITS,
    AnswerTableWriter,
    HeadTable,
    HeadTableWriter,
    read_answer_table,
    read_head_table,
    read_head_tables,
)
from tests.builders import synthetic
from tests.builders.paths import SAMPLES


def write(
    path: Path, name: str = "runs/a", seed: int = 0, tasks: tuple[str, ...] = synthetic.TASKS, **changes: Any
) -> pd.DataFrame:
    """Write a small finished head table and give its rows."""
    documents = changes.pop("documents", 6)
    frame = synthetic.head_rows(np.random.default_rng(seed), documents=documents, tasks=tasks)
    document = synthetic.metadata(name, **changes)
    document["tasks"] = {task: {**document["tasks"][task], "n_documents": documents} for task in tasks}
    with HeadTableWriter(path, document) as writer:
        writer.append(frame)
    return frame


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    frame = write(tmp_path / "a.heads.parquet")
    table = read_head_table(tmp_path / "a.heads.parquet")
    assert list(table.frame.columns) == [c.name for c in HEAD_COLUMNS]
    assert table.model == "runs/a"
    assert table.query == "first_generated"
    assert table.metadata["schema_version"] == SCHEMA_VERSION
    for column in HEAD_COLUMNS:
        expected, found = frame[column.name], table.frame[column.name]
        if pa.types.is_floating(column.type):
            np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy().astype(np.float32))
        else:
            assert found.tolist() == expected.tolist()


def test_metadata_units_and_meanings_stand_where_pyarrow_users_look(tmp_path: Path) -> None:
    write(tmp_path / "a.heads.parquet")
    schema = pq.read_table(tmp_path / "a.heads.parquet").schema
    assert json.loads(schema.metadata[METADATA_KEY])["model"]["name"] == "runs/a"
    assert schema.field("focus").metadata[b"unit"] == b"nats"
    assert METADATA_KEY in pq.read_metadata(tmp_path / "a.heads.parquet").metadata


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(0, 1, width=32) | st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    ),
    item=st.none() | st.text(max_size=8),
    share=st.none() | st.floats(0, 1, width=32),
)
def test_documents_round_trip(tmp_path: Path, values: np.ndarray, item: str | None, share: float | None) -> None:
    path = tmp_path / "round.heads.parquet"
    writer = HeadTableWriter(path)
    counts = {"n_visual_tokens": 4, "n_patch_tokens": 4, "n_prompt_tokens": 9}
    assert writer.add("vhead_super", 3, {"image_attention": values}, item_id=item, region_share=share, **counts)
    assert writer.n_not_finite == np.isinf(values).sum()
    writer.close(synthetic.metadata("m", *values.shape))
    frame = read_head_table(path).frame
    grid = frame.pivot(index="layer", columns="head", values="image_attention").to_numpy()
    np.testing.assert_allclose(grid, np.where(np.isfinite(values), values, np.nan), rtol=2.0**-STATISTICS_BITS)
    assert frame["item_id"].isna().all() if item is None else (frame["item_id"] == item).all()
    assert frame["region_share"].isna().all() if share is None else (frame["region_share"] == np.float32(share)).all()
    assert frame["focus"].isna().all()


def test_missing_values_are_null_in_the_file(tmp_path: Path) -> None:
    frame = synthetic.head_rows(np.random.default_rng(0), documents=1, tasks=("vhead_obj",))
    frame.loc[2, ["focus", "sink_attention"]] = np.nan
    writer = HeadTableWriter(tmp_path / "a.heads.parquet")
    writer.append(frame)
    writer.close(synthetic.metadata("a"))
    column = pq.read_table(tmp_path / "a.heads.parquet").column("focus")
    assert column.null_count == 1
    assert not np.isnan(column.drop_null().to_numpy()).any()


def test_a_key_stands_once_and_the_first_record_wins(tmp_path: Path) -> None:
    writer = HeadTableWriter(tmp_path / "a.heads.parquet")
    counts = {"n_visual_tokens": 4, "n_patch_tokens": 4, "n_prompt_tokens": 9}
    assert writer.add("t", 0, {"image_attention": np.full((2, 2), 0.25)}, **counts)
    assert not writer.add("t", 0, {"image_attention": np.full((2, 2), 0.75)}, **counts)
    repeated = pd.concat(
        [synthetic.head_rows(np.random.default_rng(1), layers=2, heads=2, documents=2, tasks=("t",))] * 2
    )
    assert writer.append(repeated) == 4
    assert writer.append(repeated) == 0
    writer.close(synthetic.metadata("a", 2, 2))
    frame = pq.read_table(tmp_path / "a.heads.parquet").to_pandas()
    assert not frame.duplicated(["task", "doc_id", "layer", "head"]).any()
    assert (frame[frame["doc_id"] == 0]["image_attention"] == 0.25).all()


def test_rows_stream_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadTableWriter, "rows_per_group", 24)
    counts = {"n_visual_tokens": 4, "n_patch_tokens": 4, "n_prompt_tokens": 9}
    writer = HeadTableWriter(tmp_path / "b.heads.parquet")
    for doc_id in range(10):
        writer.add("vhead_obj", doc_id, {"image_attention": np.zeros((3, 4))}, **counts)
        assert len(writer._pending) < 2
    writer.close(synthetic.metadata("b"))
    assert pq.ParquetFile(tmp_path / "b.heads.parquet").num_row_groups == 5


def test_a_document_of_a_large_model_stays_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    writer = HeadTableWriter(tmp_path / "a.heads.parquet")
    for doc_id in range(64):
        weights = np.exp(random.normal(-2, 2, (32, 32, 64)))
        rows = weights / (weights.sum(-1, keepdims=True) + np.exp(random.normal(2, 3, (32, 32, 1))))
        image = rows.sum(-1)
        share = rows / image[..., None]
        focus = np.log(64) + (share * np.log(share)).sum(-1)
        statistics = {
            "image_attention": image,
            "focus": focus,
            "concentration": focus / np.log(64),
            "visual_head_score": image * focus / np.log(64),
            "region_attention": rows[..., :8].sum(-1),
            "sink_attention": (1 - image) * 0.7,
            "newline_attention": np.zeros((32, 32)),
        }
        writer.add("t", doc_id, statistics, n_visual_tokens=576, n_patch_tokens=576, n_prompt_tokens=620)
    path = writer.close(synthetic.metadata("a", 32, 32))
    assert path.stat().st_size / 64 < 21 * 1024


def test_nothing_carries_the_final_name_before_close(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.heads.parquet"
    writer = HeadTableWriter(path)
    writer.append(synthetic.head_rows(np.random.default_rng(0)))
    assert not path.exists()
    assert writer.part.exists()
    assert writer.close(synthetic.metadata("a")) == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(VisualHeadsError, match="is closed"):
        writer.close(synthetic.metadata("a"))


def test_two_writers_of_one_name_do_not_share_a_part(tmp_path: Path) -> None:
    one, two = HeadTableWriter(tmp_path / "a.heads.parquet"), HeadTableWriter(tmp_path / "a.heads.parquet")
    assert one.part != two.part
    for writer in (one, two):
        writer.append(synthetic.head_rows(np.random.default_rng(0)))
        writer.close(synthetic.metadata("a"))
    assert len(read_head_table(tmp_path).frame) == 3 * 6 * 12


def test_an_aborted_run_keeps_its_rows_readable_and_is_not_taken_for_a_table(tmp_path: Path) -> None:
    def run() -> None:
        with HeadTableWriter(tmp_path / "a.heads.parquet") as writer:
            writer.append(synthetic.head_rows(np.random.default_rng(0)))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()
    kept = tmp_path / "a.heads.parquet.unfinished"
    assert pq.read_table(kept).num_rows == 3 * 6 * 12
    assert "boom" in json.loads(pq.read_schema(kept).metadata[METADATA_KEY])["unfinished"]
    with pytest.raises(VisualHeadsError, match=r"only 1 of unfinished runs\. Run the probe first"):
        read_head_table(tmp_path)
    with pytest.raises(VisualHeadsError, match="belongs to a run that did not finish"):
        read_head_table(kept)
    write(tmp_path / "b.heads.parquet")
    table = read_head_table(tmp_path)
    assert table.paths == (tmp_path / "b.heads.parquet",)
    assert any("its run did not finish" in note for note in table.notes)
    renamed = shutil.copy(kept, tmp_path / "sly.heads.parquet")
    with pytest.raises(VisualHeadsError, match="did not finish"):
        read_head_table(renamed)


def test_a_folder_that_cannot_be_written_is_found_out_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VisualHeadsError, match=r"A folder that can be written is required; .* cannot"):
        HeadTableWriter(tmp_path / "file" / "a.heads.parquet")


def test_unknown_and_missing_columns_are_named(tmp_path: Path) -> None:
    writer = HeadTableWriter(tmp_path / "a.heads.parquet")
    frame = synthetic.head_rows(np.random.default_rng(0))
    with pytest.raises(VisualHeadsError, match="missing: focus; unknown: entropy"):
        writer.append(frame.rename(columns={"focus": "entropy"}))
    with pytest.raises(VisualHeadsError, match="unknown: entropy"):
        writer.add("t", 0, {"entropy": np.zeros((2, 2))}, n_visual_tokens=1, n_patch_tokens=1, n_prompt_tokens=1)
    with pytest.raises(VisualHeadsError, match=r"one shape \[layers, heads\]"):
        writer.add(
            "t", 0, {"focus": np.zeros((2, 2)), "image_attention": np.zeros((2, 3))},
            n_visual_tokens=1, n_patch_tokens=1, n_prompt_tokens=1,
        )  # fmt: skip
    with pytest.raises(VisualHeadsError, match="'model'"):
        writer.close({"query": "first_generated"})


def test_answers_round_trip(tmp_path: Path) -> None:
    writer = AnswerTableWriter(tmp_path / "a.answers.parquet")
    counts = {"n_images": 1, "n_visual_tokens": 4, "n_prompt_tokens": 9, "n_answer_tokens": 2, "answer_token_index": 0}
    top = {"top_tokens": [3, 1], "top_probabilities": np.array([0.5, 0.25])}
    assert writer.add("pope", 0, confidence=0.5, answer="Yes.", **top, **counts)
    assert not writer.add("pope", 0, confidence=0.9, answer="no", **counts)
    assert writer.add("pope", 1, item_id="x", **counts)
    with pytest.raises(VisualHeadsError, match="missing: n_images"):
        writer.add("pope", 2, **{**counts, "n_images": None})
    document = synthetic.metadata("a")
    document["tasks"] = {"pope": {"fingerprint": "0", "n_documents": 2}}
    writer.close(document)
    frame = read_answer_table(tmp_path).frame
    assert list(frame.columns) == [c.name for c in ANSWER_COLUMNS]
    assert list(frame["top_tokens"][0]) == [3, 1]
    assert frame["confidence"].tolist()[0] == 0.5
    assert np.isnan(frame["confidence"][1])
    assert frame["top_tokens"][1] is None
    assert frame["answer"].dropna().to_dict() == {0: "Yes."}


def test_the_sample_of_schema_1_still_reads() -> None:
    table = read_head_table(SAMPLES / "schema_1.heads.parquet")
    assert table.model == "samples/schema-1"
    assert len(table.frame) == 8
    assert table.frame["focus"].isna().sum() == 1
    assert table.frame["image_attention"].iloc[0] == pytest.approx(0.206912, abs=1e-6)
    assert read_answer_table(SAMPLES / "schema_1.answers.parquet").frame["confidence"].tolist() == [0.5, 0.5]


class TestRefused:
    def test_newer_schema(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "a.heads.parquet", schema_version=1)
        table = pq.read_table(tmp_path / "a.heads.parquet")
        document = {**json.loads(table.schema.metadata[METADATA_KEY]), "schema_version": SCHEMA_VERSION + 1}
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: json.dumps(document)}), tmp_path / "new.heads.parquet"
        )
        with pytest.raises(VisualHeadsError, match=r"new\.heads\.parquet has version 2\. Upgrade with: pip install"):
            read_head_table(tmp_path / "new.heads.parquet")

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
    def test_truncated(self, tmp_path: Path, keep: float) -> None:
        write(tmp_path / "a.heads.parquet")
        content = (tmp_path / "a.heads.parquet").read_bytes()
        (tmp_path / "cut.heads.parquet").write_bytes(content[: int(keep * len(content))])
        with pytest.raises(VisualHeadsError, match=r"cut\.heads\.parquet is truncated or not Parquet"):
            read_head_table(tmp_path / "cut.heads.parquet")

    def test_damage_behind_the_footer(self, tmp_path: Path) -> None:
        write(tmp_path / "a.heads.parquet")
        content = bytearray((tmp_path / "a.heads.parquet").read_bytes())
        content[4:2000] = b"\xff" * 1996
        (tmp_path / "bad.heads.parquet").write_bytes(content)
        with pytest.raises(VisualHeadsError, match=r"bad\.heads\.parquet is truncated or not Parquet"):
            _ = read_head_table(tmp_path / "bad.heads.parquet").frame

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "text.heads.parquet").write_text("hello")
        with pytest.raises(VisualHeadsError, match="not Parquet"):
            read_head_table(tmp_path / "text.heads.parquet")
        pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
        with pytest.raises(VisualHeadsError, match="lacks its metadata"):
            read_head_table(tmp_path / "foreign.parquet")
        with pytest.raises(VisualHeadsError, match=r"No such file or folder: .*nowhere"):
            read_head_table(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(VisualHeadsError, match=r"has none\. Run the probe first"):
            read_head_table(tmp_path / "empty")

    def test_missing_column_and_wrong_kind(self, tmp_path: Path) -> None:
        write(tmp_path / "a.heads.parquet")
        table = pq.read_table(tmp_path / "a.heads.parquet")
        pq.write_table(table.drop_columns(["focus"]), tmp_path / "less.heads.parquet")
        with pytest.raises(VisualHeadsError, match=r"needs the columns focus; .*less\.heads\.parquet lacks them"):
            read_head_table(tmp_path / "less.heads.parquet")
        with pytest.raises(VisualHeadsError, match=r"answers needs the columns .*confidence"):
            read_answer_table(tmp_path / "a.heads.parquet")
        position = table.schema.get_field_index("focus")
        wrong = table.set_column(position, "focus", table.column("focus").cast(pa.float64()))
        pq.write_table(wrong, tmp_path / "wrong.heads.parquet")
        with pytest.raises(VisualHeadsError, match=r"'focus' must hold float; .* holds double"):
            read_head_table(tmp_path / "wrong.heads.parquet")

    def test_several_models_where_one_is_wanted(self, tmp_path: Path) -> None:
        write(tmp_path / "a.heads.parquet", "runs/a")
        write(tmp_path / "b.heads.parquet", "runs/b")
        with pytest.raises(VisualHeadsError, match="there are 2: runs/a, runs/b"):
            read_head_table(tmp_path)
        assert [table.model for table in read_head_tables(tmp_path)] == ["runs/a", "runs/b"]


class TestMerging:
    def test_different_tasks_of_one_model_are_joined(self, tmp_path: Path) -> None:
        write(tmp_path / "1.heads.parquet", tasks=("vhead_obj",))
        write(tmp_path / "2.heads.parquet", tasks=("vhead_super", "vhead_general"))
        table = read_head_table(tmp_path / "1.heads.parquet", tmp_path / "2.heads.parquet")
        assert set(table.tasks) == {"vhead_obj", "vhead_super", "vhead_general"}
        assert table.frame.groupby("task")["doc_id"].nunique().to_dict() == dict.fromkeys(table.tasks, 6)
        assert table.notes == ()

    def test_of_equal_measurements_the_newer_is_kept(self, tmp_path: Path) -> None:
        write(tmp_path / "new.heads.parquet", seed=1, written="2026-02-01")
        old = write(tmp_path / "old.heads.parquet", seed=2, written="2026-01-01", tasks=("vhead_obj",))
        table = read_head_table(tmp_path)
        kept = table.frame[table.frame["task"] == "vhead_obj"]["image_attention"].to_numpy()
        assert not np.array_equal(kept, old["image_attention"].to_numpy(dtype=np.float32))
        (note,) = table.notes
        assert "measured twice" in note
        assert "new.heads.parquet (it is newer), not" in note

    def test_more_documents_win_over_newer(self, tmp_path: Path) -> None:
        write(tmp_path / "many.heads.parquet", written="2026-01-01", documents=6)
        write(tmp_path / "few.heads.parquet", written="2026-02-01", documents=2)
        table = read_head_table(tmp_path)
        assert table.frame["doc_id"].nunique() == 6
        assert all("many.heads.parquet (it has more documents)" in note for note in table.notes)

    def test_order_of_the_paths_does_not_matter(self, tmp_path: Path) -> None:
        write(tmp_path / "1.heads.parquet", seed=1, written="2026-02-01")
        write(tmp_path / "2.heads.parquet", seed=2, written="2026-01-01")
        one = read_head_table(tmp_path / "1.heads.parquet", tmp_path / "2.heads.parquet")
        two = read_head_table(tmp_path / "2.heads.parquet", tmp_path / "1.heads.parquet")
        pd.testing.assert_frame_equal(one.frame, two.frame)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"query": "last_prompt"}, "must have one query"),
            ({"dtype": "bfloat16"}, "must have one dtype"),
            ({"layers": 5}, "must have one layers"),
        ],
    )
    def test_what_differs_is_named(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        write(tmp_path / "1.heads.parquet", tasks=("vhead_obj",))
        write(tmp_path / "2.heads.parquet", tasks=("vhead_super",), **changes)
        with pytest.raises(VisualHeadsError, match=words):
            read_head_table(tmp_path)

    def test_different_data_are_never_mixed(self, tmp_path: Path) -> None:
        write(tmp_path / "1.heads.parquet")
        frame = synthetic.head_rows(np.random.default_rng(3))
        document = synthetic.metadata("runs/a")
        document["tasks"]["vhead_obj"]["fingerprint"] = "ffff"
        with HeadTableWriter(tmp_path / "2.heads.parquet", document) as writer:
            writer.append(frame)
        with pytest.raises(
            VisualHeadsError,
            match=r"'vhead_obj' of model 'runs/a' must come from one data set; .*different fingerprints",
        ):
            read_head_table(tmp_path)


def test_a_table_in_memory_behaves_as_one_on_disk(tmp_path: Path) -> None:
    frame = write(tmp_path / "a.heads.parquet")
    memory = HeadTable.from_frame(frame, synthetic.metadata("runs/a"))
    assert memory.model == "runs/a"
    batches = pa.Table.from_batches(list(memory.batches())).to_pandas()
    disk = read_head_table(tmp_path / "a.heads.parquet").frame
    assert batches["image_attention"].tolist() == disk["image_attention"].tolist()
    with pytest.raises(VisualHeadsError, match="needs the columns focus"):
        HeadTable.from_frame(frame.drop(columns="focus"), synthetic.metadata("runs/a"))
