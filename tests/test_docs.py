"""The pages say what is there: links, commands, arguments, messages, rooms; their Python runs.

The walkthrough of the quick start runs in tests/lab/test_walkthrough.py.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.builders import pages
from tests.builders.paths import ROOT
from tests.test_rooms import MAY_IMPORT

DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WRITTEN = [path for path in WRITTEN if "generated" not in path.parts and "_build" not in path.parts]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def with_python() -> list[Path]:
    return [path for path in WRITTEN if any(block.language == "python" for block in pages.blocks(path))]


@pytest.mark.parametrize("page", pages.pages(), ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in pages.links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        whither = (page.parent / path).resolve() if path else page
        if "generated" in whither.parts:
            continue  # made by `make docs`, which checks links to it
        assert whither.exists(), f"{page}: {target}"
        assert not anchor or anchor in pages.anchors(whither), f"{page}: {target}"


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    from lmms_visual_heads.cli import app

    group: Any = typer.main.get_command(app)
    for program, *words in pages.commands(page):
        if program == "lmms-eval":
            check_lmms_eval(words, page)
            continue
        command = group
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not group or words[0].startswith("-") or words[0].isupper(), f"{page}: visual-heads {words}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
        assert {word for word in words if word.startswith("--")} <= known, f"{page}: {words}"


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_verb_of_the_laboratory_on_a_page_exists(page: Path) -> None:
    from lab.__main__ import VERBS

    assert set(re.findall(r"python -m lab ([a-z][a-z-]*)", page.read_text())) <= set(VERBS)


def check_lmms_eval(words: list[str], page: Path) -> None:
    """Model, tasks of ours and `--model_args` of an lmms-eval command."""
    from lmms_visual_heads.harness.arguments import Arguments, parse

    ours = {path.stem for path in (ROOT / "tasks").glob("[!_]*.yaml")}
    for option, value in pairwise(words):
        if option == "--model":
            assert value in ("visual_heads_llava", "visual_heads_hf"), f"{page}: {value}"
        elif option == "--model_args":
            assert set(parse(value)) <= {field.name for field in fields(Arguments)}, f"{page}: {value}"
        elif option == "--tasks":
            assert {task for task in value.split(",") if task.startswith(("vhead", "scenes"))} <= ours, (
                f"{page}: {value}"
            )


def test_the_table_of_arguments_is_complete() -> None:
    from lmms_visual_heads.harness.arguments import Arguments

    table = (DOCS / "tasks" / "probe.md").read_text().partition("## All arguments")[2]
    cells = re.findall(r"^\| (`.*?`) \|", table, flags=re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {field.name for field in fields(Arguments)} - {"batch_size"}


def message_patterns() -> list[re.Pattern[str]]:
    """Every string of the package's code as a pattern in which a placeholder stands for anything."""
    patterns = []
    for path in (ROOT / "lmms_visual_heads").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(part.value) if isinstance(part, ast.Constant) else ".+?" for part in node.values]
                patterns.append(re.compile("".join(parts), re.DOTALL))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                patterns.append(re.compile(re.escape(node.value)))
    return patterns


def test_every_message_of_the_troubleshooting_page_is_one_of_ours() -> None:
    cells = re.findall(r"^\| `(.*?)` \| ", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    ours = [pattern.pattern for pattern in message_patterns()]
    sources = "\n".join(ours)
    foreign = {"operator torchvision::nms does not exist"}
    assert foreign < set(cells)
    assert len(cells) > 35
    for cell in set(cells) - foreign:
        pieces = [piece.strip(" ;.") for piece in cell.split("…")]
        pieces = [piece for piece in pieces if len(piece.split()) > 1]
        assert pieces, cell
        wanted = re.compile(r".*?".join(re.escape(re.escape(piece)) for piece in pieces))
        assert wanted.search(sources), cell


def test_the_table_of_rooms_is_the_one_that_the_rooms_test_holds() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, flags=re.MULTILINE)
    told = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rows}
    assert set(told) == set(MAY_IMPORT)
    everything = set(MAY_IMPORT)
    told["demo"] = everything - {"demo", "cli"}
    told["cli"] = everything - {"cli"}
    assert told == MAY_IMPORT


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages' Python finds it: what was measured of 20 shipped checkpoints, and of one of another training."""
    from lmms_visual_heads.demo.manifest import checkpoints_folder
    from lmms_visual_heads.demo.measured import PROFILES_FILE, benchmark_tables, measured_folder
    from lmms_visual_heads.features import read_profiles, write_profiles

    folder = tmp_path_factory.mktemp("measured")
    shipped, new = measured_folder(), "w80-d3-t16-s4000"
    profiles = read_profiles([shipped / PROFILES_FILE])
    others = [name for name in profiles.models if not name.startswith("w80")]
    for name, models in (("heads", others), ("new_heads", [new])):
        (folder / name).mkdir()
        write_profiles(profiles.only(models), folder / name / "small.profiles.parquet")
        for table in benchmark_tables(shipped, models):
            shutil.copy(table, folder / name)
    for name in ("scores.csv", "lineages.csv"):
        lines = (shipped / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if not line.startswith("w80")))
    lines = (shipped / "scores.csv").read_text().splitlines(keepends=True)
    known = [line for line in lines if line.startswith(f"{new},scenes_color,")]
    (folder / "known.csv").write_text("".join([lines[0], *known]))
    shutil.copytree(checkpoints_folder() / "w64-d3-t16-s7000", folder / "checkpoints" / "w64-d3-t16-s7000")
    return folder


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *[path for path in with_python() if path.parent.name != "docs"]], ids=name_of
)
def test_the_python_on_a_page_runs(page: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(measured)
    if not (measured / "my.predictor").exists():
        fit = next(block for block in pages.blocks(DOCS / "tasks" / "fit.md") if block.language == "python")
        exec(compile(fit.text, "fit.md", "exec"), {})
    for block in pages.blocks(page):
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, str(page), "exec"), {})
            assert printed.getvalue().strip() or "print" not in block.text


def test_the_documentation_builds(tmp_path: Path) -> None:
    import lmms_visual_heads

    pytest.importorskip("sphinx", reason="make docs installs it")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "visual-heads estimate" in (tmp_path / "generated" / "commands.html").read_text()
    reference = (tmp_path / "generated" / "python.html").read_text()
    assert all(f'id="lmms_visual_heads.{name}"' in reference for name in lmms_visual_heads.__all__)
