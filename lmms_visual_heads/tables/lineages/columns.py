"""Columns of the lineage table: one row per model. Checkpoints of one training share a lineage, and are left out together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from lmms_visual_heads.schema import Column

LINEAGE_COLUMNS = (
    Column("model", pa.string(), "", "model name"),
    Column("lineage", pa.string(), "", "the training that the checkpoint comes from"),
)


def lineage_of(models: Iterable[str], lineages: Mapping[str, str] | None) -> dict[str, str]:
    """The lineage of every model; a model that is not named is its own lineage, told apart from named ones.

    >>> lineage_of(["a", "b"], {"a": "run 1"})
    {'a': 'run 1', 'b': 'b'}
    """
    named = dict(lineages or {})
    return {model: named.get(model, model) for model in models}
