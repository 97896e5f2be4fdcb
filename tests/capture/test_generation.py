"""Rows against eager attention; answers with capture on against capture off; ends, batches, beams, long answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmms_visual_heads.capture import attention
from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.reader import ForwardReader
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.tiny import KINDS, QUESTION, noise_image

TOLERANCE = 1e-5


@torch.inference_mode()
def eager_rows(model: VisualModel, encoded: Encoded, after: list[int]) -> Tensor:
    """Slow twin: full attention maps of prompt + `after`, last query: [L, H, K]."""
    ids = torch.cat([encoded.input_ids, torch.tensor(after, dtype=torch.long)])[None]
    inputs = {**encoded.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.model.set_attn_implementation({"text_config": "eager"})
    try:
        maps = model.model(**inputs, output_attentions=True, use_cache=False).attentions
    finally:
        attach(model.model)
    return torch.stack([layer[0, :, -1] for layer in maps])


@torch.inference_mode()
def plain_tokens(folder: Path, encoded: Encoded, **settings: object) -> list[int]:
    """The answer of a plain transformers model that never heard of us."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    output = model.generate(**encoded.inputs, **settings)
    return output[0, len(encoded) :].tolist()


def documents(model: VisualModel, n: int) -> list[Encoded]:
    return [model.encode(QUESTION, [noise_image(90, 50, seed=i)]) for i in range(n)]


