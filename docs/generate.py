"""Pages that are made from the code: commands, Python, columns, flags, methods. Called by conf.py; nothing is kept by hand."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGE = "lmms_visual_heads"


def commands() -> str:
    """Every verb of `visual-heads`, by typer's own generator."""
    words = ["lmms_visual_heads.cli", "utils", "docs", "--name", "visual-heads", "--title", "Commands"]
    done = subprocess.run([sys.executable, "-m", "typer", *words], capture_output=True, text=True, check=True)
    overview = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n?")  # the headings below say the same, in full
    return overview.sub("", done.stdout)


def python() -> str:
    """Every public name, by numpydoc from its docstring; the order is that of `lmms_visual_heads.__all__` within each kind."""
    import lmms_visual_heads

    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors": [], "Deprecated": []}
    for name in lmms_visual_heads.__all__:
        value = getattr(lmms_visual_heads, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            kinds["Errors"].append(f".. autoexception:: {name}\n")
        elif inspect.isclass(value):
            ours = {m for m in vars(value) if str(getattr(getattr(value, m), "__module__", "")).startswith(PACKAGE)}
            methods = [m for m in vars(value) if m in ours and not m.startswith("_")]  # not what scikit-learn adds
            kinds["Classes"].append(f".. autoclass:: {name}\n   :members: {', '.join(methods)}\n")
        else:
            deprecated = ".. deprecated::" in (value.__doc__ or "")
            kinds["Deprecated" if deprecated else "Functions"].append(f".. autofunction:: {name}\n")
    parts = [
        "# Python\n",
        "Everything here is imported from `lmms_visual_heads`. Paths may be strings or `Path`, one or several, files or folders.\n",
    ]
    for title, directives in [kind for kind in kinds.items() if kind[1]]:
        parts += [f"## {title}\n", "```{eval-rst}", ".. currentmodule:: lmms_visual_heads\n", *directives, "```\n"]
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def columns() -> str:
    """Every column of every table, from where it is declared: `lmms_visual_heads.tables`."""
    from lmms_visual_heads import schema, tables

    kinds = (
        ("Head table", "`*.heads.parquet`: one row per task, document, layer and head.", tables.HEAD_COLUMNS),
        ("Answer table", "`*.answers.parquet`: one row per task and document.", tables.ANSWER_COLUMNS),
        ("Causal table", "`*.causal.parquet`: one row per task, document and knock-out.", tables.CAUSAL_COLUMNS),
        ("Score table", "CSV: one row per model and benchmark.", tables.SCORE_COLUMNS),
        (
            "Item table",
            "CSV, Parquet or lmms-eval's samples: one row per model, benchmark and document.",
            tables.ITEM_COLUMNS,
        ),
        ("Lineage table", "CSV: one row per checkpoint.", tables.LINEAGE_COLUMNS),
    )
    parts = [
        "# Columns\n",
        f"Schema version {schema.SCHEMA_VERSION}. A newer file is refused by name. A cell that may be missing is null: "
        "never 0, never NaN.\n",
    ]
    for title, words, declared in kinds:
        rows = [
            (f"`{c.name}`", str(c.type), c.unit, c.meaning + (" (may be missing)" if c.nullable else ""))
            for c in declared
        ]
        parts += [f"## {title}\n", f"{words}\n", _table(("column", "type", "unit", "meaning"), rows)]
    return "\n".join(parts)


def flags_and_methods() -> str:
    """Flags of a prediction, and the declared methods."""
    from lmms_visual_heads.prediction.flags import FLAG_WORDS
    from lmms_visual_heads.prediction.methods import METHOD_WORDS

    flags = _table(("flag", "meaning"), [(f"`{flag}`", words) for flag, words in FLAG_WORDS.items()])
    methods = _table(("method", "predicts from"), [(f"`{name}`", words) for name, words in METHOD_WORDS.items()])
    return (
        f"# Flags and methods\n\n## Flags\n\nThe column `flags` of a prediction; several are joined by `;`.\n\n{flags}\n"
        f"## Methods\n\nThe column `method`: what the number was predicted from.\n\n{methods}"
    )


def write(folder: Path) -> None:
    """Write the pages; a page that has not changed is left alone, so that a second build is quick."""
    folder.mkdir(exist_ok=True)
    for page in (commands, python, columns, flags_and_methods):
        path, text = folder / f"{page.__name__}.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
