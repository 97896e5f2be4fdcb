"""What the readers of CSV tables share: cells as text, then the declared types. A file that is not what it seems is refused.

UTF-8 with or without a byte-order mark; commas, semicolons or tabs between cells. Text stays text: a model named 007 or 1e5
or NA keeps its name. Every refusal names the file and the line.
"""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from lmms_visual_heads.errors import VisualHeadsError, VisualHeadsWarning
from lmms_visual_heads.schema import Column

_DELIMITERS = (",", ";", "\t")
_MISSING_NUMBERS = frozenset({"", "na", "nan", "null", "none", "#n/a"})
"""What programs write where a number is missing; in text columns only an empty cell is missing."""


@dataclass(frozen=True, slots=True)
class CsvForm:
    """What a kind of CSV table looks like.

    Attributes
    ----------
    what : str
        Its name in messages, such as "score table".
    columns : tuple of Column
        The declared columns; further ones in a file are not read.
    required : tuple of str
        Columns that a file must have, without an empty cell.
    key : tuple of str
        A combination of these stands once.
    remedy : str
        What to do where a file is none, one sentence.
    shape : str
        Its shape in messages; empty: a CSV file with the required columns.
    comments : bool
        Whether a line that begins with # is passed over.
    """

    what: str
    columns: tuple[Column, ...]
    required: tuple[str, ...]
    key: tuple[str, ...]
    remedy: str
    shape: str = ""
    comments: bool = False

    def refusal(self, path: Path, problem: str) -> VisualHeadsError:
        """The error for a file that is no such table."""
        shape = self.shape or f"a CSV file with the columns {', '.join(self.required)}"
        return VisualHeadsError(f"A {self.what} is {shape}; {path} is none: {problem}. {self.remedy}")


@dataclass(frozen=True, slots=True)
class CsvCells:
    """The cells of a file as text, without blanks around them; every row is as long as the header.

    Attributes
    ----------
    path : Path
    header : tuple of str
    rows : tuple of (int, tuple of str)
        The line in the file that a row begins on (from 1), and its cells. Empty rows are left out.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, name: str) -> list[tuple[int, str]]:
        """Lines and cells of one column."""
        position = self.header.index(name)
        return [(line, row[position]) for line, row in self.rows]


def read_cells(path: str | os.PathLike[str], form: CsvForm) -> CsvCells:
    """The cells of a CSV file.

    Raises
    ------
    VisualHeadsError
        No such file; not UTF-8 or not CSV; a required column or cell that is missing; a column that stands twice; a row that
        is longer or shorter than the header; a key that stands twice.

    Warns
    -----
    VisualHeadsWarning
        Where blanks around a cell of the key were left out.
    """
    target = Path(path)
    if not target.is_file():
        raise VisualHeadsError(f"No such {form.what}: {target}. {form.remedy}")
    try:
        records = list(_records(target.read_text(encoding="utf-8-sig"), form.comments))
    except UnicodeDecodeError as error:
        raise form.refusal(target, f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, csv.Error) as error:
        raise form.refusal(target, f"it cannot be read as CSV ({error})") from error
    header = tuple(name.strip() for name in records[0][1]) if records else ()
    if not any(header):
        raise form.refusal(target, "it is empty")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise form.refusal(target, f"its column {twice!r} stands there twice")
    missing = [name for name in form.required if name not in header]
    if missing:
        raise form.refusal(target, f"it lacks {', '.join(missing)}")
    for line, row in records:
        if len(row) != len(header):
            raise form.refusal(
                target,
                f"line {line} has {len(row)} cells and the header {len(header)}; a cell that holds a comma needs quotes",
            )
    _say_what_was_stripped(target, header, records[1:], form)
    cells = CsvCells(target, header, tuple((line, tuple(cell.strip() for cell in row)) for line, row in records[1:]))
    _refuse_empty(cells, form)
    _refuse_twice(cells, form)
    return cells


def read_header(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of a CSV file's columns; empty where it cannot be read as one."""
    try:
        records = _records(Path(path).read_text(encoding="utf-8-sig"), comments=False)
        return tuple(name.strip() for name in next(records, (0, []))[1])
    except (OSError, UnicodeDecodeError, csv.Error):
        return ()


