"""What the commands print: tables that fit every terminal without cropping, CSV, JSON, and names as they are."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lmms_visual_heads.cli.printing import (
    Format,
    PrintedColumn,
    clean,
    fitting,
    interval,
    number,
    print_data,
    print_sections,
    print_table,
    text,
    wrapped,
)

COLUMNS = (
    text("model"),
    text("benchmark"),
    number("predicted"),
    interval("90% interval"),
    number("baseline", importance=1),
    text("method", importance=3),
    text("flags", importance=2, wraps=True),
)
LONG = "organisation/a-model-with-a-very-long-name-that-no-narrow-terminal-holds-step-200000"
NAMES = ("a", LONG, "run[1]", "[/x]", "[bold red]x[/]", "Ünïcode 模型", "👍🏽 👩‍💻", "[link=http://x]y[/link]")
WIDTHS = (40, 80, 100, 160)


def row(model: str, predicted: float = 968.25) -> dict[str, Any]:
    return {
        "model": model,
        "benchmark": "scenes_color_count",
        "predicted": predicted,
        "low": 123456.5,
        "high": 654321.5,
        "baseline": 55.0,
        "method": "own_answers_free",
        "flags": "few_lineages, other_size, more_documents",
    }


def printed(rows: Any, width: int, columns: Any = COLUMNS, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_table(rows, columns, "Title", console=console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_name_and_no_number_is_ever_cropped(name: str, width: int) -> None:
    shown = printed([row(name), row("b", -0.04)], width)
    for cell in (name, "scenes_color_count", "968.2", "-0.0", "123456.5 to 654321.5"):
        assert cell in shown
    assert "…" not in shown
    stacked = "model  " in shown and f"{'model':<14}{name}" in shown
    if not stacked:
        assert max(map(cell_len, shown.splitlines()[:-1])) <= width


def test_what_is_left_out_is_named_and_the_least_important_goes_first() -> None:
    rows = [row("runs/a")]
    assert "Not printed" not in printed(rows, 160)
    heads = {width: printed(rows, width, whole="--format csv").splitlines() for width in (90, 80)}
    assert "flags" in heads[90][1]
    assert heads[90][-1] == "Not printed in 90 columns: method; a wider terminal or --format csv shows it."
    assert heads[80][-1] == "Not printed in 80 columns: method, flags; a wider terminal or --format csv shows them."
    assert printed(rows, 80).splitlines()[-1].endswith("method, flags; a wider terminal shows them.")


def test_sentences_wrap_at_words_before_a_column_is_left_out() -> None:
    lines = printed([row("runs/a")], 118).splitlines()
    assert "few_lineages," in lines[3]
    assert "other_size," in lines[4] + lines[3]
    assert "more_documents" in "".join(lines)
    assert "own_answers_free" in lines[3]


def test_rows_are_stacked_where_names_are_too_long_and_then_nothing_is_left_out() -> None:
    lines = printed([row(LONG), row("b")], 40).splitlines()
    assert lines[1] == f"{'model':<14}{LONG}"
    assert f"{'flags':<14}few_lineages, other_size, more_documents" in lines
    assert lines.count(f"{'predicted':<14}968.2") == 2
    assert not any("Not printed" in line for line in lines)


def test_sections_share_one_layout() -> None:
    console = Console(file=io.StringIO(), width=70)
    print_sections({"one [x]": [row("a")], "two": [row("runs/longer")]}, COLUMNS, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    heads = [line for line in lines if line.startswith("model")]
    assert len(set(heads)) == 1
    assert len(heads) == 2
    assert "one [x]" in lines
    assert sum("Not printed" in line for line in lines) == 1


def test_characters_that_hide_or_move_others_are_shown() -> None:
    assert clean("a\u202eb\x1b[31mc\u200bd\ne\x07\u2028f\x9b") == "a\\u202eb\\x1b[31mc\\u200bd\\ne\\x07\\u2028f\\x9b"
    assert clean("Ünïcode 模型 👍🏽 👩‍💻 [/x]") == "Ünïcode 模型 👍🏽 👩‍💻 [/x]"
    assert clean("a\u200db") == "a\\u200db", "an invisible joiner between letters makes two names look alike"
    shown = printed([row("run\x1b[31m\u202e1")], 160)
    assert "run\\x1b[31m\\u202e1" in shown
    assert "\x1b" not in shown


def test_missing_numbers_are_no_numbers() -> None:
    line = printed([{**row("a"), "predicted": np.nan, "baseline": None}], 160).splitlines()[3]
    assert line.split()[:3] == ["a", "scenes_color_count", "-"]
    assert "nan" not in line.lower()


@settings(max_examples=80, deadline=None)
@given(
    cells=st.lists(
        st.tuples(*[st.text(st.characters(categories=["L", "N", "So"]), max_size=30)] * 4), min_size=1, max_size=4
    ),
    importance=st.permutations([0, 1, 2, 3]),
    room=st.integers(10, 120),
)
def test_whatever_is_printed_fits_or_is_stacked(cells: list[tuple[str, ...]], importance: list[int], room: int) -> None:
    columns = [PrintedColumn(f"column {n}", lambda row: "", importance[n], wraps=n == 2) for n in range(4)]
    widths = fitting(columns, cells, room)
    needed = [max(cell_len("column"), *(cell_len(row[n]) for row in cells)) for n in range(4)]
    if widths is None:
        assert needed[importance.index(0)] > room
        return
    kept = [width for width in widths if width is not None]
    assert sum(kept) + 2 * (len(kept) - 1) <= room
    out = [importance[n] for n in range(4) if widths[n] is None]
    assert sorted(out) == sorted(range(4))[4 - len(out) :]
    assert all(width is None or width >= needed[n] for n, width in enumerate(widths))


def test_sentences_wrap_at_words_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    sentence = "Open /tmp/a-long-folder/that-is-not-broken.html in a browser.\nrun\x1b[1m"
    assert wrapped(sentence, stream) == sentence.replace("\x1b", "\\x1b")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert wrapped(sentence, stream).splitlines() == [
        "Open",
        "/tmp/a-long-folder/that-is-not-broken.html",
        "in a browser.",
        "run\\x1b[1m",
    ]


class TestData:
    FRAME = pd.DataFrame(
        {
            "model": ["[/x]", "007"],
            "score": [0.1 + 0.2, np.nan],
            "n_items": pd.array([3, None], dtype="Int64"),
            "right": [True, None],
            "sources": [["a", "b"], []],
        }
    )

    def test_json_has_null_for_missing_and_keeps_types(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_data(self.FRAME, Format.JSON)
        assert json.loads(capsys.readouterr().out) == [
            {"model": "[/x]", "score": 0.1 + 0.2, "n_items": 3, "right": True, "sources": ["a", "b"]},
            {"model": "007", "score": None, "n_items": None, "right": None, "sources": []},
        ]

    def test_csv_is_empty_where_a_value_is_missing(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_data(self.FRAME, Format.CSV)
        assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
            ["model", "score", "n_items", "right", "sources"],
            ["[/x]", "0.30000000000000004", "3", "True", "a; b"],
            ["007", "", "", "", ""],
        ]

    def test_an_empty_frame_keeps_its_columns(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_data(self.FRAME.iloc[:0], Format.CSV)
        assert capsys.readouterr().out == "model,score,n_items,right,sources\n"
        print_data(self.FRAME.iloc[:0], Format.JSON)
        assert json.loads(capsys.readouterr().out) == []
