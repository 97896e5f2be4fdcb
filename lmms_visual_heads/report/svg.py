"""A matplotlib figure as one `<svg>` element to stand inside a page. Needs no file, no font, no address.

Colours become CSS variables (palette.py), text takes the page's font, ids carry the figure's key so that figures do not meet.
"""

from __future__ import annotations

import html
import io
import re

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure

from lmms_visual_heads.report.palette import LIGHT

_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_COLOUR = re.compile("|".join(re.escape(colour) for colour in _VARIABLES))
_NOT_NEEDED = re.compile(r"<metadata>.*?</metadata>|<style\b.*?</style>", re.DOTALL)
_ROOT = re.compile(r'<svg\b[^>]*?viewBox="([^"]+)"[^>]*>', re.DOTALL)
_TAG = re.compile(r"<[^<>]+>")
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(?<=url\(#)[^)]+|(?<=href="#)[^"]+')
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")

RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "hatch.linewidth": 0.8,
}
"""Settings under which every figure of the report is made and drawn."""


def inline_svg(figure: Figure, key: str, title: str) -> Markup:
    """`figure` as an `<svg>` element.

    Parameters
    ----------
    figure : Figure
        Drawn with the colours of `palette.LIGHT`.
    key : str
        Unique on the page; letters, digits and dashes. Prefix of all ids.
    title : str
        What the picture shows, for readers who do not see it; escaped here.

    Returns
    -------
    Markup
        Same bytes for the same figure: no date, no random ids.
    """
    buffer = io.StringIO()
    with style.context(["default", {**RC, "svg.hashsalt": key}]):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
    text = _NOT_NEEDED.sub("", buffer.getvalue())
    root = _ROOT.search(text)
    if root is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox; inline_svg must be adapted to this version.")
    body = text[root.end() :]
    referenced = set(_REFERENCE.findall(body))
    body = _TAG.sub(lambda match: _rewritten(match.group(0), key, referenced), body)
    body = re.sub(r">\s+<", "><", body)
    width, height = (float(value) for value in root.group(1).split()[2:])
    head = (
        f'<svg class="figure" viewBox="{root.group(1)}" role="img" aria-label="{html.escape(title)}" '
        f'style="max-width:{width * 1.25:.0f}px;aspect-ratio:{width:.0f}/{height:.0f}">'
    )
    return Markup(head + body.strip())


def _rewritten(tag: str, key: str, referenced: set[str]) -> str:
    """One tag with variables for colours, the page's font, ids of this figure, and without what a page does not need."""
    if tag.startswith("<image"):
        tag = re.sub(r"base64,\s+", "base64,", tag)
    else:
        tag = _COLOUR.sub(lambda match: _VARIABLES[match.group(0)], re.sub(r"\s+", " ", tag))
        tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", _FONT.sub("var(--figure-font)", tag))
    tag = _ID.sub(lambda match: f' id="{key}-{match.group(1)}"' if match.group(1) in referenced else "", tag)
    return _REFERENCE.sub(lambda match: f"{key}-{match.group(0)}", tag).replace("xlink:href", "href")
