"""Flags of a prediction in plain words, for people who have not read the documentation."""

from __future__ import annotations

import re
from types import MappingProxyType

FLAG_WORDS = MappingProxyType(
    {
        "forced": "forced: the predictor was fitted on models of another kind and does not vouch for this one",
    }
)


def split_flags(flags: str) -> list[str]:
    """The single flags of a cell: parts between semicolons, commas or bars."""
    return [part.strip() for part in re.split(r"[;,|]", flags) if part.strip()]


def in_words(flags: str) -> str:
    """A cell of flags as plain words; a flag that is not known here stays as it is, with spaces for underscores."""
    return "; ".join(FLAG_WORDS.get(flag, flag.replace("_", " ")) for flag in split_flags(flags))
