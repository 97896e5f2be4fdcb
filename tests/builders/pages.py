"""Pages of Markdown, taken apart: committed files, code blocks, commands with their options, links, headings."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.builders.paths import ROOT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def pages() -> list[Path]:
    """All Markdown files of the project: committed, and new ones that git does not ignore."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return [Block(*match.groups()) for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> Iterator[list[str]]:
    """Every `visual-heads …` and `lmms-eval …` on a page as words, from bash and sh blocks and code spans."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [
        line
        for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    for line in [*lines, *spans]:
        match = re.search(r"(?<![\w/.-])(visual-heads|lmms-eval|-m lmms_eval) (?=\S)(.*)", line)
        if match:
            rest = re.split(r" [|>] |' *$", match[2])[0].replace("…", "")
            words = shlex.split(rest, comments=True)
            yield ["visual-heads" if match[1] == "visual-heads" else "lmms-eval", *words]


def links(page: Path) -> list[str]:
    """Targets of links and pictures on a page, outside code."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return _LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """What a link may name behind "#": headings as GitHub and MyST turn them into anchors."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}
