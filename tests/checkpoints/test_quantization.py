"""4- and 8-bit weights: the words of every refusal, and, where bitsandbytes is installed, what is loaded and recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmms_visual_heads import load_model
from lmms_visual_heads.capture.selfcheck import self_check
from lmms_visual_heads.checkpoints import quantization
from lmms_visual_heads.checkpoints.any_model import load_any
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.original import original_checkpoint
from tests.builders.tiny import QUESTION, noise_image
from tests.checkpoints.test_original_adapters import adapter

Tiny = Callable[[str], Path]
LAYER = "model.language_model.layers.0.self_attn.q_proj"


def refusal(load: Callable[..., Any], source: Path, **settings: Any) -> str:
    with pytest.raises(VisualHeadsError) as caught:
        load(source, device="cpu", **settings)
    return str(caught.value)


def stored_in(source: Path, folder: Path, **settings: Any) -> Path:
    """A copy whose config.json says that its weights are quantised."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)


@pytest.mark.parametrize("load", [load_model, load_any])
def test_without_bitsandbytes(load: Callable[..., Any], tiny: Tiny, tmp_path: Path, not_installed: None) -> None:
    words = refusal(load, tiny("llava-llama"), quantization="4bit")
    assert "quantization=4bit needs the package bitsandbytes, which is not installed" in words
    assert "leave quantization= out" in words
    stored = stored_in(tiny("llava-llama"), tmp_path / "s", quant_method="bitsandbytes", load_in_8bit=True)
    assert "A checkpoint stored in 8bit needs the package bitsandbytes" in refusal(load, stored)


@pytest.mark.parametrize("load", [load_model, load_any])
def test_what_is_no_quantization(load: Callable[..., Any], tiny: Tiny) -> None:
    assert "quantization must be 4bit or 8bit; got '3bit'" in refusal(load, tiny("llava-llama"), quantization="3bit")


def test_a_device_that_the_package_does_not_serve(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("None of the available devices are supported.\nSee the docs.")

    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    monkeypatch.setattr(quantization, "BitsAndBytesConfig", fail)
    words = refusal(load_model, tiny("llava-llama"), quantization="8bit")
    assert "quantization=8bit cannot be loaded on cpu here (None of the available devices are supported)" in words
    assert "without quantization=" in words


def test_stored_quantised_by_methods_that_are_not_here(tiny: Tiny, tmp_path: Path) -> None:
    stored = stored_in(tiny("llava-llama"), tmp_path / "unknown", quant_method="nobodys")
    assert "A checkpoint stored in nobodys cannot be loaded on cpu here" in refusal(load_model, stored)
    assert "stored quantised (nobodys). Leave quantization= out" in refusal(load_model, stored, quantization="4bit")


def test_an_adapter_is_not_merged_into_packed_weights(tiny: Tiny, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", {LAYER: (64, 64)}, base_model_name_or_path=str(tiny("llava-llama")))
    words = "merged into weights in full precision"
    assert words in refusal(load_model, tiny("llava-llama"), quantization="4bit", peft=tmp_path / "adapter")
    assert words in refusal(load_model, tmp_path / "adapter", quantization="4bit")


def test_the_original_format_is_converted_first(tmp_path: Path) -> None:
    original_checkpoint(tmp_path / "runs" / "checkpoint")
    words = refusal(load_model, tmp_path / "runs" / "checkpoint", quantization="4bit")
    assert "Run `visual-heads convert SRC DST` first" in words
    stored = stored_in(tmp_path / "runs" / "checkpoint", tmp_path / "runs" / "s", load_in_4bit=True)
    assert "must hold plain weights" in refusal(load_model, stored)


def test_the_self_check_skips_what_8_bits_cannot_show(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny("llava-llama"), device="cpu")
    monkeypatch.setattr(model.model, "is_loaded_in_8bit", True, raising=False)
    finding = self_check(model, repeats=1).findings[1]
    assert finding.holds is None
    assert "8-bit layers" in finding.detail


def wide_checkpoint(source: Path, folder: Path) -> Path:
    """As `source`, with layers of whole blocks of 64 columns: 4-bit weights on a CPU need them."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig.from_pretrained(source)
    config.text_config.intermediate_size = 128
    config.vision_config.hidden_size, config.vision_config.intermediate_size = 64, 128
    shutil.copytree(source, folder)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_on_loading_and_as_stored(bits: str, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    source = wide_checkpoint(tiny("llava-llama"), tmp_path / "plain")
    plain = load_model(source, device="cpu")
    packed = load_model(source, device="cpu", quantization=bits)
    assert packed.description["quantization"] == bits
    assert "quantization" not in plain.description
    assert packed.description["language_model_parameters"] == plain.description["language_model_parameters"]
    assert type(packed.model.get_submodule(LAYER)).__module__.startswith("bitsandbytes")
    folder = Path(shutil.copytree(source, tmp_path / "stored"))
    packed.model.save_pretrained(folder)
    rows = packed.attention_rows(noise_image(), QUESTION).values
    torch.testing.assert_close(rows.sum(-1), torch.ones(3, 4))
    stored = load_model(folder, device="cpu")
    assert stored.description["quantization"] == bits
    assert stored.description["language_model_parameters"] == plain.description["language_model_parameters"]
    torch.testing.assert_close(stored.attention_rows(noise_image(), QUESTION).values, rows, atol=1e-5, rtol=0)
    assert load_any(source, device="cpu", quantization=bits).description["quantization"] == bits
    assert self_check(packed, repeats=1).passed
    refused = refusal(load_model, folder, quantization=bits)
    assert f"is stored quantised ({bits})" in refused
