"""How the commands print: one table, one form of CSV and JSON, plain sentences. Nothing that is printed is read as markup.

A table fits its terminal without cropping a name or a number: titles and sentences wrap at words, then columns are left out by
their declared importance and named below, and where names are too long the rows are stacked.
"""

from __future__ import annotations

import enum
import json
import math
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

Row = Mapping[Any, Any]

MISSING = "-"
_GAP = 2
"""Blanks between two columns."""
_JOINERS = "\u200d"


class Format(enum.StrEnum):
    """How a result is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class TreeFormat(enum.StrEnum):
    """How a result that is no single table is printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class PrintedColumn:
    """One column of a printed table.

    Attributes
    ----------
    title : str
        Its heading; wraps at words.
    cell : callable
        Row -> text.
    importance : int
        0: always printed. Where there is no room, columns of the greatest number are left out first.
    number : bool
        Whether it is set to the right.
    wraps : bool
        Whether its cells may wrap at words (sentences and lists; never names or numbers).
    """

    title: str
    cell: Callable[[Row], str]
    importance: int = 0
    number: bool = False
    wraps: bool = False


def text(name: str, title: str | None = None, importance: int = 0, wraps: bool = False) -> PrintedColumn:
    """A column of text."""
    return PrintedColumn(name if title is None else title, lambda row: _words(row[name]), importance, wraps=wraps)


def number(name: str, title: str | None = None, form: str = ".1f", importance: int = 0) -> PrintedColumn:
    """A column of numbers, printed by a format specification."""
    return PrintedColumn(
        name if title is None else title,
        lambda row: MISSING if is_missing(row[name]) else format(row[name], form),
        importance,
        number=True,
    )


def interval(title: str, importance: int = 0) -> PrintedColumn:
    """A column of intervals, from `low` and `high`, in points."""
    return PrintedColumn(title, lambda row: f"{row['low']:.1f} to {row['high']:.1f}", importance, number=True)


