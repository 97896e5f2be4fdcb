"""VisualModel: settings, blanks, scoring, attention_rows, and the shapes of published models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms_visual_heads import load_model
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.statistics.heads import HEAD_STATISTICS
from tests.builders.tiny import QUESTION, noise_image, real_shapes


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny("llava-llama"), device="cpu")


def test_generation_settings(model) -> None:
    ends = {"eos_token_id": list(model.end_token_ids), "pad_token_id": model.pad_token_id}
    settings = model.generation_settings
    assert settings({"max_new_tokens": 5, "top_p": None}) == {"max_new_tokens": 5, "do_sample": False, **ends}
    ends["max_new_tokens"] = 1024
    assert settings({"temperature": 0, "do_sample": True, "top_p": 0.5}) == {"do_sample": False, **ends}
    assert settings({"temperature": 0.5}) == {"temperature": 0.5, "do_sample": True, **ends}
    assert settings({"temperature": 0.5, "do_sample": False}) == {"do_sample": False, **ends}
    assert settings({"eos_token_id": 3})["eos_token_id"] == 3


def test_a_blank_first_token_moves_the_answer_to_the_second(model, monkeypatch) -> None:
    encoded = model.encode(QUESTION, [noise_image()])
    usual = model.generate([encoded], query="first_generated", max_new_tokens=3)[0]
    assert usual.answer.answer_token_index == 0
    assert usual.answer.top_tokens[0] == usual.token_ids[0]
    monkeypatch.setattr(model, "_is_blank", lambda token: token == usual.token_ids[0])
    for query in ("first_generated", "last_prompt", None):
        moved = model.generate([encoded], query=query, max_new_tokens=3)[0]
        assert moved.answer.answer_token_index == 1
        assert moved.answer.top_tokens[0] == usual.token_ids[1]
        only = model.generate([encoded], query=query, max_new_tokens=1)[0]
        assert only.answer.answer_token_index == 0


def test_an_end_token_of_the_call_ends_the_answer(model) -> None:
    encoded = model.encode(QUESTION, [noise_image()])
    usual = model.generate([encoded], query=None, max_new_tokens=4)[0].token_ids
    assert model.generate([encoded], query=None, max_new_tokens=4, eos_token_id=usual[1])[0].token_ids == usual[:2]
    assert model.generate([encoded], query=None, max_new_tokens=4, eos_token_id=[usual[0]])[0].token_ids == usual[:1]


def test_blank_tokens(model) -> None:
    space = model.tokenizer.convert_tokens_to_ids("Ġ")
    assert model._is_blank(space)
    assert not model._is_blank(model.tokenizer.eos_token_id)
    assert not model._is_blank(model.tokenizer.convert_tokens_to_ids("a"))


def test_answer_statistics_do_not_depend_on_capture_or_batch(model) -> None:
    batch = [model.encode(QUESTION, [noise_image(seed=seed)]) for seed in range(3)]
    alone = [model.generate([encoded], query=None, max_new_tokens=6)[0].answer for encoded in batch]
    for query in ("first_generated", "last_prompt", None):
        for one, together in zip(alone, model.generate(batch, query=query, max_new_tokens=6), strict=True):
            assert together.answer.top_tokens == one.top_tokens
            assert together.answer.confidence == pytest.approx(one.confidence, abs=1e-5)
            assert together.answer.answer_entropy == pytest.approx(one.answer_entropy, abs=1e-5)
            assert together.answer.answer_log_probability == pytest.approx(one.answer_log_probability, abs=1e-5)


@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-mistral", "vipllava-llama"])
@pytest.mark.parametrize("continuation", ["red", "yes it is a dog"])
def test_score_equals_the_models_own_loss(tiny, kind: str, continuation: str) -> None:
    """lmms-eval's llava_hf: labels are the tokens after the prompt's, the loss is transformers' mean over them."""
    model = load_model(tiny(kind), device="cpu")
    images = [noise_image(90, 50)]
    encoded = model.encode(QUESTION, images)
    whole = model.encoder.tensors(model.encoder.prompt(QUESTION, 1, answer=continuation), images)
    labels = whole["input_ids"].clone()
    labels[:, : len(encoded)] = -100
    with torch.inference_mode():
        expected = model.model(**whole, labels=labels)
    scored = model.score(encoded, continuation, query=None)
    assert scored.loss == pytest.approx(float(expected.loss), abs=1e-5)
    assert scored.n_tokens == int((labels != -100).sum())
    assert scored.rows is None
    greedy = expected.logits.argmax(-1)[0, len(encoded) - 1 : -1]
    assert scored.is_greedy == torch.equal(greedy, whole["input_ids"][0, len(encoded) :])
    assert scored.answer.n_answer_tokens == 0
    assert scored.answer.answer_log_probability is None
    assert scored.answer.confidence == pytest.approx(
        float(expected.logits[0, len(encoded) - 1].softmax(-1).max()), abs=1e-5
    )


