"""Rows of a decode step that are put off: one kernel for all layers against layer by layer, and what falls back.

The kernel runs in Triton's interpreter where there is no GPU; that has to be asked for before the kernel is imported, so it runs
in a process of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import pytest
import torch

from lmms_visual_heads.capture import attention, late, rows
from lmms_visual_heads.capture.attention import last_query_row
from lmms_visual_heads.capture.late import LateRow, can_wait, scores_together
from lmms_visual_heads.capture.rows import settle
from tests.builders.paths import ROOT
from tests.capture.test_attention import slow_row

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed"
)


def layers(
    n: int, batch: int, heads: int, key_heads: int, n_keys: int, width: int, dtype: torch.dtype, device: str = "cpu"
) -> list[LateRow]:
    """Queries as a decode step has them (split heads of one projection), keys as a cache holds them."""
    torch.manual_seed(n_keys)
    made = []
    for _ in range(n):
        query = torch.randn(batch, 1, heads, width).to(device, dtype).transpose(1, 2)
        made.append(LateRow(query, torch.randn(batch, key_heads, n_keys, width).to(device, dtype), 0.3))
    return made


def check(made: list[LateRow]) -> None:
    with torch.inference_mode():
        scores = scores_together(made)
    assert scores is not None
    for row, found in zip(made, scores.softmax(-1), strict=True):
        visible = torch.ones(len(row.key), row.key.shape[2], dtype=torch.bool)
        expected = slow_row(row.query.cpu(), row.key.cpu(), visible, row.scaling)
        torch.testing.assert_close(found[:, :, 0].cpu().double(), expected, atol=2e-6, rtol=1e-5)


def interpreted(call: str) -> None:
    """Run a function of this module in a process of its own, with the kernel in Triton's interpreter."""
    words = f"from tests.capture import test_late as here; here.{call}; print('checked')"
    environment = {"TRITON_INTERPRET": "1", "PATH": "", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.stdout.strip().endswith("checked"), run.stderr


def shapes_and_types() -> None:
    """What `test_one_kernel_equals_the_slow_twin` starts: every shape and type, and an odd address."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((3, 1, 4, 4, 37, 16), (2, 2, 6, 2, 130, 24), (4, 3, 8, 1, 64, 128)):
            check(layers(*shape, dtype))
    shifted = layers(2, 1, 4, 4, 37, 16, torch.float32)
    odd = torch.randn(1 + 4 * 37 * 16)[1:].view(1, 4, 37, 16)  # its address is no multiple of 16 bytes
    shifted[1] = LateRow(shifted[1].query, odd, 0.3)
    check(shifted)


@needs_triton
def test_one_kernel_equals_the_slow_twin() -> None:
    interpreted("shapes_and_types()")


def whole_generation(folder: str) -> None:
    """What `test_a_generation_with_late_rows_gives_the_same` starts: late rows off, then on; same answer, same rows."""
    from lmms_visual_heads import load_model
    from lmms_visual_heads.capture.generation import CapturedGeneration, generate_with_rows
    from lmms_visual_heads.capture.selfcheck import _together
    from tests.builders.tiny import QUESTION, noise_image

    model = load_model(folder)
    encoded = model.encode(QUESTION, [noise_image()])
    settings = model.generation_settings({"max_new_tokens": 5})
    launched: list[int] = []
    launch = late._launch

    def counted(given: list[LateRow]) -> torch.Tensor:
        scores = launch(given)
        launched.append(len(given))
        return scores

    def generation() -> CapturedGeneration:
        return generate_with_rows(model.model, model.move(encoded.inputs), "first_generated", settings)

    plain = generation()
    late._launch = counted
    attention.can_wait = lambda query, key, mask: late._may_wait and query.shape[2] == 1 and mask is None  # as on a GPU
    waited = generation()
    assert launched == [model.n_layers]
    assert torch.equal(waited.tokens, plain.tokens)
    assert waited.rows is not None
    assert plain.rows is not None
    torch.testing.assert_close(waited.rows, plain.rows, atol=1e-6, rtol=0)

    # Somebody wants attentions from every pass: no row waits unsettled.
    model.model.generation_config.output_attentions = True
    passes = []
    hook = model.model.register_forward_hook(lambda module, args, output: passes.append(output))
    again = generation()
    hook.remove()
    assert launched == [model.n_layers] * 2
    assert again.rows is not None
    assert torch.equal(again.rows, waited.rows)
    assert [output.attentions is not None for output in passes] == [False, True, False, False, False]
    assert not any(isinstance(row, LateRow) for row in passes[1].attentions)

    found = _together(model, 37)
    assert found.holds is True, found
    late._launch = lambda given: launch(given) * 1.01
    assert _together(model, 37).holds is False
    late._works = False
    assert _together(model, 37).holds is None


@needs_triton
@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-mistral"])
def test_a_generation_with_late_rows_gives_the_same(tiny, kind: str) -> None:
    interpreted(f"whole_generation({str(tiny(kind))!r})")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(32, 2, 32, 32, 3000, 128), (5, 1, 32, 8, 1, 128), (3, 4, 6, 2, 65, 80)])
def test_one_kernel_equals_the_slow_twin_on_a_gpu(shape: tuple, dtype: torch.dtype) -> None:
    made = layers(*shape, dtype, "cuda")
    check(made[:3])
    with torch.inference_mode():
        every = scores_together(made)
        assert every is not None
        one = last_query_row(made[-1].query, made[-1].key, None, made[-1].scaling)
    torch.testing.assert_close(every.softmax(-1)[-1], one, atol=2e-6, rtol=1e-5)


class OnGpu:
    """Stands for a tensor on a GPU."""

    is_cuda = True

    def __init__(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.shape, self.dtype = shape, dtype


def test_what_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode step on a GPU that sees every key, while somebody will settle it; each condition by itself."""
    monkeypatch.setattr(late, "_kernel", lambda: "a kernel")
    monkeypatch.setattr(late, "_works", True)
    step, keys = OnGpu(1, 4, 1, 8), OnGpu(1, 4, 9, 8)
    with torch.inference_mode():
        assert not can_wait(step, keys, None)
        late.let_wait(True)
        try:
            assert can_wait(step, keys, None)
            assert not can_wait(OnGpu(1, 4, 9, 8), keys, None)  # a prefill
            assert not can_wait(step, keys, torch.ones(1, 1, 1, 9))  # padding, a window, or a cut
            assert not can_wait(step, OnGpu(1, 4, 9, 8, dtype=torch.float64), None)
            assert not can_wait(step, torch.zeros(1, 4, 9, 8), None)  # on a CPU
            with torch.inference_mode(False), torch.enable_grad():
                assert not can_wait(step, keys, None)
            monkeypatch.setattr(late, "_works", False)
            assert not can_wait(step, keys, None)
            monkeypatch.setattr(late, "_works", True)
            monkeypatch.setattr(late, "_kernel", lambda: None)
            assert not can_wait(step, keys, None)
        finally:
            late.let_wait(False)


def test_keys_are_kept_only_where_the_cache_keeps_them() -> None:
    from transformers import DynamicCache, LlamaConfig, StaticCache

    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    assert late.holds_its_keys(DynamicCache(config=config))
    assert not late.holds_its_keys(StaticCache(config=config, max_cache_len=8))
    assert not late.holds_its_keys(None)
    offloaded = DynamicCache(config=config)
    offloaded.offloading = True
    assert not late.holds_its_keys(offloaded)


def test_layers_that_differ_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the kernel is for layers that are alike")

    monkeypatch.setattr(late, "_launch", never)
    short, long = layers(1, 2, 4, 2, 9, 8, torch.float32), layers(2, 2, 4, 2, 12, 8, torch.float32)
    given = torch.rand(2, 4, 1, 12)
    with torch.inference_mode():
        settled = settle((short[0], None, *long, given))
        assert settled is not None
        assert torch.equal(settled[0], last_query_row(short[0].query, short[0].key, None, 0.3))
        assert torch.equal(settled[3], last_query_row(long[1].query, long[1].key, None, 0.3))
    assert settled[1] is None
    assert settled[4] is given


def test_a_kernel_that_cannot_start_is_said_once_and_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no C compiler was found")

    monkeypatch.setattr(late, "_works", True)
    monkeypatch.setattr(late, "_launch", broken)
    made = layers(3, 2, 4, 2, 12, 8, torch.float32)
    with torch.inference_mode(), pytest.warns(UserWarning, match="no C compiler was found.*layer by layer"):
        settled = settle(made)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        again = settle(made)
    assert settled is not None
    assert again is not None
    for row, first, second in zip(made, settled, again, strict=True):
        expected = last_query_row(row.query, row.key, None, 0.3)
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)


def test_memory_that_runs_out_in_the_kernel_is_no_broken_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(late, "_works", True)
    monkeypatch.setattr(late, "_launch", full)
    with pytest.raises(torch.OutOfMemoryError):
        rows.settle(layers(3, 2, 4, 2, 12, 8, torch.float32))
    assert late._works