def is_missing(value: Any) -> bool:
    """Whether a cell is missing: None, NaN, or pandas' own kinds of it."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def clean(words: object) -> str:
    """Text without control characters: those that move, hide or reorder what stands beside them are shown as escapes.

    >>> clean("run\\x1b[31m\\u202e1")
    'run\\\\x1b[31m\\\\u202e1'
    """
    shown = []
    before = ""
    for character in str(words):
        joins_emoji = character in _JOINERS and unicodedata.category(before or "a") in ("So", "Sk", "Mn")
        controls = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and not joins_emoji
        shown.append(character.encode("unicode_escape").decode() if controls else character)
        before = character
    return "".join(shown)


def say(words: object, error: bool = False) -> None:
    """Print sentences as they are; in a terminal they wrap at words."""
    typer.echo(wrapped(words, sys.stderr if error else sys.stdout), err=error)


def note(words: object) -> None:
    """Print what the user should know beside the result, in yellow, on standard error."""
    typer.secho(wrapped(words, sys.stderr), fg=typer.colors.YELLOW, err=True)


def wrapped(words: object, stream: IO[str]) -> str:
    """Clean text, lines kept; where `stream` is a terminal, long lines are broken at blanks, never within a word."""
    lines = [clean(line) for line in str(words).splitlines()]
    if stream.isatty():
        room = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, room, break_long_words=False, break_on_hyphens=False) for line in lines]
    return "\n".join(lines)


def print_data(frame: pd.DataFrame, form: Format) -> None:
    """Print all of a frame as CSV or as a JSON list; a missing value is an empty cell, or null."""
    records = [{str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]
    if form is Format.JSON:
        typer.echo(json.dumps(records, indent=1, allow_nan=False))
        return
    import pandas as pd

    cells = [{name: "; ".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()} for row in records]
    table = pd.DataFrame(cells, columns=[str(name) for name in frame.columns], dtype=object)
    typer.echo(table.to_csv(index=False, lineterminator="\n"), nl=False)


def print_table(
    rows: pd.DataFrame | Sequence[Row],
    columns: Sequence[PrintedColumn],
    title: str = "",
    *,
    whole: str = "",
    console: Console | None = None,
) -> None:
    """Print rows as one table that fits the terminal.

    Parameters
    ----------
    rows : DataFrame or sequence of mapping
        One per line.
    columns : sequence of PrintedColumn
        In the order of printing.
    title : str
        Printed above.
    whole : str
        Option that prints every column, such as "--format csv"; named where columns were left out.
    console : Console or None
        Where to print; None: standard output.
    """
    print_sections({title: rows}, columns, whole=whole, console=console)


def print_sections(
    sections: Mapping[str, pd.DataFrame | Sequence[Row]],
    columns: Sequence[PrintedColumn],
    *,
    whole: str = "",
    console: Console | None = None,
) -> None:
    """Print several tables with the same columns: title -> rows. Parameters as for `print_table`."""
    from rich.console import Console

    console = console or Console()
    cells = {
        clean(title): [[clean(column.cell(row)) for column in columns] for row in _records(rows)]
        for title, rows in sections.items()
    }
    widths = fitting(columns, [row for part in cells.values() for row in part], console.width)
    for title, part in cells.items():
        if title:
            _print_line(console, title, "bold")
        if widths is None:
            _print_stacked(console, columns, part)
        else:
            _print_columns(console, columns, part, widths)
    left_out = [column.title for column, width in zip(columns, widths or (), strict=bool(widths)) if width is None]
    if left_out:
        way = f"a wider terminal or {whole} shows" if whole else "a wider terminal shows"
        these = "it" if len(left_out) == 1 else "them"
        _print_line(console, f"Not printed in {console.width} columns: {', '.join(left_out)}; {way} {these}.", "dim")


def fitting(columns: Sequence[PrintedColumn], rows: Sequence[Sequence[str]], room: int) -> list[int | None] | None:
    """The width of every column in a terminal of `room` columns, None for one that is left out; None where rows must be stacked.

    No name and no number gets less than its own width, no sentence less than its longest word.
    """
    from rich.cells import cell_len

    def longest(words: Sequence[str]) -> int:
        return max(map(cell_len, words), default=0)

    natural, least = [], []
    for position, column in enumerate(columns):
        cells = [row[position] for row in rows]
        words = [word for cell in cells for word in cell.split()] if column.wraps else cells
        natural.append(longest([column.title, *cells]))
        least.append(longest([*column.title.split(), *words]))
    printed = list(range(len(columns)))
    while sum(least[at] for at in printed) + _GAP * (len(printed) - 1) > room:
        worst = max(printed, key=lambda at: (columns[at].importance, at))
        if columns[worst].importance == 0:
            return None
        printed.remove(worst)
    widths = {at: natural[at] for at in printed}
    while sum(widths.values()) + _GAP * (len(printed) - 1) > room:
        widest = max((at for at in printed if widths[at] > least[at]), key=lambda at: widths[at])
        widths[widest] -= 1
    return [widths.get(at) for at in range(len(columns))]


def _print_columns(
    console: Console, columns: Sequence[PrintedColumn], rows: Sequence[Sequence[str]], widths: Sequence[int | None]
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # One blank beside every column but the first, and one between columns: the two of _GAP.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    shown = [(at, column, width) for at, (column, width) in enumerate(zip(columns, widths, strict=True)) if width]
    for _, column, width in shown:
        table.add_column(Text(column.title), justify="right" if column.number else "left", width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[at]) for at, _, _ in shown))
    console.print(table)


def _print_stacked(console: Console, columns: Sequence[PrintedColumn], rows: Sequence[Sequence[str]]) -> None:
    """One line per cell; the terminal wraps what is longer than itself, so that names can be copied whole."""
    margin = max(len(column.title) for column in columns) + _GAP
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if cell:
                _print_line(console, f"{column.title:<{margin}}{cell}".rstrip())
        console.print()


def _print_line(console: Console, words: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(words, style=style), soft_wrap=True, highlight=False)


def _records(rows: pd.DataFrame | Sequence[Row]) -> Sequence[Row]:
    return rows if isinstance(rows, Sequence) else rows.to_dict("records")


def _words(value: Any) -> str:
    return MISSING if is_missing(value) else str(value)


def _plain(value: Any) -> Any:
    """A value as Python's own; missing is None."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if is_missing(value) else value
