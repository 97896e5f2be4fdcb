"""The attention function: its row against a slow twin, its output against stock SDPA."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lmms_visual_heads.capture import attention
from lmms_visual_heads.capture.attention import ATTENTION_NAME, attach, last_query_row, visual_heads_attention
from lmms_visual_heads.capture.rows import stack_rows
from lmms_visual_heads.errors import VisualHeadsError


def slow_row(query: Tensor, key: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Row of the last query in float64, head by head: [B, H, K]."""
    batch, n_heads = query.shape[:2]
    group = n_heads // key.shape[1]
    rows = torch.zeros(batch, n_heads, key.shape[2], dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            scores = (key[b, h // group].double() @ query[b, h, -1].double()) * scaling
            scores[~visible[b]] = -torch.inf
            rows[b, h] = scores.softmax(0)
    return rows


def tensors(n_queries: int, n_keys: int, key_heads: int = 2, dtype: torch.dtype = torch.float32) -> tuple:
    torch.manual_seed(n_queries * 100 + n_keys)
    query = torch.randn(3, 4, n_queries, 8).to(dtype)
    return query, torch.randn(3, key_heads, n_keys, 8).to(dtype), torch.randn(3, key_heads, n_keys, 8).to(dtype)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("n_queries", [1, 9])
@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
def test_row_equals_slow_twin(key_heads: int, n_queries: int, mask: str) -> None:
    query, key, _ = tensors(n_queries, 9, key_heads)
    visible = torch.ones(3, 9, dtype=torch.bool)
    attention_mask = None
    if mask != "none":
        visible[1, :3] = False
        visible[2, 5] = False
        attention_mask = visible[:, None, None].expand(3, 1, n_queries, 9)
        if mask == "additive":
            attention_mask = torch.zeros(attention_mask.shape).masked_fill(~attention_mask, torch.finfo().min)
    row = last_query_row(query, key, attention_mask, 0.3)
    assert row.shape == (3, 4, 1, 9)
    torch.testing.assert_close(row[:, :, 0].double(), slow_row(query, key, visible, 0.3), atol=1e-6, rtol=0)


def test_row_ignores_the_unwritten_tail_of_a_preallocated_cache() -> None:
    query, key, _ = tensors(5, 12)
    row = last_query_row(query, key, None, None)
    expected = slow_row(query, key[:, :, :5], torch.ones(3, 5, dtype=torch.bool), 8**-0.5)
    torch.testing.assert_close(row[:, :, 0].double(), expected, atol=1e-6, rtol=0)


def test_bf16_rows_are_float32_exact_for_the_rounded_inputs() -> None:
    query, key, _ = tensors(4, 4, dtype=torch.bfloat16)
    row = last_query_row(query, key, None, None)
    assert row.dtype == torch.float32
    expected = slow_row(query, key, torch.ones(3, 4, dtype=torch.bool), 8**-0.5)
    torch.testing.assert_close(row[:, :, 0].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wanted", [False, True])
def test_output_is_stock_sdpa_bit_for_bit(wanted: bool) -> None:
    query, key, value = tensors(6, 6)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    output, row = visual_heads_attention(module, query, key, value, None, output_attentions=wanted, scaling=0.2)
    expected, _ = sdpa_attention_forward(module, query, key, value, None, scaling=0.2)
    assert torch.equal(output, expected)
    assert (row is not None) == wanted


def test_soft_capped_attention_is_refused() -> None:
    query, key, value = tensors(2, 2, 4)
    for wanted in (True, False):  # SDPA would leave the cap out with capture off, too
        with pytest.raises(VisualHeadsError, match=r"needs plain softmax attention.*soft-capped"):
            visual_heads_attention(SimpleNamespace(), query, key, value, None, output_attentions=wanted, softcap=30.0)


def test_name_is_ours() -> None:
    assert not any(word in ATTENTION_NAME for word in ("sdpa", "flash", "flex_attention", "eager"))


def test_only_the_text_model_is_switched(tiny) -> None:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(tiny("llava-llama"))
    before = model.config.vision_config._attn_implementation
    attach(model)
    assert model.config.text_config._attn_implementation == ATTENTION_NAME
    assert model.model.language_model.config._attn_implementation == ATTENTION_NAME
    assert model.config.vision_config._attn_implementation == before != ATTENTION_NAME


def test_stack_pads_a_windows_row_on_the_left_and_cuts_a_tail() -> None:
    short, exact, long = torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 5), torch.ones(1, 2, 1, 8)
    rows = stack_rows([short, exact, long], 5)
    assert rows.shape == (3, 1, 2, 5)
    assert rows[0, 0, 0].tolist() == [0, 0, 1, 1, 1]
    assert rows[2, 0, 0].tolist() == [1, 1, 1, 1, 1]


def test_stack_of_whole_rows_equals_the_plain_stack() -> None:
    torch.manual_seed(0)
    attentions = [torch.rand(2, 3, 1, 7) for _ in range(4)]
    rows = stack_rows(attentions, 7)
    assert torch.equal(rows, torch.stack([attention[:, :, 0] for attention in attentions]))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: half precision goes into the product as it is there"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key_heads", [8, 32])
def test_rows_on_a_gpu_are_float32_exact_for_half_inputs(dtype: torch.dtype, key_heads: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 32, 1, 128).to(dtype), torch.randn(2, key_heads, 3000, 128).to(dtype)
    expected = slow_row(query, key, torch.ones(2, 3000, dtype=torch.bool), 128**-0.5)
    with torch.inference_mode():
        row = last_query_row(query.cuda(), key.cuda(), None, None).cpu()
    assert row.dtype == torch.float32
    torch.testing.assert_close(row[:, :, 0].double(), expected, atol=1e-6, rtol=1e-5)


def test_where_the_gpus_product_fails_the_keys_are_copied_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU has no product of half precision with float32 sums: it fails here as it would on a GPU without it."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 1, 16).bfloat16(), torch.randn(1, 2, 30, 16).bfloat16()
    monkeypatch.setattr(attention, "_is_half_on_gpu", lambda key: True)
    monkeypatch.setattr(attention, "_products_in_float32", True)
    said = r"no half-precision product with float32 sums .*copied to float32"
    with torch.inference_mode(), pytest.warns(UserWarning, match=said):
        row = last_query_row(query, key, None, None)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(last_query_row(query, key, None, None), row)
    expected = slow_row(query, key, torch.ones(1, 30, dtype=torch.bool), 16**-0.5)
    torch.testing.assert_close(row[:, :, 0].double(), expected, atol=1e-6, rtol=1e-5)


def test_memory_that_runs_out_in_the_product_is_no_missing_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    query, key = torch.randn(1, 4, 1, 16).bfloat16(), torch.randn(1, 2, 30, 16).bfloat16()
    monkeypatch.setattr(attention, "_is_half_on_gpu", lambda key: True)
    monkeypatch.setattr(attention, "_products_in_float32", True)
    monkeypatch.setattr(torch, "bmm", full)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        last_query_row(query, key, None, None)
    assert attention._products_in_float32
