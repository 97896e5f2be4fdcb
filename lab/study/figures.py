"""Pictures of the zoo study: error against forward passes, and whether heads matter.

Drawn from frames; SVG, the same bytes every time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lab.study.methods.registry import BEST_LABEL_FREE, BEST_LABELLED
from lab.study.summary import curve
from lab.study.tables import SETTING_WORDS
from lmms_visual_heads.report.palette import LIGHT
from lmms_visual_heads.report.svg import RC

_FREE = "#8e3ea8"
_HEADS = "#1b8a5a"
_AGREED = "#b3541e"
_LINES = (
    ("direct scoring", LIGHT["baseline"], "--", "direct scoring"),
    ("direct scoring, shrunk", LIGHT["muted"], "-", "direct scoring, shrunk"),
    ("item response model", LIGHT["muted"], ":", "item response model"),
    (BEST_LABELLED, LIGHT["predicted"], "-", BEST_LABELLED),
    ("raw confidence", _FREE, ":", "raw confidence"),
    ("own answers, one pass", _FREE, "-.", "own answers, one pass a prompt, linear"),
    ("own answers, one pass, forest", _FREE, "--", "own answers, one pass a prompt, forest"),
    ("raw agreement", _AGREED, ":", "raw agreement with the references"),
    (BEST_LABEL_FREE, _AGREED, "-", BEST_LABEL_FREE),
)
_POINTS = (
    ("own heads, forest", _HEADS, "o", "own heads, forest"),
    ("own causal heads, forest", _HEADS, "s", "own causal heads, forest"),
    ("all heads cut", _HEADS, "D", "all heads cut at once"),
    ("probe heads, forest", _HEADS, "^", "probe heads, forest"),
    ("probe accuracy, forest", LIGHT["actual"], "^", "probe accuracy, forest"),
)
_LEVELS = (
    ("median of points", LIGHT["baseline"], "median of the other trainings"),
    ("training loss, forest", LIGHT["actual"], "training loss, forest"),
)
_SHOWN = (8.0, 2048.0)


def passes_figure(table: pd.DataFrame, floor: float, settings: tuple[str, ...]) -> Any:
    """The central picture: error against forward passes per benchmark, one panel per setting, with the scores' noise floor.

    Parameters
    ----------
    table : DataFrame
        `trial_frames.summary`.
    floor : float
        Mean absolute error that the items' sampling leaves in the scores, points.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    settings = tuple(s for s in settings if (table["setting"] == s).any())
    with style.context(["default", RC]):
        columns = min(2, len(settings))
        rows = -(-len(settings) // columns)
        figure = Figure(figsize=(5.6 * columns, 4.1 * rows + 1.1), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for axis, setting in zip(axes, settings, strict=False):
            _panel(axis, table, setting, floor)
        for axis in axes[len(settings) :]:
            axis.set_visible(False)
        named: dict[str, Any] = {}
        for axis in axes:
            named.update({label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)})
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _panel(axis: Any, table: pd.DataFrame, setting: str, floor: float) -> None:
    for method, colour, line, label in _LINES:
        points = curve(table, setting, method)
        points = points[points["passes"] <= _SHOWN[1]]
        if len(points):
            axis.plot(points["passes"], points["error"], line, color=colour, label=label, marker=".", linewidth=1.5)
            if line == "-":
                axis.fill_between(
                    points["passes"], points["error_low"], points["error_high"], color=colour, alpha=0.12, linewidth=0
                )
    for method, colour, marker, label in _POINTS:
        points = curve(table, setting, method)
        if len(points):
            x = np.clip(points["passes"], *_SHOWN)
            spread = [points["error"] - points["error_low"], points["error_high"] - points["error"]]
            axis.errorbar(x, points["error"], spread, fmt=marker, color=colour, label=label, markersize=5, linewidth=1)
    for method, colour, label in _LEVELS:
        points = curve(table, setting, method)
        if len(points):
            axis.axhline(points["error"].iloc[0], color=colour, linewidth=1, linestyle=(0, (6, 3)), label=label)
    axis.axhspan(0, floor, color=LIGHT["missing"], alpha=0.6, linewidth=0, label="noise floor of the scores")
    axis.set_xscale("log", base=2)
    ticks = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xlim(6.5, 2500)
    axis.set_ylim(bottom=0)
    axis.set_title(SETTING_WORDS[setting], loc="left")
    axis.set_xlabel("forward passes per benchmark")
    axis.set_ylabel("mean absolute error, points")


def heads_figure(found: pd.DataFrame, settings: tuple[str, ...]) -> Any:
    """Paired differences with their intervals: left of 0 the first method errs less. `found` as `differences` gives it."""
    from matplotlib import style
    from matplotlib.figure import Figure

    settings = tuple(s for s in settings if (found["setting"] == s).any())
    names = list(dict.fromkeys(f"{row['method']}  –  {row['beside']}" for row in found.to_dict("records")))
    with style.context(["default", RC]):
        figure = Figure(figsize=(3.2 + 2.6 * len(settings), 0.27 * len(names) + 1.2), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(settings), sharey=True, squeeze=False)).ravel()
        for axis, setting in zip(axes, settings, strict=True):
            for row in found[found["setting"] == setting].to_dict("records"):
                y = len(names) - 1 - names.index(f"{row['method']}  –  {row['beside']}")
                sure = row["high"] < 0 or row["low"] > 0
                colour = LIGHT["predicted"] if row["high"] < 0 else LIGHT["actual"] if sure else LIGHT["baseline"]
                axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
                axis.plot(row["difference"], y, "o", color=colour, markersize=4)
            axis.axvline(0, color=LIGHT["ink"], linewidth=0.8)
            axis.set_title(SETTING_WORDS[setting], loc="left")
            axis.set_xlabel("difference in error, points")
            axis.set_yticks(range(len(names)), names[::-1], fontsize=8.5)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write a figure as SVG; no date, no random ids."""
    from matplotlib import style

    path.parent.mkdir(parents=True, exist_ok=True)
    with style.context(["default", {**RC, "svg.hashsalt": path.stem, "savefig.facecolor": "white"}]):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path
