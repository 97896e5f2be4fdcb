"""Colours of page and figures: one name per role, the same role in the same colour everywhere.

Figures are drawn in the light colours; `svg.inline_svg` turns each of them into a CSS variable, so dark mode needs no second
drawing. Every light colour therefore stands once. Chosen to stay apart for colour-blind readers and in grey print.
"""

from __future__ import annotations

from types import MappingProxyType

LIGHT = MappingProxyType(
    {
        "paper": "#ffffff",
        "ink": "#1c2127",
        "muted": "#5f6873",
        "rule": "#dfe3e8",
        "predicted": "#1f5fbf",
        "interval": "#b3cdf2",
        "baseline": "#969da8",
        "actual": "#d1570f",
        "missing": "#d5d9de",
        "missing-line": "#a9b0b9",
    }
)
DARK = MappingProxyType(
    {
        "paper": "#15181c",
        "ink": "#e6e9ed",
        "muted": "#a0a9b4",
        "rule": "#2d333a",
        "predicted": "#74a9ff",
        "interval": "#2c4d7e",
        "baseline": "#828b97",
        "actual": "#ff9b57",
        "missing": "#5a626d",
        "missing-line": "#8b95a1",
    }
)
MAP_COLOURS = "viridis"
"""Maps of W, F and S: perceptually uniform, safe for colour-blind readers."""
DEPTH_COLOURS = ("plasma", 0.12, 0.86)
"""Depth of a layer: a colour map and the part of it that shows on light and on dark paper."""
LIFT_COLOURS = "PuOr_r"
"""Region lift, zero in the middle."""


def css_variables(theme: MappingProxyType[str, str]) -> str:
    """Declarations `--name: colour;` of one theme."""
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())
