"""The design of a zoo: trainings drawn from lists of factor levels, every factor for itself, so that none stands for another.

A settings file with `draw` names groups (how many trainings, which seed) and `factors`: lists of levels with a weight each. In a
group every level occurs in proportion to its weight, and which training gets it is a random permutation of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.random_stream import RandomStream

SNAPSHOT_SHARES = (0.25, 0.55)
"""Shares of the steps after which a checkpoint is kept, besides the end."""


def balanced(levels: list[Any], weights: list[int], n: int, stream: RandomStream) -> list[Any]:
    """`n` levels in proportion to their weights (largest remainders), in random order."""
    total = sum(weights)
    counts = [n * weight // total for weight in weights]
    remainders = sorted(range(len(levels)), key=lambda i: (-(n * weights[i] % total), i))
    for index in remainders[: n - sum(counts)]:
        counts[index] += 1
    spread = [level for level, count in zip(levels, counts, strict=True) for _ in range(count)]
    return stream.sample(spread, n)


def drawn_entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """The list of trainings that a settings file with `draw` describes, in the form of one that lists them.

    Parameters
    ----------
    content : mapping
        `draw`: list of {group, prefix, n, seed}; a group may have `factors` and a `mixture` of its own, which replace those of
        the same name; `factors`: name -> list of {weight, set: {setting: value}}; `skills`: list of lists of turn types, each list
        weighted as one per training; `mixture`: turn type -> weight in every training; `override`: name -> settings that
        replace those drawn; `repeat`: names to be repeated from scratch with another seed.

    Raises
    ------
    VisualHeadsError
        If a group or a factor is not complete, or a training to change or to repeat does not exist.
    """
    defaults = dict(content.get("defaults") or {})
    entries: list[dict[str, Any]] = []
    for group in content["draw"]:
        missing = sorted({"group", "prefix", "n", "seed"} - set(group))
        if missing:
            raise VisualHeadsError(
                f"A group of trainings needs group, prefix, n and seed; {', '.join(missing)} is missing."
            )
        entries += _group(content, group)
    by_name = {entry["name"]: entry for entry in entries}
    for name, changes in (content.get("override") or {}).items():
        if name not in by_name:
            raise VisualHeadsError(
                f"Only a drawn training can be changed; {name!r} is none. Name one of {', '.join(by_name)}."
            )
        by_name[name].update(changes)
    for position, name in enumerate(content.get("repeat", ())):
        if name not in by_name:
            raise VisualHeadsError(
                f"Only a drawn training can be repeated; {name!r} is none. Name one of {', '.join(by_name)}."
            )
        entries.append(by_name[name] | {"name": f"{name}-repeat", "seed": 9001 + position})
    return {"defaults": defaults, "trainings": entries}


def _group(content: Mapping[str, Any], group: Mapping[str, Any]) -> list[dict[str, Any]]:
    n = int(group["n"])
    columns = []
    for factor, levels in (content["factors"] | (group.get("factors") or {})).items():
        stream = RandomStream(f"design-{group['seed']}-{factor}")
        columns.append(balanced([level["set"] for level in levels], [level["weight"] for level in levels], n, stream))
    entries = []
    for index in range(n):
        entry: dict[str, Any] = {"seed": 1000 * int(group["seed"]) + index}
        for column in columns:
            entry |= column[index]
        stream = RandomStream(f"mixture-{group['seed']}", index)
        entry["mixture"] = {
            kind: share for kinds in content["skills"] for share in [_share(stream)] for kind in kinds
        } | dict(group.get("mixture") or content.get("mixture") or {})
        steps = int(entry["steps"])
        entry["snapshots"] = [max(1, round(steps * share)) for share in SNAPSHOT_SHARES] if steps >= 10 else []
        name = f"{group['prefix']}{index + 1:02d}"
        entries.append({"name": name, **entry})
    return entries


def _share(stream: RandomStream) -> float:
    """A weight of 0.25, 0.5, 1 or 2: some skills are taught eight times as often as others."""
    return stream.choice((0.25, 0.5, 1.0, 2.0))
