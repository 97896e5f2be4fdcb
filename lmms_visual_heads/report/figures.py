"""Figures of the report, each from one frame. Sizes in points (1/72 inch); drawn small so that they fit a phone unscaled.

Never computes a statistic: numbers come from frames.py and score_frames.py. Colours come from palette.py. A missing value is a
hatched cell, never a colour of the scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmms_visual_heads.report.palette import DEPTH_COLOURS, LIFT_COLOURS, LIGHT, MAP_COLOURS
from lmms_visual_heads.report.svg import RC

STATISTIC_LABELS = {
    "image_attention": "W, share of the head's attention",
    "concentration": "C, 0 spread evenly to 1 one token",
    "focus": "F, nats",
    "visual_head_score": "S = W × C",
    "region_lift": "region lift, nats (0: no preference)",
}
MAX_VECTOR_POINTS = 300
"""Above this a cloud of points is embedded as pixels, so that the page stays small."""

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Limits:
    """Colour scale of one statistic, the same for all models: values above `high` (below `low`) get the end colour."""

    low: float
    high: float
    cut: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"limits need low < high, got {self.low} and {self.high}")


def _drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def under_our_settings(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", RC]):
            return draw(*args, **kwargs)

    return under_our_settings


def shared_limits(values: pd.Series, statistic: str) -> Limits:
    """Scale for `values` of all models together: 0 to a round number at the 99.5 % quantile; lift: the same on both sides."""
    known = values.dropna().astype(float).to_numpy()
    known = known[np.isfinite(known)]
    if statistic == "region_lift":
        known = np.abs(known)
    largest = float(known.max()) if len(known) else 0.0
    if largest <= 0:
        high = 1.0
    else:
        quantile = float(np.quantile(known, 0.995)) or largest
        step = 10.0 ** np.floor(np.log10(quantile)) / 2
        high = float(np.round(np.ceil(quantile / step - 1e-9) * step, 10))
    return Limits(-high if statistic == "region_lift" else 0.0, high, cut=largest > high)


@_drawn
def map_figure(values: np.ndarray, statistic: str, limits: Limits) -> Figure:
    """Layer x head map with its colour bar; `values` [L, H], NaN where missing (hatched). Layer 0 on top."""
    layers, heads = values.shape
    width, height, left, below = 262.0, _map_height(layers), 34.0, 74.0
    figure = _figure(left + width + 10, below + height + 6)
    axes = _axes(figure, left, below, width, height)
    _draw_map(axes, values, statistic, limits)
    axes.set_xlabel("head", labelpad=2)
    axes.set_ylabel("layer", labelpad=2)
    for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
        axis.set_major_locator(MaxNLocator(nbins=min(8, count), integer=True, min_n_ticks=1))
    axes.tick_params(length=2, pad=2)
    bar = _axes(figure, left, 29, width, 7)
    bar.imshow(
        np.linspace(limits.low, limits.high, 128)[None, :],
        cmap=_map_colours(statistic),
        aspect="auto",
        interpolation="none",
        extent=(limits.low, limits.high, 0, 1),
    )
    bar.set_yticks([])
    ticks = np.linspace(limits.low, limits.high, 3)
    last = f"≥ {ticks[-1]:g}" if limits.cut else f"{ticks[-1]:g}"
    first = f"≤ {ticks[0]:g}" if limits.cut and limits.low < 0 else f"{ticks[0]:g}"
    bar.set_xticks(ticks, [first.replace("-", "−"), f"{ticks[1]:g}", last])
    _align(bar, "left", "center", "right")
    bar.tick_params(length=0, pad=2)
    bar.set_xlabel(STATISTIC_LABELS[statistic], labelpad=1, fontsize=10)
    bar.spines[:].set_visible(False)
    return figure


@_drawn
def thumbnail_figure(values: np.ndarray, statistic: str, limits: Limits) -> Figure:
    """The map alone, small, without axes: one of many to choose from."""
    figure = _figure(96, 64)
    axes = _axes(figure, 0, 0, 96, 64)
    _draw_map(axes, values, statistic, limits)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


@_drawn
def weight_concentration_figure(
    heads: pd.DataFrame, top: pd.DataFrame, threshold: float, limits: tuple[float, float]
) -> Figure:
    """Image attention W against concentration C, one point per head, coloured by layer; the line is S = `threshold`.

    `heads`: one model's rows of the head frame; `top`: its rows of the top-head frame, of which the first three are named;
    `limits`: largest W and C of all models.
    """
    width, height, left, below = 258.0, 226.0, 38.0, 74.0
    figure = _figure(left + width + 10, below + height + 8)
    axes = _axes(figure, left, below, width, height)
    x_high, y_high = limits
    axes.set(xlim=(0, x_high), ylim=(0, y_high))
    known = heads.dropna(subset=["image_attention", "concentration"])
    colours, last = _depth_colours(), max(int(heads["layer"].max()), 1)
    line = np.linspace(max(threshold / y_high, 1e-6), x_high, 200)
    if line[0] < x_high:
        axes.plot(line, threshold / line, color=LIGHT["muted"], linewidth=0.8, dashes=(4, 3), zorder=1)
    axes.scatter(
        known["image_attention"],
        known["concentration"],
        c=known["layer"],
        cmap=colours,
        vmin=0,
        vmax=last,
        s=22 if len(heads) <= MAX_VECTOR_POINTS else 12,
        linewidths=0,
        alpha=0.9,
        rasterized=len(known) > MAX_VECTOR_POINTS,
        clip_on=False,
        zorder=2,
    )
    _name_points(axes, top.head(3), (width, height), limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("image attention W", labelpad=2)
    axes.set_ylabel("concentration C", labelpad=3)
    _quiet(axes)
    bar = _axes(figure, left, 29, width, 7)
    bar.imshow(
        np.linspace(0, 1, 128)[None, :], cmap=colours, aspect="auto", interpolation="none", extent=(0, last, 0, 1)
    )
    bar.set_yticks([])
    bar.set_xticks([0, last], ["0", f"{last}"])
    _align(bar, "left", "right")
    bar.tick_params(length=0, pad=2)
    bar.set_xlabel("layer", labelpad=-7, fontsize=10)
    bar.spines[:].set_visible(False)
    return figure


@_drawn
def prediction_figure(frame: pd.DataFrame, limits: tuple[float, float]) -> Figure:
    """One model: a row per benchmark with the interval, the predicted score, the baseline and the actual score where known."""
    labels = [_short(name, 24) for name in frame["benchmark"]]
    left, row, width = _label_room(labels), 26.0, 205.0
    height = row * len(frame)
    figure = _figure(left + width + 12, height + 38)
    axes = _axes(figure, left, 34, width, height)
    axes.set(xlim=limits, ylim=(len(frame) - 0.5, -0.5))
    values = frame[["predicted", "low", "high", "baseline", "actual"]].to_numpy(float)
    for y, (predicted, low, high, baseline, actual) in enumerate(values):
        if np.isfinite(low) and np.isfinite(high):
            axes.plot(
                np.clip([low, high], *limits),
                [y, y],
                color=LIGHT["interval"],
                linewidth=7,
                solid_capstyle="butt",
                zorder=2,
            )
        if np.isfinite(baseline):
            axes.plot([baseline] * 2, [y - 0.32, y + 0.32], color=LIGHT["baseline"], linewidth=2.2, zorder=3)
        if np.isfinite(predicted):
            axes.plot(predicted, y, "o", color=LIGHT["predicted"], markersize=6, clip_on=False, zorder=4)
        if np.isfinite(actual):
            axes.plot(actual, y, "D", markerfacecolor=LIGHT["paper"], markeredgecolor=LIGHT["actual"],
                      markeredgewidth=1.6, markersize=5.6, clip_on=False, zorder=5)  # fmt: skip
    axes.set_yticks(range(len(frame)), labels)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.set_xlabel("score, points", labelpad=2)
    _quiet(axes, grid="x")
    return figure


@_drawn
def evaluation_figure(frame: pd.DataFrame, limits: tuple[float, float]) -> Figure:
    """One benchmark: predicted against actual with intervals, the diagonal, and the baseline's points in grey."""
    side, left, below = 214.0, 40.0, 36.0
    figure = _figure(left + side + 10, below + side + 8)
    axes = _axes(figure, left, below, side, side)
    axes.set(xlim=limits, ylim=limits)
    axes.plot(limits, limits, color=LIGHT["muted"], linewidth=0.8, zorder=1)
    many = len(frame) > MAX_VECTOR_POINTS
    bars = frame.dropna(subset=["low", "high"])
    axes.vlines(bars["actual"], bars["low"].clip(*limits), bars["high"].clip(*limits), color=LIGHT["interval"],
                linewidth=2.4, zorder=2, rasterized=many)  # fmt: skip
    axes.plot(
        frame["actual"],
        frame["baseline"],
        "_",
        color=LIGHT["baseline"],
        markersize=9,
        markeredgewidth=2,
        zorder=3,
        rasterized=many,
    )
    axes.plot(frame["actual"], frame["predicted"], "o", color=LIGHT["predicted"], markersize=4.6, markeredgewidth=0,
              clip_on=False, zorder=4, rasterized=many)  # fmt: skip
    axes.set_xlabel("actual, points", labelpad=2)
    axes.set_ylabel("predicted, points", labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _quiet(axes)
    return figure


@_drawn
def error_figure(errors: pd.DataFrame) -> Figure:
    """Mean absolute error per benchmark: two bars, predictor above baseline, with their numbers."""
    labels = [_short(name, 24) for name in errors["benchmark"]]
    left, row, width = _label_room(labels), 36.0, 250.0
    height = row * len(errors)
    figure = _figure(left + width + 34, height + 36)
    axes = _axes(figure, left, 32, width, height)
    largest = float(np.nanmax(errors[["error", "baseline_error"]].to_numpy(float)))
    axes.set(xlim=(0, largest * 1.06 or 1.0), ylim=(len(errors) - 0.5, -0.5))
    for name, at, ink in (("error", -0.19, "predicted"), ("baseline_error", 0.19, "baseline")):
        positions = np.arange(len(errors)) + at
        axes.barh(positions, errors[name], height=0.34, color=LIGHT[ink], zorder=2)
        for y, value in zip(positions, errors[name], strict=True):
            axes.annotate(
                f"{value:.1f}", (value, y), xytext=(4, 0), textcoords="offset points", va="center_baseline", fontsize=10
            )
    axes.set_yticks(range(len(errors)), labels)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.set_xlabel("MAE, points", labelpad=2)
    _quiet(axes, grid="x")
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width / 72, height / 72))


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    all_width, all_height = figure.get_size_inches() * 72
    return figure.add_axes((left / all_width, bottom / all_height, width / all_width, height / all_height))


