"""The self-check holds on good models, and fails where the capture would be wrong."""

from __future__ import annotations

import json

import pytest
import torch

from lmms_visual_heads import load_model
from lmms_visual_heads.capture import selfcheck
from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.selfcheck import drawn_image, self_check


@pytest.mark.parametrize("kind", ["llava-llama3", "llavanext-mistral", "vipllava-llama"])
def test_every_proof_holds(tiny, kind: str) -> None:
    result = self_check(load_model(tiny(kind), device="cpu"), repeats=1)
    assert result.passed
    assert [finding.holds for finding in result.findings] == [True] * 4
    assert result.facts["layers"] == 3
    assert result.facts["heads"] == 4
    assert result.facts["patch_tokens"] <= result.facts["visual_tokens"] < result.facts["prompt_tokens"]
    assert 0 < result.facts["cost_ratio_low"] <= result.facts["cost_ratio"] <= result.facts["cost_ratio_high"]
    json.dumps(result.facts)


def test_bf16_skips_eager_with_a_word(tiny) -> None:
    result = self_check(load_model(tiny("llava-llama"), device="cpu", dtype="bfloat16"), repeats=1)
    assert result.passed
    assert result.findings[1].holds is None
    assert "skipped" in result.findings[1].detail


def test_large_models_skip_eager_with_a_word(tiny, monkeypatch) -> None:
    monkeypatch.setattr(selfcheck, "EAGER_BYTES", 1)
    finding = self_check(load_model(tiny("llava-llama"), device="cpu"), repeats=1).findings[1]
    assert finding.holds is None
    assert "GiB" in finding.detail


def test_a_model_that_does_not_use_our_function_is_found_out(tiny) -> None:
    model = load_model(tiny("llava-llama"), device="cpu")
    inputs = model.move(model.encode(selfcheck.QUESTION, [drawn_image()]).inputs)
    model.model.set_attn_implementation({"text_config": "sdpa"})
    with torch.inference_mode():
        logits = model.model(**inputs).logits[:, -1]
    assert selfcheck._influence(model, inputs, logits).holds is False
    attach(model.model)
    assert selfcheck._influence(model, inputs, logits).holds is True
    assert selfcheck._influence(model, inputs, logits).holds is True, "the stock function is put back"


def test_wrong_rows_are_found_out(tiny, monkeypatch) -> None:
    from lmms_visual_heads.capture import attention

    stock = attention.last_query_row
    monkeypatch.setattr(attention, "last_query_row", lambda *args: stock(*args).roll(1, -1))
    findings = self_check(load_model(tiny("llava-llama"), device="cpu"), repeats=1).findings
    assert [finding.holds for finding in findings] == [True, False, True, True]
    monkeypatch.setattr(attention, "last_query_row", lambda *args: stock(*args) * 0.9)
    assert self_check(load_model(tiny("llava-llama"), device="cpu"), repeats=1).findings[0].holds is False
