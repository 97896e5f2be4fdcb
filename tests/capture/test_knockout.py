"""Heads knocked out: against eager attention with full masked maps, in every family; different ones in a batch; prefix reuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lmms_visual_heads.capture.attention import visual_heads_attention
from lmms_visual_heads.capture.knockout import VisualKnockout, check_can_knock_out, unchanged_start
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.checkpoints.passes import stacked
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.tiny import KINDS, QUESTION, noise_image


def visual_of(encoded: Encoded) -> Tensor:
    visual = torch.zeros(1, len(encoded), dtype=torch.bool)
    visual[0, encoded.visual_positions] = True
    return visual


@torch.inference_mode()
def slow_logits(model: VisualModel, encoded: Encoded, heads: Tensor) -> Tensor:
    """Slow twin: eager attention, one sequence, full maps, softmax of each head by hand; logits [K, V] for heads [L, H]."""
    visual = visual_of(encoded)[0]

    def eager(module, query, key, value, attention_mask, scaling=None, **_):
        n = query.shape[2]
        group = query.shape[1] // key.shape[1]
        window = getattr(module.config, "sliding_window", None)
        outputs = []
        for h in range(query.shape[1]):
            scores = query[0, h] @ key[0, h // group].T * scaling
            for q in range(n):
                scores[q, q + 1 :] = -torch.inf
                if window is not None:
                    scores[q, : max(0, q - window + 1)] = -torch.inf
                if heads[module.layer_idx, h] and not visual[q]:
                    scores[q, visual] = -torch.inf
            outputs.append(scores.softmax(-1) @ value[0, h // group])
        return torch.stack(outputs, 1)[None], None

    from transformers import AttentionInterface

    from lmms_visual_heads.capture.attention import ATTENTION_NAME

    AttentionInterface.register(ATTENTION_NAME, eager)
    try:
        return model.model(**model.move(encoded.inputs), use_cache=False).logits[0]
    finally:
        AttentionInterface.register(ATTENTION_NAME, visual_heads_attention)


def some_heads(model: VisualModel, n: int = 4) -> Tensor:
    heads = torch.rand(n, model.n_layers, model.n_heads, generator=torch.Generator().manual_seed(3)) < 0.4
    heads[0] = False
    heads[1] = True
    return heads


def repeated(model: VisualModel, encoded: Encoded, n: int) -> dict[str, Tensor]:
    return stacked(model.model, [encoded.inputs] * n)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_different_knockouts_equals_the_slow_twin(kind, loaded) -> None:
    model = loaded(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    heads = some_heads(model)
    with torch.inference_mode():
        inputs = repeated(model, encoded, len(heads))
        fast = model.model(**inputs, use_cache=False, visual_knockout=VisualKnockout(heads, visual_of(encoded))).logits
    for b in range(len(heads)):
        slow = slow_logits(model, encoded, heads[b])
        torch.testing.assert_close(fast[b], slow, atol=2e-4, rtol=1e-4)
    text = encoded.visual_positions[-1] + 1
    assert (fast[0, text:] - fast[1, text:]).abs().max() > 1e-2  # a knock-out that changed nothing would prove nothing
    assert torch.allclose(fast[0, :text], fast[1, :text], atol=2e-4)  # visual queries and what precedes them


@pytest.mark.parametrize("kind", KINDS)
def test_suffix_from_a_shared_prefix_equals_whole_prompts(kind, loaded) -> None:
    model = loaded(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    heads = some_heads(model)
    knockout = VisualKnockout(heads, visual_of(encoded))
    length = unchanged_start(encoded.visual_positions)
    with torch.inference_mode():
        whole = model.model(**repeated(model, encoded, len(heads)), use_cache=False, visual_knockout=knockout).logits[
            :, -1
        ]
        prefix = model.prefill([encoded], length)
        ids = encoded.input_ids[length:].expand(len(heads), -1)
        for _ in range(2):  # the prefix itself stays as it is
            suffix = model.model(
                input_ids=ids,
                attention_mask=torch.ones(len(heads), len(encoded), dtype=torch.long),
                past_key_values=prefix.branch([0] * len(heads)),
                use_cache=True,
                visual_knockout=knockout,
            ).logits[:, -1]
            torch.testing.assert_close(suffix, whole, atol=2e-4, rtol=1e-4)


def test_no_knockout_is_bit_equal_and_leaves_nothing_behind(loaded) -> None:
    model = loaded("llava-llama3")
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    heads = torch.zeros(1, model.n_layers, model.n_heads, dtype=torch.bool)
    with torch.inference_mode():
        inputs = model.move(encoded.inputs)
        plain = model.model(**inputs).logits
        assert torch.equal(
            model.model(**inputs, visual_knockout=VisualKnockout(heads, visual_of(encoded))).logits, plain
        )
        model.model(**inputs, visual_knockout=VisualKnockout(~heads, visual_of(encoded)))
        assert torch.equal(model.model(**inputs).logits, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", ["none", "bool", "additive"])
def test_row_of_a_knocked_out_head_has_no_visual_mass_and_sums_to_one(dtype, given) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 7, 8).to(dtype) for n in (4, 2, 2))
    visual = torch.tensor([[False, True, True, True, False, False, False]])
    heads = torch.zeros(2, 1, 4, dtype=torch.bool)
    heads[0, 0, 2] = True
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    mask = {"none": None, "bool": causal, "additive": torch.zeros(1, 1, 7, 7).masked_fill(~causal, -torch.inf)}[given]
    mask = mask.to(dtype) if given == "additive" else mask
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, layer_idx=0)
    output, row = visual_heads_attention(
        module,
        query,
        key,
        value,
        mask,
        output_attentions=True,
        visual_knockout=VisualKnockout(heads, visual),
        scaling=0.3,
    )
    assert row[0, 2, 0, 1:4].sum() == 0
    torch.testing.assert_close(row.sum(-1), torch.ones(2, 4, 1))
    assert (row[1, :, 0, 1:4] > 0).all()
    assert torch.isfinite(output).all()


def test_text_between_visual_tokens_leaves_no_unchanged_start() -> None:
    assert unchanged_start(torch.tensor([2, 3, 4])) == 5
    assert unchanged_start(torch.tensor([2, 3, 6])) == 0
    assert unchanged_start(torch.tensor([], dtype=torch.long)) == 0


def test_wrong_shapes_and_families_are_refused() -> None:
    with pytest.raises(ValueError, match="bool tensor"):
        VisualKnockout(torch.zeros(1, 2, 3), torch.zeros(1, 4, dtype=torch.bool))
    knockout = VisualKnockout(torch.ones(1, 1, 4, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="3 positions"):
        knockout.mask(0, torch.zeros(1, 4, 5, 8), torch.zeros(1, 2, 5, 8), None)
    with pytest.raises(VisualHeadsError, match="knockout"):
        check_can_knock_out(SimpleNamespace(config=SimpleNamespace(model_type="qwen2_5_vl")))