def _map_height(layers: int) -> float:
    """Height of a map in points: roomy cells for few layers, no lower than five points a layer, at most 420."""
    return min(420.0, layers * max(5.0, min(26.0, 230.0 / layers)))


def _map_colours(statistic: str) -> Colormap:
    return colormaps[LIFT_COLOURS if statistic == "region_lift" else MAP_COLOURS].with_extremes(bad=(0, 0, 0, 0))


def _depth_colours() -> Colormap:
    name, start, end = DEPTH_COLOURS
    return LinearSegmentedColormap.from_list("depth", colormaps[name](np.linspace(start, end, 64)))


def _draw_map(axes: Axes, values: np.ndarray, statistic: str, limits: Limits) -> None:
    """The map over a hatched ground, which shows wherever a value is missing."""
    if not np.isfinite(values).all():
        axes.patch.set(facecolor=LIGHT["missing"], edgecolor=LIGHT["missing-line"], hatch="/////", linewidth=0)
    axes.imshow(
        np.ma.masked_invalid(values),
        cmap=_map_colours(statistic),
        vmin=limits.low,
        vmax=limits.high,
        aspect="auto",
        interpolation="none",
    )
    axes.spines[:].set_visible(False)


def _quiet(axes: Axes, grid: str = "both") -> None:
    """Thin grid behind the data, no tick marks, no frame."""
    axes.grid(True, axis=grid, color=LIGHT["rule"], linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=5)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _label_room(labels: list[str]) -> float:
    """Room for row labels of 10 points, in points."""
    return 12 + 5.7 * max((len(label) for label in labels), default=0)


