"""Flags of predictions in plain words; the words themselves belong to the predictor (prediction/flags.py)."""

from __future__ import annotations

from collections.abc import Iterable

from lmms_visual_heads.prediction.flags import FLAG_WORDS


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