def test_score_reads_the_same_rows_as_generate(model, monkeypatch) -> None:
    encoded = model.encode(QUESTION, [noise_image()])
    last = model.generate([encoded], query="last_prompt", max_new_tokens=1)[0]
    torch.testing.assert_close(model.score(encoded, "red", query="last_prompt").rows, last.rows, atol=1e-5, rtol=0)
    first = model.score(encoded, "red", query="first_generated").rows
    assert first.shape == (3, 4, len(encoded) + 1)
    torch.testing.assert_close(first.sum(-1), torch.ones(3, 4))


def test_a_greedy_continuation_is_recognised(model, monkeypatch) -> None:
    encoded = model.encode(QUESTION, [noise_image()])
    tokens = model.generate([encoded], query=None, max_new_tokens=3)[0].token_ids
    ids = torch.cat([encoded.input_ids, torch.tensor(tokens)])
    monkeypatch.setattr(model.encoder, "_finished_ids", lambda *args: ids)
    scored = model.score(encoded, "whatever", query="first_generated")
    assert scored.is_greedy
    generation = model.generate([encoded], query="first_generated", max_new_tokens=3)[0]
    assert scored.loss == pytest.approx(-generation.answer.answer_log_probability, abs=1e-4)
    torch.testing.assert_close(scored.rows, generation.rows, atol=1e-5, rtol=0)


