"""README is read in five minutes: short, in short sentences, and every room and verb that it names exists."""

from __future__ import annotations

import re

import pytest
import typer

from tests.builders.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES, LONGEST, MEAN = 150, 40, 20


def without_code(text: str) -> str:
    """Markdown without code blocks, pictures, link targets and marks; a code span counts as one word."""
    text = re.sub(r"^```.*?^```$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*_>]", "", text)


def sentences(text: str) -> list[str]:
    """The sentences of paragraphs and list items; headings and tables have none."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d+\. )", without_code(text)):
        lines = [line.strip() for line in paragraph.splitlines()]
        if not any(lines) or any(line.startswith(("#", "|", ":::")) for line in lines):
            continue
        joined = re.sub(r"^(- |\d+\. )", "", " ".join(lines).strip())
        found += [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9“(])", joined) if re.search(r"[A-Za-z]", part)]
    return found


def table_cells(text: str) -> list[str]:
    lines = [line for line in without_code(text).splitlines() if line.startswith("|")]
    return [cell.strip() for line in lines for cell in line.strip("|").split("|")]


def verbs() -> set[str]:
    """The verbs of `visual-heads`."""
    from lmms_visual_heads.cli import app

    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def verbs_named(text: str) -> set[str]:
    """The words behind `visual-heads` in code."""
    code = re.findall(r"^```.*?^```$|`[^`]+`", text, flags=re.MULTILINE | re.DOTALL)
    return {verb for part in code for verb in re.findall(r"(?<![\w/-])visual-heads ([a-z][a-z-]*)", part)}


def test_it_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_its_sentences_are_short() -> None:
    lengths = {sentence: len(sentence.split()) for sentence in sentences(README)}
    assert len(lengths) > 30
    assert not {sentence: n for sentence, n in lengths.items() if n > LONGEST}
    assert sum(lengths.values()) / len(lengths) <= MEAN
    assert not [cell for cell in table_cells(README) if len(cell.split()) > LONGEST]


def test_every_room_is_named_and_every_named_room_exists() -> None:
    rooms = {path.parent.name for path in (ROOT / "lmms_visual_heads").glob("*/__init__.py")}
    table = README.partition("## The rooms")[2]
    assert set(re.findall(r"^\| `lmms_visual_heads/(\w+)` \|", table, flags=re.MULTILINE)) == rooms
    others = {
        name
        for line in re.findall(r"^\| (`\w+`[^|]*) \|", table, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", line)
    }
    assert {"tasks", "tests", "docs", "examples", "reports", "lab"} <= others
    assert all((ROOT / name).is_dir() for name in others)


def test_every_verb_that_it_names_exists() -> None:
    named = verbs_named(README)
    assert {"check", "sweep", "scores", "fit", "predict", "report"} <= named
    assert named <= verbs()


def test_it_tells_what_a_reader_must_know_first() -> None:
    """Toys, labels, fifteen trainings, one limit, samples: each before the commands that depend on it."""
    first_screen = README[: README.index("## What you get")]
    assert "small models trained on drawn scenes" in first_screen
    assert "scoring the same items directly is the better buy" in first_screen
    walk = README[README.index("## Scores for a new checkpoint") :]
    commands = walk.index("```bash")
    for words in ("Below 15 separate trainings", "the same `--limit`", "not a random sample"):
        assert 0 < walk.index(words) < commands
    for command in re.findall(r"lmms-eval --model(?:.*\\\n)*.*", README):
        assert "--log_samples" in command


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two three.", [1, 2]),
        ("- a b c.\n- d e.", [3, 2]),
        ("Run `make demo` now: it ends.", [5]),
        ("# Head\n\n| a b |", []),
    ],
)
def test_sentences_are_counted_as_a_reader_counts_them(text: str, count: list[int]) -> None:
    assert [len(sentence.split()) for sentence in sentences(text)] == count
