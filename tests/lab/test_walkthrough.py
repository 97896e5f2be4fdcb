"""The quick start's walk of twelve checkpoints runs as printed. Thirteen runs of lmms-eval: some minutes, so it stands here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.builders import pages
from tests.builders.paths import ROOT

QUICK_START = ROOT / "docs" / "quickstart.md"


def without_numbers(text: str) -> list[str]:
    """The lines with their runs of blanks as one and their numbers as "#": what does not depend on a machine's rounding."""
    lines = (re.sub(r"\d+(\.\d+)?", "#", " ".join(line.split())) for line in text.splitlines())
    return [line for line in lines if line.strip(" ─")]


def test_the_walkthrough_runs_as_printed(tmp_path: Path) -> None:
    """Every bash block of the quick start in one empty folder, and what it is said to print."""
    environment = {**os.environ, "COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    printed = ""
    for block in pages.blocks(QUICK_START):
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.text}\n{done.stderr[-3000:]}"
            printed = done.stdout
        elif block.language == "text":
            lines = without_numbers(printed)
            assert [line for line in without_numbers(block.text) if line not in lines] == []
    assert (tmp_path / "report" / "index.html").stat().st_size > 100_000
