"""What gets installed: the wheel holds the product and nothing else, the sdist all that builds it; constraints, tokenizers."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.builders.paths import ROOT


def tracked() -> list[str]:
    """Files of the project: what git knows, and what is new and not ignored."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout to know which files belong to the project")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def built(kind: str, source: Path, out: Path) -> Path:
    """The file that setuptools builds of `source`, without fetching anything."""
    script = (
        "import os, sys; source, out = sys.argv[1:]; os.chdir(source); from setuptools import build_meta;"
        f"build_meta.build_{kind}(out)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(source), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of the working tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    return built("sdist", source, out)


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what the sdist holds, as pip builds it."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


def task_files() -> set[str]:
    return {p.name for p in (ROOT / "tasks").iterdir()}


def test_the_task_folder_holds_yaml_only() -> None:
    assert {Path(name).suffix for name in task_files()} == {".yaml"}


def test_every_room_is_listed_as_a_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    rooms = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lmms_visual_heads").rglob("__init__.py")}
    assert listed == rooms | {"lmms_visual_heads.tasks"}


def test_the_wheel_holds_the_package_and_the_tasks_and_nothing_else(wheel: Path) -> None:
    """No laboratory and no tests; every module, template, shipped checkpoint and measurement."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {name for name in tracked() if name.startswith("lmms_visual_heads/")}
    assert inside == package | {f"lmms_visual_heads/tasks/{name}" for name in task_files()}
    parts = {"report/templates", "demo/checkpoints", "demo/measurements", "demo/measurements/own", "py.typed"}
    for part in parts:
        assert any(name.startswith(f"lmms_visual_heads/{part}") for name in inside), part


def test_the_wheel_brings_its_command_and_its_models(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(archive.read(name).decode())
    assert dict(points["console_scripts"]) == {"visual-heads": "lmms_visual_heads.cli:main"}
    assert set(points["lmms_eval.models"]) == {"visual_heads", "visual_heads_hf"}
    for section in points.sections():
        for target in points[section].values():
            module, attribute = target.split(":")
            assert callable(getattr(importlib.import_module(module), attribute))


def test_the_sdist_holds_what_is_needed_to_build_and_to_test(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    folders = ("lmms_visual_heads/", "tasks/", "tests/", "lab/")
    assert {name for name in tracked() if name.startswith(folders)} <= inside
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "CHANGELOG.md"} <= inside


def test_an_installed_wheel_finds_its_tasks(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = "from lmms_visual_heads.harness.plugin import tasks_folder; print(tasks_folder())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; {script}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    folder = Path(done.stdout.strip())
    assert folder == tmp_path / "lmms_visual_heads" / "tasks"
    assert {p.name for p in folder.iterdir()} == task_files()


def test_constraints_are_exact_and_name_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+", line), line
    assert not any("+cpu" in line for line in lines)


def test_a_tokenizer_model_only_tokenizer_loads(tmp_path: Path) -> None:
    """sentencepiece must fit the protobuf that lmms-eval's dependencies pin; else this fails with a tiktoken error."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import AutoTokenizer

    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n".join(f"how many {word} are there in picture {n}?" for n in range(40) for word in ("cats", "cars"))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, model_type="bpe", minloglevel=2
    )
    corpus.unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert {p.name for p in tmp_path.iterdir()} >= {"tokenizer.model"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "how many cats are there"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids).strip() == text


def test_files_that_the_readme_shows_are_in_the_repository() -> None:
    shown = re.findall(r"\]\(((?!https?:)[^)#]+)\)", (ROOT / "README.md").read_text())
    assert "reports/demo/report.png" in shown
    assert set(shown) <= set(tracked())
