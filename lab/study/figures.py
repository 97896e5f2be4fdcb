"""The picture of the study: MAE against labelled items. Drawn from frames; SVG, the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lab.study.contestants import PRODUCT
from lmms_visual_heads.report.palette import LIGHT
from lmms_visual_heads.report.svg import RC

_LINES = (
    ("new_training", PRODUCT, LIGHT["predicted"], "-", "the product, 256 answers"),
    ("equal_cost", PRODUCT, LIGHT["predicted"], ":", "the product, only the labelled items answered"),
    ("equal_cost", "direct, shrunk", LIGHT["muted"], "-", "direct scoring, drawn to the references' mean"),
    ("equal_cost", "item response", LIGHT["muted"], ":", "item response model, mixed with direct scoring"),
    ("equal_cost", "direct", LIGHT["baseline"], "--", "direct scoring"),
)


def labels_figure(table: pd.DataFrame) -> Any:
    """MAE against labelled items of each benchmark, of the first set of `table` (`summary.summary`)."""
    from matplotlib import style
    from matplotlib.figure import Figure

    first = table["set"].iloc[0]
    own = table[(table["set"] == first) & (table["contestant"].isin([line[1] for line in _LINES]))]
    with style.context(["default", RC]):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axis = figure.subplots()
        for setting, contestant, colour, line, label in _LINES:
            part = own[(own["setting"] == setting) & (own["contestant"] == contestant) & (own["labels"] > 0)]
            part = part.sort_values("labels")
            axis.plot(part["labels"], part["mae"], line, color=colour, marker=".", label=label)
            axis.fill_between(part["labels"], part["mae_low"], part["mae_high"], color=colour, alpha=0.12, linewidth=0)
        free = own[(own["setting"] == "new_training") & (own["contestant"] == PRODUCT) & (own["labels"] == 0)]
        for value in free["mae"]:
            axis.axhline(
                value,
                color=LIGHT["predicted"],
                linewidth=0.8,
                linestyle="--",
                label="the product, 256 answers, no label",
            )
        axis.set_xscale("log")
        ticks = sorted({int(n) for n in own["labels"] if n > 0})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("labelled items of each benchmark")
        axis.set_ylabel("MAE, points")
        axis.set_title(f"New trainings: {first}", loc="left")
        axis.legend(frameon=False, fontsize=8.5)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write a figure as SVG; no date, no random ids."""
    from matplotlib import style

    path.parent.mkdir(parents=True, exist_ok=True)
    with style.context(["default", {**RC, "svg.hashsalt": path.stem, "savefig.facecolor": "white"}]):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path