def read_form(path: str | os.PathLike[str], form: CsvForm) -> pd.DataFrame:
    """A CSV file as a frame: those of the declared columns that it has, in their types.

    Text that is missing is None; numbers are float64 with NaN, whole numbers Int64.

    Raises
    ------
    VisualHeadsError
        As `read_cells`; and a cell of a column of numbers that is none.
    """
    cells = read_cells(path, form)
    return pd.DataFrame({column.name: _typed(cells, column) for column in form.columns if column.name in cells.header})


def _records(text: str, comments: bool) -> Iterator[tuple[int, list[str]]]:
    """The records of a file that are not empty, and the lines that they begin on; the first is the header."""
    n_lines = start = 0
    begins = True

    def lines() -> Iterator[str]:
        nonlocal n_lines, start, begins
        for line in io.StringIO(text, newline=""):
            n_lines += 1
            # Within a quoted cell a line may begin with anything.
            if begins and comments and line.startswith("#"):
                continue
            if begins:
                start, begins = n_lines, False
            yield line

    first = next((line for line in text.splitlines() if line.strip() and not (comments and line.startswith("#"))), "")
    for record in csv.reader(lines(), delimiter=_delimiter(first), strict=True):
        if any(cell.strip() for cell in record):
            yield start, record
        begins = True


def _delimiter(header: str) -> str:
    """The delimiter that makes most cells out of the header; a comma where none does."""
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _say_what_was_stripped(
    path: Path, header: tuple[str, ...], rows: list[tuple[int, list[str]]], form: CsvForm
) -> None:
    positions = [header.index(name) for name in form.key]
    stripped = [(line, row[at]) for line, row in rows for at in positions if row[at] != row[at].strip()]
    if stripped:
        line, cell = stripped[0]
        more = f", and around {len(stripped) - 1} more" if len(stripped) > 1 else ""
        warnings.warn(
            f"{path}, line {line}: the blanks around {cell!r} were left out{more}.", VisualHeadsWarning, stacklevel=2
        )


def _refuse_empty(cells: CsvCells, form: CsvForm) -> None:
    for name in form.required:
        for line, cell in cells.column(name):
            if not cell:
                raise VisualHeadsError(
                    f"Every row of a {form.what} needs a {name}; {cells.path}, line {line} has an empty cell. Fill it in."
                )


def _refuse_twice(cells: CsvCells, form: CsvForm) -> None:
    seen: dict[tuple[str, ...], int] = {}
    positions = [cells.header.index(name) for name in form.key]
    for line, row in cells.rows:
        key = tuple(row[position] for position in positions)
        if key in seen:
            raise VisualHeadsError(
                f"A {form.what} has one row per {', '.join(form.key)}; {cells.path} has {', '.join(key)} in lines "
                f"{seen[key]} and {line}. Keep one of them."
            )
        seen[key] = line


def _typed(cells: CsvCells, column: Column) -> pd.Series:
    if pa.types.is_string(column.type):
        texts = [cell or None for _, cell in cells.column(column.name)]
        return pd.Series(texts) if any(texts) else pd.Series(texts, dtype=object)
    numbers = [_number(cell, f"{cells.path}, line {line}", column) for line, cell in cells.column(column.name)]
    values = pd.Series(numbers, dtype="float64")
    return values.astype("Int64") if pa.types.is_integer(column.type) else values


def _number(cell: str, where: str, column: Column) -> float:
    if cell.lower() in _MISSING_NUMBERS:
        return math.nan
    whole = bool(pa.types.is_integer(column.type))
    try:
        # float() reads every printed number back exactly; pandas' own parser need not. It also takes 1_000, which no table says.
        value = math.nan if "_" in cell else float(cell)
    except ValueError:
        value = math.nan
    if math.isnan(value) or (whole and not value.is_integer()):
        raise VisualHeadsError(
            f"Column {column.name!r} must hold {'whole numbers' if whole else 'numbers'}; {where} has {cell!r}. Mend the "
            "cell or leave it empty."
        )
    return value
