"""Sphinx configuration. `make docs` builds with warnings as errors; what is generated is written to docs/generated first."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import generate  # noqa: E402  (beside this file)

from lmms_visual_heads import __version__  # noqa: E402

project = "lmms-visual-heads"
author = "The lmms-visual-heads developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "code"  # single backticks in docstrings
smartquotes = False  # "--heads" is an option, not a dash

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

# Types stand in the numpydoc sections, with shapes and units; the signature shows names and defaults only.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = "lmms-visual-heads"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app: object) -> None:
    generate.write(HERE / "generated")