@pytest.mark.parametrize("n_documents", [1, 3])
@pytest.mark.parametrize("query", ["first_generated", "last_prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_eager_attention(loaded, kind: str, query: str, n_documents: int) -> None:
    model = loaded(kind)
    batch = documents(model, n_documents)
    for encoded, generation in zip(batch, model.generate(batch, query=query, max_new_tokens=4), strict=True):
        assert generation.rows is not None
        assert generation.rows.dtype == torch.float32
        first = generation.token_ids[:1] if query == "first_generated" else []
        assert generation.rows.shape == (model.n_layers, model.n_heads, len(encoded) + len(first))
        torch.testing.assert_close(generation.rows, eager_rows(model, encoded, first), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(generation.rows.sum(-1), torch.ones(model.n_layers, model.n_heads))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_a_plain_model_token_for_token(loaded, tiny, kind: str) -> None:
    model = loaded(kind)
    encoded = model.encode(QUESTION, [noise_image(70, 120)])
    expected = plain_tokens(tiny(kind), encoded, max_new_tokens=12, do_sample=False)
    for query in ("first_generated", "last_prompt", None):
        assert model.generate([encoded], query=query, max_new_tokens=12)[0].token_ids == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        {"num_beams": 3},
        {"repetition_penalty": 1.5},
    ],
    ids=["sampling", "beams", "penalty"],
)
def test_other_decoding_equals_a_plain_model_too(loaded, tiny, settings: dict) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    torch.manual_seed(5)
    expected = plain_tokens(tiny("llava-llama"), encoded, max_new_tokens=8, **settings)
    for query in ("first_generated", "last_prompt", None):
        torch.manual_seed(5)
        generation = model.generate([encoded], query=query, max_new_tokens=8, **settings)[0]
        assert generation.token_ids == expected
        if query == "first_generated":
            row = eager_rows(model, encoded, expected[:1])
            torch.testing.assert_close(generation.rows, row, atol=TOLERANCE, rtol=0)


def test_log_probabilities_are_missing_with_beams_only(loaded) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    greedy = model.generate([encoded], query=None, max_new_tokens=3)[0].answer
    beams = model.generate([encoded], query=None, max_new_tokens=3, num_beams=2)[0].answer
    assert greedy.answer_log_probability is not None
    assert beams.answer_log_probability is None
    assert beams.confidence == pytest.approx(greedy.confidence, abs=1e-6)


@pytest.mark.parametrize("kind", ["llava-llama", "llava-mistral-window", "llavanext-mistral", "vipllava-llama"])
def test_a_first_token_that_ends_the_answer_still_has_its_row(loaded, monkeypatch, kind: str) -> None:
    model = loaded(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    first = model.generate([encoded], query=None, max_new_tokens=1)[0].token_ids
    expected = eager_rows(model, encoded, first)
    one_token = model.generate([encoded], query="first_generated", max_new_tokens=1)[0]
    torch.testing.assert_close(one_token.rows, expected, atol=TOLERANCE, rtol=0)
    monkeypatch.setattr(model, "end_token_ids", tuple(first))
    ended = model.generate([encoded], query="first_generated", max_new_tokens=9)[0]
    assert ended.token_ids == first
    torch.testing.assert_close(ended.rows, expected, atol=TOLERANCE, rtol=0)
    assert ended.answer.n_answer_tokens == 1


def test_in_a_batch_some_answers_may_end_at_once(loaded, monkeypatch) -> None:
    model = loaded("llava-llama3")
    batch = documents(model, 4)
    alone = [model.generate([e], query="first_generated", max_new_tokens=6)[0] for e in batch]
    ends = alone[0].token_ids[0]
    if all(generation.token_ids[0] == ends for generation in alone):
        pytest.skip("the random model gives every image the same first token")
    monkeypatch.setattr(model, "end_token_ids", (ends,))
    together = model.generate(batch, query="first_generated", max_new_tokens=6)
    assert together[0].token_ids == [ends]
    for encoded, before, generation in zip(batch, alone, together, strict=True):
        expected = (
            before.token_ids[: before.token_ids.index(ends) + 1] if ends in before.token_ids else before.token_ids
        )
        assert generation.token_ids == expected
        assert generation.answer.n_answer_tokens == len(expected)
        single = model.generate([encoded], query="first_generated", max_new_tokens=6)[0]
        torch.testing.assert_close(generation.rows, single.rows, atol=TOLERANCE, rtol=0)
        assert generation.answer.answer_log_probability == pytest.approx(single.answer.answer_log_probability, abs=1e-5)


def test_a_batch_of_different_numbers_of_tiles(loaded) -> None:
    model = loaded("llavanext-llama")
    images = [noise_image(112, 112), noise_image(50, 90), noise_image(160, 56)]
    questions = [QUESTION] * 3
    longest = max(len(model.encode(QUESTION, [image])) for image in images)
    for i, image in enumerate(images):
        while len(model.encode(questions[i], [image])) < longest:
            questions[i] += " 0"
    batch = [model.encode(question, [image]) for question, image in zip(questions, images, strict=True)]
    assert {encoded.inputs["pixel_values"].shape[1] for encoded in batch} == {5, 3, 4}
    for encoded, together in zip(batch, model.generate(batch, query="first_generated", max_new_tokens=3), strict=True):
        alone = model.generate([encoded], query="first_generated", max_new_tokens=3)[0]
        assert together.token_ids == alone.token_ids
        torch.testing.assert_close(together.rows, alone.rows, atol=TOLERANCE, rtol=0)


def test_a_batch_may_mix_no_image_one_and_several(loaded) -> None:
    model = loaded("llava-llama")
    contents = [[noise_image(seed=1), noise_image(seed=2)], [noise_image(seed=3)], []]
    questions = [QUESTION] * 3
    longest = len(model.encode(QUESTION, contents[0]))
    for i, images in enumerate(contents):
        while len(model.encode(questions[i], images)) < longest:
            questions[i] += " 0"
    batch = [model.encode(question, images) for question, images in zip(questions, contents, strict=True)]
    for encoded, together in zip(batch, model.generate(batch, query="last_prompt", max_new_tokens=3), strict=True):
        alone = model.generate([encoded], query="last_prompt", max_new_tokens=3)[0]
        assert together.token_ids == alone.token_ids
        torch.testing.assert_close(together.rows, alone.rows, atol=TOLERANCE, rtol=0)


def test_a_long_answer_computes_and_keeps_the_rows_of_one_step_only(loaded, monkeypatch) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    computed = []
    stock = attention.last_query_row

    def counted(*args: object) -> Tensor:
        row = stock(*args)
        computed.append(row.numel())
        return row

    monkeypatch.setattr(attention, "last_query_row", counted)
    monkeypatch.setattr(model, "end_token_ids", (10**6,))
    for query, wider in (("first_generated", 1), ("last_prompt", 0)):
        computed.clear()
        generation = model.generate([encoded], query=query, max_new_tokens=100)[0]
        assert len(generation.token_ids) == 100
        assert computed == [model.n_heads * (len(encoded) + wider)] * model.n_layers


def test_reader_keeps_one_number_per_token_and_goes_away(loaded) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    hooks = len(model.model._forward_hooks), len(model.model._forward_pre_hooks)
    with ForwardReader(model.model, 1) as reader:
        tokens = model.model.generate(**encoded.inputs, max_new_tokens=20, do_sample=False, eos_token_id=[10**6])
    assert len(reader.first_logits) == 2
    assert all(value.shape == (1,) for value in reader._log_probabilities)
    generated = tokens[:, len(encoded) :]
    with torch.inference_mode():
        whole = {**encoded.inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        logits = model.model(**whole).logits[:, len(encoded) - 1 : -1]
    expected = logits.log_softmax(-1).gather(2, generated[..., None])[..., 0]
    torch.testing.assert_close(reader.token_log_probabilities(generated), expected, atol=1e-4, rtol=0)
    with pytest.raises(RuntimeError, match="in the middle"), ForwardReader(model.model, 0):
        raise RuntimeError("in the middle")
    assert hooks == (len(model.model._forward_hooks), len(model.model._forward_pre_hooks))


def test_rows_do_not_need_the_cache(loaded) -> None:
    model = loaded("llavanext-llama")
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    for n_tokens in (1, 3):
        cached = model.generate([encoded], query="first_generated", max_new_tokens=n_tokens)[0]
        generation = model.generate([encoded], query="first_generated", max_new_tokens=n_tokens, use_cache=False)[0]
        assert generation.token_ids == cached.token_ids
        torch.testing.assert_close(generation.rows, cached.rows, atol=TOLERANCE, rtol=0)


def test_errors_are_sentences(loaded) -> None:
    model = loaded("llava-llama")
    encoded = model.encode(QUESTION, [noise_image()])
    with pytest.raises(VisualHeadsError, match="query must be one of first_generated, last_prompt; got 'middle'"):
        model.generate([encoded], query="middle")
    with pytest.raises(ValueError, match="equal prompt length"):
        model.generate([encoded, model.encode(QUESTION, [])], query=None)
    model.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        with pytest.raises(VisualHeadsError, match="Every one of the 3 layers must return its attention row; 0 did"):
            model.generate([encoded], query="last_prompt", max_new_tokens=1)
    finally:
        attach(model.model)
    assert model.generate([], query="last_prompt") == []
