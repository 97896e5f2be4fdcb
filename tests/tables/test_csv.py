"""CSV tables as people write them: score, item, lineage and wide files, read by one strict reader."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmms_visual_heads.errors import VisualHeadsError, VisualHeadsWarning
from lmms_visual_heads.tables import (
    read_items,
    read_lineages,
    read_results,
    read_scores,
    read_wide_scores,
    write_items,
    write_lineages,
    write_scores,
)

Reader = Callable[[Path], Any]
READERS: dict[str, tuple[Reader, str, tuple[str, ...]]] = {
    "scores": (read_scores, "model,benchmark,score", ("pope,0.5", "pope,0.25")),
    "items": (lambda path: read_items(path).frame, "model,benchmark,doc_id,correct", ("pope,0,1", "pope,0,0")),
    "lineages": (read_lineages, "model,lineage", ("run 1", "run 2")),
    "wide": (lambda path: read_wide_scores(path).frame, "model,pope", ("50", "25")),
}
"""Per kind of table: its reader, its header, and two rows without the model."""


def models(table: Any) -> list[str]:
    return list(table) if isinstance(table, dict) else table["model"].tolist()


@pytest.fixture(params=READERS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes a file with two rows of the given models, changed by a function, and reads it."""
    reader, header, (first, second) = READERS[request.param]

    def read(
        one: str = "a", two: str = "b", change: Callable[[str], str] = lambda text: text, how: str = "utf-8"
    ) -> Any:
        path = tmp_path / f"{request.param}.csv"
        path.write_bytes(change(f"{header}\n{one},{first}\n{two},{second}\n").encode(how))
        return reader(path)

    return read


