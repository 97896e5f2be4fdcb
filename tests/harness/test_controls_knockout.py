"""Knock-outs of one document: against full masked maps without reuse, in every family; blanks, NaN, memory, refusals."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from lmms_visual_heads.capture.attention import ATTENTION_NAME, visual_heads_attention
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.knockout import LEVELS, KnockoutEffect, KnockoutMeter, knockouts_of
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import blank_image
from tests.builders.tiny import KINDS, QUESTION, noise_image

BLANK = 7


@torch.inference_mode()
def slow_log_probabilities(model: VisualModel, encoded: Encoded, blank: int | None, heads: Tensor) -> Tensor:
    """Eager attention, one whole prompt, the full map of every head with the knock-out [L, H] in it; log-probabilities [V]."""
    inputs = model.move(encoded.inputs)
    if blank is not None:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[blank]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    visual = inputs["input_ids"][0] == model.image_token_id

    def eager(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        n, group = query.shape[2], query.shape[1] // key.shape[1]
        place = torch.arange(n)
        seen = (place <= place[:, None]).expand(query.shape[1], n, n).clone()
        window = getattr(module.config, "sliding_window", None)
        if window is not None:
            seen &= place > place[:, None] - window
        seen[heads[module.layer_idx]] &= visual[:, None] | ~visual
        scores = query @ key.repeat_interleave(group, 1).mT * scaling
        rows = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return (rows @ value.repeat_interleave(group, 1)).transpose(1, 2), None

    AttentionInterface.register(ATTENTION_NAME, eager)
    try:
        return model.model(**inputs, use_cache=False).logits[0, -1].double().log_softmax(-1)
    finally:
        AttentionInterface.register(ATTENTION_NAME, visual_heads_attention)


def slow_kl(model: VisualModel, encoded: Encoded, blank: int | None, heads: Tensor) -> float:
    intact = slow_log_probabilities(model, encoded, blank, torch.zeros_like(heads))
    return float((intact.exp() * (intact - slow_log_probabilities(model, encoded, blank, heads))).sum())


def every(effect: KnockoutEffect) -> np.ndarray:
    assert effect.all is not None
    assert effect.layers is not None
    assert effect.heads is not None
    return np.array([effect.all, *effect.layers.tolist(), *effect.heads.flatten().tolist()])


@pytest.mark.parametrize("blank", [None, BLANK])
@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_and_heads_equal_full_masked_maps(kind: str, blank: int | None, loaded: Callable) -> None:
    model = loaded(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    found = every(KnockoutMeter(model.model).measure(encoded, blank))
    knockouts = knockouts_of(LEVELS, model.n_layers, model.n_heads)
    slow = [slow_kl(model, encoded, blank, heads) for heads in knockouts]
    np.testing.assert_allclose(found, slow, atol=1e-5, rtol=1e-4)
    assert found.max() > 1e-3  # knock-outs that changed nothing would prove nothing
    assert len(np.unique(found.round(9))) > model.n_heads


def test_the_knockouts_are_what_their_order_says() -> None:
    knockouts = knockouts_of(("heads", "all", "layers"), 2, 3)
    assert knockouts.shape == (1 + 2 + 6, 2, 3)
    assert knockouts[0].all()
    assert knockouts[1, 0].all()
    assert not knockouts[1, 1].any()
    assert [tuple(one.nonzero()[0].tolist()) for one in knockouts[3:]] == [
        (layer, head) for layer in (0, 1) for head in range(3)
    ]
    assert knockouts[3:].sum() == 6
    assert len(knockouts_of(("layers",), 2, 3)) == 2


@pytest.mark.parametrize("together", [1, 2, 5])
def test_batches_of_any_size_give_the_same_and_cost_what_was_said(together: int, loaded: Callable) -> None:
    model = loaded("llavanext-mistral")
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    whole = KnockoutMeter(model.model).measure(encoded, BLANK)
    meter = KnockoutMeter(model.model, together=together)
    steps: list[int] = []
    found = meter.measure(encoded, BLANK, steps.append)
    np.testing.assert_allclose(every(found), every(whole), atol=1e-6, rtol=1e-4)
    after = len(encoded) - int(encoded.visual_positions[-1]) - 1
    assert (found.n_passes, found.n_tokens) == meter.cost(len(encoded), after, True)
    assert sum(steps) == found.n_passes
    assert found.n_tokens < found.n_passes * len(encoded) / 2, "the image was run again for every knock-out"


def test_without_reuse_the_numbers_are_the_same(loaded: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where text stands between visual tokens: whole prompts."""
    model = loaded("llavanext-llama")
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    reused = KnockoutMeter(model.model).measure(encoded)
    monkeypatch.setattr("lmms_visual_heads.checkpoints.knockout.unchanged_start", lambda positions: 0)
    whole = KnockoutMeter(model.model, together=6).measure(encoded)
    np.testing.assert_allclose(every(reused), every(whole), atol=1e-6, rtol=1e-4)
    assert whole.n_tokens == whole.n_passes * len(encoded)


