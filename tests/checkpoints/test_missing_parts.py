"""Folders with empty files, pointers in the place of files, or code: refused by name, and nothing of them is executed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints.any_model import load_any
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.original import original_checkpoint
from tests.builders.tiny import QUESTION, noise_image

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("llava-llama"), tmp_path / "checkpoint"))


@pytest.mark.parametrize("load", [load_model, load_any], ids=["llava", "any"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
@pytest.mark.parametrize(
    ("content", "words"), [("", "is empty"), (POINTER, "is a Git LFS pointer")], ids=["empty", "pointer"]
)
def test_an_empty_file_or_a_pointer_is_named(folder: Path, load: Callable, name: str, content: str, words: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(VisualHeadsError, match=f"{name} {words}"):
        load(folder, device="cpu")


@pytest.mark.parametrize("load", [load_model, load_any], ids=["llava", "any"])
def test_a_pointer_in_the_place_of_weights_is_named(folder: Path, load: Callable) -> None:
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(VisualHeadsError, match=r"model\.safetensors is a Git LFS pointer"):
        load(folder, device="cpu")


def test_an_original_checkpoint_with_an_empty_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llava-v1.5-7b"
    original_checkpoint(folder)
    (folder / "tokenizer.model").write_text("")
    with pytest.raises(VisualHeadsError, match=r"tokenizer\.model is empty"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("load", [load_model, load_any], ids=["llava", "any"])
@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("processor_config.json", {"AutoProcessor": "code.Processor"}),
        ("preprocessor_config.json", {"AutoImageProcessor": "code.Images", "AutoProcessor": "code.Processor"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}),
        ("config.json", {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}),
    ],
)
@pytest.mark.parametrize("unknown", [False, True], ids=["known class", "unknown class"])
def test_code_in_a_folder_is_never_executed_nor_asked_about(
    folder: Path, load: Callable, name: str, entry: dict, unknown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    trace = folder / "executed"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w').write('x')\n")
    path = folder / name
    document = json.loads(path.read_text()) if path.exists() else {}
    own_class = {"processor_class": "Processor", "image_processor_type": "Images", "tokenizer_class": "Tokenizer"}
    path.write_text(json.dumps(document | (own_class if unknown else {}) | {"auto_map": entry}))
    with contextlib.suppress(VisualHeadsError):
        load(folder, device="cpu").attention_rows(noise_image(60, 60), QUESTION)
    assert not trace.exists()
    assert not asked