@pytest.mark.parametrize("name", ["007", "1e5", "NA", "null", "True", "1_000", "-", "Ünïcode 👍", "a=1", "#3"])
def test_a_name_stays_as_it_is_written(kind: Any, name: str) -> None:
    # A lineage table may have comments: there a name that begins with # needs quotes.
    assert sorted(models(kind(one=f'"{name}"'))) == sorted([name, "b"])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\n" + text.replace("\n", "\n\n"),
        lambda text: text + ",,,,"[: text.splitlines()[0].count(",")] + "\n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("model", " model "),
    ],
    ids=[
        "byte-order mark",
        "semicolons",
        "tabs",
        "CRLF",
        "empty lines",
        "empty row",
        "no last newline",
        "blank header",
    ],
)
def test_files_as_programs_write_them(kind: Any, change: Callable[[str], str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_series_equal(pd.Series(models(kind(change=change))), pd.Series(models(kind())))


def test_a_quoted_cell_may_hold_anything(kind: Any) -> None:
    assert models(kind(one='"a, ""b""; c"', change=lambda text: text)) == ['a, "b"; c', "b"]


def test_surplus_and_missing_cells_are_named_by_line(kind: Any) -> None:
    with pytest.raises(VisualHeadsError, match=r"\.csv is none: line 3 has \d cells and the header \d"):
        kind(change=lambda text: text.rstrip("\n") + ",surplus\n")
    with pytest.raises(VisualHeadsError, match=r"\.csv is none: line 4 has 1 cells"):
        kind(change=lambda text: text + "c\n")
    with pytest.raises(VisualHeadsError, match=r"line 2 has \d cells"):
        kind(one="a,b")


def test_blanks_around_a_name_are_left_out_and_said(kind: Any) -> None:
    with pytest.warns(VisualHeadsWarning, match=r"line 3: the blanks around ' b ' were left out\."):
        assert models(kind(two=" b ")) == ["a", "b"]
    with pytest.warns(VisualHeadsWarning, match="around 'a ' were left out, and around 1 more"):
        kind(one="a ", two="\u00a0b")


def test_a_row_that_stands_twice_is_named_by_both_lines(kind: Any) -> None:
    with pytest.raises(VisualHeadsError, match=r"has a.* in lines 2 and 3\. Keep one"):
        kind(two="a")
    with pytest.warns(VisualHeadsWarning), pytest.raises(VisualHeadsError, match="in lines 2 and 3"):
        kind(two="a ")


def test_an_empty_name_is_named_by_line(kind: Any) -> None:
    with pytest.raises(VisualHeadsError, match=r"needs a model; .*, line 3 has an empty cell"):
        kind(two="")


def test_what_is_no_table(kind: Any) -> None:
    for change, words in (
        (lambda text: "", "it is empty"),
        (lambda text: "\n \n", "it is empty"),
        (lambda text: text.replace("model", "name"), "it lacks model"),
        (lambda text: text.replace("\nb", '\n"b'), "cannot be read as CSV"),
        (lambda text: text.replace("model,", "model,model,"), "its column 'model' stands there twice"),
    ):
        with pytest.raises(VisualHeadsError, match=words):
            kind(change=change)
    with pytest.raises(VisualHeadsError, match="it is not UTF-8 text"):
        kind(how="utf-16")


def test_lines_count_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "lineages.csv"
    path.write_text('# long\nmodel,lineage\n# two\n\n"a\n# no comment","run\n1"\nb,run 2\n#c\nb,run 3\n')
    with pytest.raises(VisualHeadsError, match="has b in lines 8 and 10"):
        read_lineages(path)
    path.write_text('model,lineage\n"a\n# no comment",run 1\n# c,run 2\n')
    assert read_lineages(path) == {"a\n# no comment": "run 1"}


@pytest.mark.parametrize("cell", ["high", "1_0", "0,5", "1 000", "0.5%"])
def test_a_number_is_a_number(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"model;benchmark;score\na;pope;{cell}\n")
    with pytest.raises(VisualHeadsError, match=r"'score' must hold numbers; .*scores\.csv, line 2 has"):
        read_scores(path)


def test_missing_numbers_and_further_columns_of_a_score_table(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("model,benchmark,score,n_items,metric,remark\na,pope,0.5,NA,,x\nb,pope,5e-1,100.0,,\n")
    frame = read_scores(path)
    assert frame["n_items"].isna().tolist() == [True, False]
    assert frame["score"].tolist() == [0.5, 0.5]
    assert set(frame["metric"]) == {"score"}
    assert "remark" not in frame
    path.write_text("model,benchmark,score,n_items\na,pope,0.5,10.5\n")
    with pytest.raises(VisualHeadsError, match=r"'n_items' must hold whole numbers; .*line 2 has '10\.5'"):
        read_scores(path)
    path.write_text("model,benchmark,score\na,pope,\n")
    with pytest.raises(VisualHeadsError, match="needs a score"):
        read_scores(path)


def test_a_wide_file_with_semicolons_is_known_as_one(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("\ufeffmodel;pope\n007;50\n")
    assert read_results(path).frame[["model", "score"]].values.tolist() == [["007", 50.0]]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_what_is_written_is_read_back(tmp_path: Path, names: list[str]) -> None:
    scores = pd.DataFrame({"model": names, "benchmark": "pope", "score": np.linspace(0, 1, len(names))})
    assert read_scores(write_scores(scores, tmp_path / "scores.csv"))["model"].tolist() == names
    items = pd.DataFrame({"model": names, "benchmark": "pope", "doc_id": range(len(names)), "correct": 0.5})
    for ending in ("csv", "parquet"):
        frame = read_items(write_items(items, tmp_path / f"items.{ending}")).frame
        assert sorted(frame["model"]) == sorted(names)
        assert frame.set_index("model")["doc_id"].to_dict() == dict(zip(names, range(len(names)), strict=True))
        assert {str(frame[name].dtype) for name in ("doc_id", "correct")} == {"int32", "float32"}
    lineages = {name: f"run {position}" for position, name in enumerate(names) if not name.startswith("#")}
    assert read_lineages(write_lineages(lineages, tmp_path / "lineages.csv")) == lineages


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"correct": 1.5}, r"correct lies in 0\.\.1; .* has 1\.5 for b on pope, document 1"),
        ({"correct": np.nan}, "no empty cell"),
        ({"model": "a", "doc_id": 0}, "document 0 of pope twice for a"),
    ],
)
def test_bad_item_tables(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"model": "a", "benchmark": "pope", "doc_id": 0, "correct": 1.0}
    frame = pd.DataFrame([good, {**good, "model": "b", "doc_id": 1, **row}])
    for ending in ("csv", "parquet", "txt"):
        with pytest.raises(VisualHeadsError, match=words):
            write_items(frame, tmp_path / f"items.{ending}")
    frame.to_parquet(tmp_path / "items.parquet")
    with pytest.raises(VisualHeadsError, match=words):
        read_items(tmp_path / "items.parquet")
    with pytest.raises(VisualHeadsError, match=r"ends in \.parquet or \.csv"):
        write_items(pd.DataFrame([good]), tmp_path / "items.txt")
    (tmp_path / "items.parquet").write_text("no")
    with pytest.raises(VisualHeadsError, match="it is not Parquet"):
        read_items(tmp_path / "items.parquet")
