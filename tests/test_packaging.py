"""What gets installed: wheel and sdist hold every room and the task files; the constraints and tokenizers work."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.builders.paths import ROOT


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist of the working tree, built without fetching anything."""
    folder = tmp_path_factory.mktemp("dist")
    script = (
        "import os, sys; source, out = sys.argv[1:]; os.chdir(source); from setuptools import build_meta;"
        "build_meta.build_sdist(out); build_meta.build_wheel(out)"
    )
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout to know which files belong to the project")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", script, str(source), str(folder)], check=True, capture_output=True)
    return folder


def task_files() -> set[str]:
    return {p.name for p in (ROOT / "tasks").iterdir()}


def test_the_task_folder_holds_yaml_only() -> None:
    assert {Path(name).suffix for name in task_files()} == {".yaml"}


def test_every_room_is_listed_as_a_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    rooms = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lmms_visual_heads").rglob("__init__.py")}
    assert listed == rooms | {"lmms_visual_heads.tasks"}


def test_wheel_and_sdist_hold_the_tasks_the_checkpoints_and_the_templates(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    (sdist,) = distributions.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in task_files():
        assert f"lmms_visual_heads/tasks/{name}" in in_wheel
        assert f"tasks/{name}" in in_sdist
    data = [
        p.relative_to(ROOT)
        for p in (ROOT / "lmms_visual_heads").rglob("*")
        if p.suffix in (".safetensors", ".jinja", ".csv")
    ]
    assert data
    for path in data:
        assert str(path) in in_wheel
        assert str(path) in in_sdist


def test_an_installed_wheel_finds_its_tasks(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
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
    tracked = subprocess.run(["git", "ls-files", *shown], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout to know which files belong to the project")
    assert set(tracked.stdout.split()) == set(shown)
