"""What a predictor is given, as values or as paths; and calls in the form of earlier versions, which still work and warn.

Never imports torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.features.measurements import Measurements, as_measurements
from lmms_visual_heads.tables import HeadTable, read_items, read_scores

MeasurementSource = Measurements | HeadProfiles | HeadTable | str | os.PathLike[str] | Iterable[Any]
"""Measurements themselves, head profiles or tables alone, or paths that `read_measurements` reads."""


def heads_of(measurements: Measurements) -> HeadProfiles:
    """The head profiles.

    Raises
    ------
    VisualHeadsError
        When no head was read.
    """
    if measurements.heads is None:
        models = ", ".join(measurements.models) or "no model"
        raise VisualHeadsError(
            f"Head tables are required; {models} came without any. Run the probe: lmms-eval --model visual_heads_llava "
            "--tasks vhead, and name its folder."
        )
    return measurements.heads


def as_scores(scores: pd.DataFrame | str | os.PathLike[str]) -> pd.DataFrame:
    """A score table; a path is read."""
    return read_scores(scores) if isinstance(scores, str | os.PathLike) else scores


def as_items(items: pd.DataFrame | str | os.PathLike[str] | None) -> tuple[pd.DataFrame | None, tuple[str, ...]]:
    """An item table and what was left out on reading it; a path, or several, are read."""
    if items is None or isinstance(items, pd.DataFrame):
        return items, ()
    read = read_items([items] if isinstance(items, str | os.PathLike) else list(items))
    return read.frame, tuple(read.notes)


def old_fit(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Let `fit(head_profiles, score_table, lineages, measured, items)` work, with a DeprecationWarning."""
    names = ("lineages", "measured", "items")

    @wraps(fit)
    def fit_either(
        self: Any,
        measurements: Any = None,
        scores: Any = None,
        *more: Any,
        groups: Any = None,
        items: Any = None,
        **old: Any,
    ) -> Any:
        measurements, scores = old.pop("head_profiles", measurements), old.pop("score_table", scores)
        given = {**dict(zip(names, more, strict=False)), **old}
        if given:
            _refuse_unknown(given, names, "fit")
            _warn("fit(measurements, scores, *, groups=None, items=None)")
            measurements = _beside(measurements, given.get("measured"))
            groups, items = given.get("lineages", groups), given.get("items", items)
        elif _only_heads(measurements):
            _warn("fit(Measurements(heads=head_profiles), scores), or paths for both")
        return fit(self, measurements, scores, groups=groups, items=items)

    return fit_either


def old_predict(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Let `predict(head_profiles, known, force, measured, items)` work, with a DeprecationWarning."""
    names = ("known", "force", "measured", "items")

    @wraps(predict)
    def predict_either(
        self: Any,
        measurements: Any = None,
        *more: Any,
        known_scores: Any = None,
        items: Any = None,
        force: bool = False,
        **old: Any,
    ) -> Any:
        measurements = old.pop("head_profiles", measurements)
        given = {**dict(zip(names, more, strict=False)), **old}
        if given:
            _refuse_unknown(given, names, predict.__name__)
            _warn(f"{predict.__name__}(measurements, *, known_scores=None, items=None, force=False)")
            measurements = _beside(measurements, given.get("measured"))
            known_scores, items = given.get("known", known_scores), given.get("items", items)
            force = given.get("force", force)
        elif _only_heads(measurements):
            _warn(f"{predict.__name__}(Measurements(heads=head_profiles)), or a path")
        return predict(self, measurements, known_scores=known_scores, items=items, force=force)

    return predict_either


def _beside(heads: Any, measured: Measurements | None) -> Measurements:
    """Heads, and what was measured beside them, as one."""
    profiles = as_measurements(heads)
    if measured is None:
        return profiles
    return Measurements.join([profiles, measured.without_heads()])


def _only_heads(measurements: Any) -> bool:
    """Whether these are head profiles or head tables, as they were given before there were `Measurements`."""
    entries = measurements if isinstance(measurements, list | tuple) else [measurements]
    return any(isinstance(entry, HeadProfiles | HeadTable) for entry in entries)


def _refuse_unknown(given: dict[str, Any], names: tuple[str, ...], call: str) -> None:
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise TypeError(f"{call}() got an unexpected keyword argument {unknown[0]!r}")


def _warn(now: str) -> None:
    warnings.warn(f"this form of the call is an earlier one; it is now {now}", DeprecationWarning, stacklevel=3)
