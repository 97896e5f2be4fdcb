"""The JSON document in every table's Parquet metadata: which model, which query, which data.

Pure functions on dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import QUERIES, SCHEMA_VERSION

_REQUIRED = {"schema_version": int, "model": dict, "query": str, "tasks": dict}
_REQUIRED_OF_MODEL = {"name": str, "layers": int, "heads": int}


def complete_metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with `schema_version` and `written` (UTC) filled in, checked.

    Raises
    ------
    VisualHeadsError
        When a required entry is missing or has the wrong type.
    """
    filled = {
        "schema_version": SCHEMA_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="microseconds"),
        **document,
    }
    check_metadata(filled, "the table to be written")
    return filled


def check_metadata(document: Mapping[str, Any], where: str) -> None:
    """Refuse a metadata document that is newer than this code or lacks a required entry.

    Raises
    ------
    VisualHeadsError
        The sentence names `where`.
    """
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise VisualHeadsError(
            f"Tables of schema version {SCHEMA_VERSION} or older are required; {where} has version {version}. "
            "Upgrade with: pip install --upgrade lmms-visual-heads."
        )
    for key, kind in _REQUIRED.items():
        _check_entry(document, key, kind, where, key)
    for key, kind in _REQUIRED_OF_MODEL.items():
        _check_entry(document["model"], key, kind, where, f"model.{key}")
    if document["query"] not in QUERIES:
        raise VisualHeadsError(
            f"A query out of {', '.join(QUERIES)} is required; {where} says {document['query']!r}. Write the table "
            "again."
        )
    for task, description in document["tasks"].items():
        if not isinstance(description, Mapping):
            raise VisualHeadsError(
                f"The metadata of {where} must describe task {task!r} by an object. Write the table again."
            )


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON bytes of a metadata document, keys sorted."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def from_bytes(content: bytes | None, where: str) -> dict[str, Any]:
    """The metadata document in `content`, checked.

    Raises
    ------
    VisualHeadsError
        When there is none, it is not JSON, or it does not pass `check_metadata`.
    """
    if content is None:
        raise VisualHeadsError(
            f"A table written by lmms_visual_heads is required; {where} lacks its metadata. Name a *.heads.parquet "
            "file."
        )
    try:
        document = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise VisualHeadsError(f"The metadata of {where} is not JSON ({error}). Write the table again.") from error
    if not isinstance(document, dict):
        raise VisualHeadsError(f"The metadata of {where} must be a JSON object. Write the table again.")
    if "unfinished" in document:
        raise VisualHeadsError(
            f"A finished table is required; the run of {where} did not finish. Run the probe again to the end."
        )
    check_metadata(document, where)
    return document


def _check_entry(document: Mapping[str, Any], key: str, kind: type, where: str, label: str) -> None:
    value = document.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        came = "nothing" if value is None else repr(value)
        raise VisualHeadsError(
            f"The metadata of {where} needs {label!r} ({kind.__name__}); it has {came}. Write the table again."
        )
