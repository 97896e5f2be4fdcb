"""Numbers, texts and flags as the page shows them: missing is a dash that says so, never "nan". Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from lmms_visual_heads.prediction.flags import FLAG_WORDS

MISSING = Markup('<span class="missing" title="missing">–</span>')


def number(value: Any, digits: int = 1, signed: bool = False) -> Markup:
    """`value` with `digits` decimals and a real minus sign; a dash that says "missing" where there is none."""
    if value is None or pd.isna(value) or not np.isfinite(value):
        return MISSING
    shown = f"{float(value):{'+' if signed else ''},.{digits}f}"
    if float(shown.replace(",", "")) == 0:
        shown = f"{0.0:.{digits}f}"
    return Markup(shown.replace("-", "−"))


def integer(value: Any) -> Markup:
    """`value` as a whole number with thousands set apart; see `number`."""
    return number(value, 0)


def text(value: Any, most: int | None = None) -> Markup:
    """`value` escaped; a dash that says "missing" where there is none. Beyond `most` characters the rest moves to a tooltip."""
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return MISSING
    whole = str(value)
    if most is None or len(whole) <= most:
        return escape(whole)
    return Markup('<span title="{}">{}…</span>').format(whole, whole[:most])


def sort_key(value: Any) -> str:
    """What a column is sorted by: the full number, or the text; empty where missing."""
    return "" if value is None or (not isinstance(value, str) and pd.isna(value)) else str(value)


def split_flags(flags: str) -> list[str]:
    """The single flags of a cell: its parts between semicolons."""
    return [part.strip() for part in flags.split(";") if part.strip()]


def in_words(flags: Iterable[str]) -> str:
    """Flags as plain words; a flag that is not known here stays as it is, with spaces for underscores."""
    return "; ".join(FLAG_WORDS.get(flag, flag.replace("_", " ")) for flag in flags)


def shared_flags(cells: Iterable[str]) -> list[str]:
    """Flags that stand in every one of at least two cells: said once for the whole table instead of in every row."""
    rows = [split_flags(cell) for cell in cells]
    if len(rows) < 2:
        return []
    return [flag for flag in dict.fromkeys(rows[0]) if all(flag in row for row in rows)]