def test_attention_rows(model, tmp_path: Path) -> None:
    image = noise_image()
    rows = model.attention_rows(image, QUESTION, boxes=[(0, 0, 14, 14), (40, 40, 56, 56)], max_new_tokens=3)
    assert rows.query == "first_generated"
    assert rows.values.shape == (3, 4, len(rows.input_ids) + 1)
    assert len(rows.answer_ids) == 3
    assert rows.answer == model.tokenizer.decode(rows.answer_ids, skip_special_tokens=True)
    patches = [int(p) for p in rows.region_positions - rows.patch_positions[0]]
    assert patches == [0, 10, 11, 14, 15]
    frame = rows.statistics()
    assert len(frame) == 12
    assert frame["layer"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert frame["head"].tolist() == [0, 1, 2, 3] * 3
    expected = rows.values[..., rows.region_positions].sum(-1).reshape(-1).numpy()
    np.testing.assert_allclose(frame["region_attention"], expected, atol=1e-6)
    assert frame["region_share"].tolist() == pytest.approx([5 / 16] * 12)
    assert (frame["n_prompt_tokens"] == len(rows.input_ids)).all()
    image.save(tmp_path / "image.png")
    again = model.attention_rows(tmp_path / "image.png", QUESTION, boxes=(0, 0, 14, 14))
    assert torch.equal(again.values, rows.values)
    assert again.region_positions.tolist() == [int(rows.patch_positions[0])]


def test_attention_rows_without_a_region(model) -> None:
    for settings in ({}, {"boxes": []}):
        assert model.attention_rows(noise_image(), QUESTION, **settings).region_positions is None
    cropped = model.attention_rows(noise_image(90, 50), QUESTION, query="last_prompt", boxes=[(0, 0, 9, 9)])
    assert cropped.region_positions is not None, "cropped away: an empty region, not a missing one"
    assert len(cropped.region_positions) == 0
    assert (cropped.statistics()["region_attention"] == 0).all()
    assert cropped.statistics()["image_attention"].notna().all()
    with pytest.raises(VisualHeadsError, match="query must be one of"):
        model.attention_rows(noise_image(), QUESTION, query=None)
    with pytest.raises(VisualHeadsError, match=r"a file that Pillow can read; nowhere\.png is not"):
        model.attention_rows("nowhere.png", QUESTION)
    with pytest.raises(VisualHeadsError, match="must overlap its image"):
        model.attention_rows(noise_image(), QUESTION, boxes=[(60, 60, 70, 70)])


def test_head_statistics_of_a_document(model) -> None:
    encoded = model.encode(QUESTION, [noise_image()], boxes=[(0, 0, 28, 28)])
    generation = model.generate([encoded], query="last_prompt", max_new_tokens=1)[0]
    found = model.head_statistics(encoded, generation.rows)
    assert set(found) <= set(HEAD_STATISTICS)
    assert found["region_attention"].isfinite().all()
    frame = model.attention_rows(noise_image(), QUESTION, query="last_prompt", boxes=[(0, 0, 28, 28)]).statistics()
    for name, values in found.items():
        np.testing.assert_allclose(values.reshape(-1).numpy(), frame[name], atol=1e-6)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory):
    """Models with the shapes of published ones and a tiny hidden size."""
    folder = tmp_path_factory.mktemp("real")
    return {
        kind: load_model(real_shapes(kind, folder / kind), device="cpu")
        for kind in ("llava-llama", "llavanext-mistral")
    }


def test_llava_at_real_shapes(real) -> None:
    model = real["llava-llama"]
    rows = model.attention_rows(noise_image(448, 448), QUESTION, boxes=[(0, 0, 224, 224)])
    assert rows.values.shape[:2] == (32, 32)
    assert len(rows.visual_positions) == len(rows.patch_positions) == 576
    assert len(rows.region_positions) == 144
    torch.testing.assert_close(rows.values.sum(-1), torch.ones(32, 32), atol=1e-5, rtol=0)
    frame = rows.statistics()
    assert len(frame) == 1024
    assert frame["concentration"].between(0, 1).all()
    assert frame["focus"].between(0, math.log(576) + 1e-6).all()


def test_anyres_at_real_shapes(real) -> None:
    model = real["llavanext-mistral"]
    rows = model.attention_rows(noise_image(672, 672), QUESTION, query="last_prompt", boxes=[(0, 0, 336, 336)])
    assert len(rows.visual_positions) == 2928
    assert len(rows.patch_positions) == 2880
    assert len(rows.base_positions) == 576
    assert len(rows.region_positions) == 144 + 576
    frame = rows.statistics()
    np.testing.assert_allclose(
        frame["region_attention"], frame["region_attention_base"] + frame["region_attention_tiles"], atol=1e-5
    )
    assert (frame["newline_attention"] > 0).all()


def test_score_of_text_alone_and_its_refusals(tmp_path: Path, monkeypatch) -> None:
    from tests.builders.tiny import tiny_checkpoint

    short = load_model(tiny_checkpoint("llava-llama", tmp_path / "short", max_position_embeddings=60), device="cpu")
    encoded = short.encode(QUESTION, [])
    assert short.score(encoded, "red", query="last_prompt").rows.shape == (3, 4, len(encoded))
    with pytest.raises(VisualHeadsError, match=r"prompt and its continuation must fit the model's 60 positions"):
        short.score(encoded, "red " * 60, query=None)
    monkeypatch.setattr(short.encoder, "_finished_ids", lambda *args: encoded.input_ids)
    with pytest.raises(VisualHeadsError, match="needs at least one token; '' has none"):
        short.score(encoded, "", query=None)