@pytest.mark.parametrize("fits", [1, 3])
def test_a_batch_that_does_not_fit_is_halved_and_stays_so(
    fits: int, loaded: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    expected = every(KnockoutMeter(model.model).measure(encoded))
    forward, sizes = model.model.forward, []

    def limited(*args: Any, **given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        if len(given["input_ids"]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **given)

    monkeypatch.setattr(model.model, "forward", limited)
    meter = KnockoutMeter(model.model, together=8)
    np.testing.assert_allclose(every(meter.measure(encoded)), expected, atol=1e-6, rtol=1e-4)
    assert meter.together <= fits
    sizes.clear()
    meter.measure(encoded)
    assert max(sizes) <= fits, "the next document began with a batch that had not fitted"


def test_what_does_not_fit_alone_is_an_error(loaded: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llava-llama")

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoded = model.encode(QUESTION, [noise_image()])
    monkeypatch.setattr(model.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        KnockoutMeter(model.model).measure(encoded)


def test_logits_that_are_not_finite_are_missing_where_they_are(
    loaded: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    expected = every(KnockoutMeter(model.model).measure(encoded))
    forward = model.model.forward

    def broken(row: int, value: float) -> Callable[..., Any]:
        def run(*args: Any, **given: Any) -> Any:
            output = forward(*args, **given)
            output.logits[row, -1, 3] = value
            return output

        return run

    for value in (float("nan"), float("inf")):
        monkeypatch.setattr(model.model, "forward", broken(5, value))
        found = every(KnockoutMeter(model.model).measure(encoded))
        assert np.flatnonzero(np.isnan(found)).tolist() == [4]
        np.testing.assert_allclose(np.delete(found, 4), np.delete(expected, 4), atol=1e-6, rtol=1e-4)
    monkeypatch.setattr(model.model, "forward", broken(0, float("nan")))
    assert np.isnan(every(KnockoutMeter(model.model).measure(encoded))).all()


def test_from_python_with_the_blank_that_the_model_writes(loaded: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llava-llama")
    image = noise_image()
    encoded = model.encode(QUESTION, [image])
    plain = model.knockout(image, QUESTION, levels=("layers", "all"))
    assert plain.heads is None
    direct = KnockoutMeter(model.model).measure(encoded)
    assert plain.all == pytest.approx(direct.all)
    first = model.generate([encoded], query=None, max_new_tokens=2)[0].token_ids[0]
    monkeypatch.setattr(model, "_is_blank", lambda token: token == first)
    after = model.knockout(image, QUESTION, levels=("all",))
    assert after.all == pytest.approx(KnockoutMeter(model.model).measure(encoded, first).all)
    assert after.all != pytest.approx(plain.all)


def test_refusals(loaded: Callable) -> None:
    model = loaded("llava-llama")
    with pytest.raises(VisualHeadsError, match="one or several; 'head' came"):
        model.knockout(noise_image(), QUESTION, levels=("head",))
    with pytest.raises(VisualHeadsError, match="'nothing' came"):
        KnockoutMeter(model.model, ())
    other = SimpleNamespace(config=SimpleNamespace(model_type="qwen2_vl"))
    with pytest.raises(VisualHeadsError, match=r"needs a LLaVA.*Leave knockout out"):
        KnockoutMeter(other)


def test_a_blank_image_is_zero_after_normalisation(loaded: Callable) -> None:
    model = loaded("llava-llama")
    blank = blank_image(noise_image(90, 50), model.processor.image_processor)
    assert blank.size == (90, 50)
    assert model.encode(QUESTION, [blank]).inputs["pixel_values"].abs().max() < 0.01
    assert blank_image(noise_image(), SimpleNamespace()).getpixel((0, 0)) == (128, 128, 128)
    assert blank_image(noise_image(), SimpleNamespace(image_mean=[0.2])).getpixel((0, 0)) == (51, 51, 51)
