"""Pages that are made from the code: commands, columns, flags and methods. Called by conf.py; nothing here is kept by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def commands() -> str:
    """Every verb of `visual-heads`, by typer's own generator."""
    words = ["lmms_visual_heads.cli", "utils", "docs", "--name", "visual-heads", "--title", "Commands"]
    done = subprocess.run([sys.executable, "-m", "typer", *words], capture_output=True, text=True, check=True)
    overview = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n?")  # the headings below say the same, in full
    return overview.sub("", done.stdout)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def tables() -> str:
    """Every column of every table, from `lmms_visual_heads.schema`."""
    from lmms_visual_heads import schema

    kinds = (
        ("Head table", "`*.heads.parquet`: one row per task, document, layer and head.", schema.HEAD_COLUMNS),
        ("Answer table", "`*.answers.parquet`: one row per task and document.", schema.ANSWER_COLUMNS),
        ("Causal table", "`*.causal.parquet`: one row per task, document and knock-out.", schema.CAUSAL_COLUMNS),
        ("Score table", "CSV: one row per model and benchmark.", schema.SCORE_COLUMNS),
        ("Item table", "One row per model, benchmark and document.", schema.ITEM_COLUMNS),
    )
    parts = [
        "# Columns\n",
        f"Schema version {schema.SCHEMA_VERSION}. A newer file is refused by name. A cell that may be missing is null: "
        "never 0, never NaN.\n",
    ]
    for title, words, columns in kinds:
        rows = [
            (f"`{c.name}`", str(c.type), c.unit, c.meaning + (" (may be missing)" if c.nullable else ""))
            for c in columns
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
    for name, text in (("commands", commands()), ("tables", tables()), ("flags_and_methods", flags_and_methods())):
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