def _align(bar: Axes, *sides: Literal["left", "center", "right"]) -> None:
    """Keep the numbers of a colour bar within its ends."""
    for label, side in zip(bar.get_xticklabels(), sides, strict=True):
        label.set_horizontalalignment(side)


def _name_points(axes: Axes, top: pd.DataFrame, size: tuple[float, float], limits: tuple[float, float]) -> None:
    """Write "L3 H7" beside each point where there is room; a name without room is left out, never laid over another."""
    (width, height), (x_high, y_high) = size, limits
    taken: list[tuple[float, float, float, float]] = []
    known = top.dropna(subset=["image_attention", "concentration"])
    names = [f"L{layer} H{head}" for layer, head in zip(known["layer"], known["head"], strict=True)]
    for text, (at_x, at_y) in zip(names, known[["image_attention", "concentration"]].to_numpy(float), strict=True):
        x, y, length = at_x / x_high * width, at_y / y_high * height, 6.0 * len(text)
        for dx, dy in ((6, 3), (-6, 3), (6, -11), (-6, -11), (6, 12)):
            left, low = x + dx - (length if dx < 0 else 0), y + dy - 1
            box = (left, low, left + length, low + 11)
            free = all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in taken)
            if free and left >= 2 and box[2] <= width + 8 and low >= 0 and box[3] <= height + 6:
                axes.annotate(
                    text,
                    (at_x, at_y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha="left" if dx > 0 else "right",
                    va="baseline",
                    fontsize=10,
                    color=LIGHT["ink"],
                    zorder=6,
                )
                taken.append(box)
                break
