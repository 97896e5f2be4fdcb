"""Going on from a prefilled prefix equals separate runs: answers, rows and scores, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmms_visual_heads.capture.prefix import common_prefix
from tests.builders.tiny import KINDS, noise_image

WORDS = ("How many of these are there?", "How many people are pictured? Look twice.", "What color is the circle?")
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 1e-5}


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_common_prefix_is_the_longest_that_leaves_each_prompt_a_token(prompts: list[list[int]]) -> None:
    found = common_prefix([torch.tensor(prompt) for prompt in prompts])
    fits = [
        n
        for n in range(min(map(len, prompts)))
        if all(prompt[:n] == prompts[0][:n] for prompt in prompts) and all(len(prompt) > n for prompt in prompts)
    ]
    assert found == max(fits)


@pytest.mark.parametrize("query", ["first_generated", "last_prompt", None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new_tokens", [1, 4])
def test_a_branch_answers_as_a_separate_run(loaded: Any, kind: str, query: str | None, new_tokens: int) -> None:
    model = loaded(kind)
    sizes = [(56, 56), (112, 56)] if kind.startswith("llavanext") else [(56, 56), (56, 56)]
    families = [
        [model.encode(text, [noise_image(*size, seed=seed)]) for text in WORDS] for seed, size in enumerate(sizes)
    ]
    for family in families:  # the second picture has other tiles, so another prefix length
        length = common_prefix([encoded.input_ids for encoded in family])
        assert length > int(family[0].visual_positions[-1])
        prefix = model.prefill(family[:1], length)
        for _ in range(2):  # the prefix is not used up
            for encoded in family:
                (alone,) = model.generate([encoded], query=query, max_new_tokens=new_tokens)
                (reused,) = model.generate([encoded], query=query, cache=prefix.branch([0]), max_new_tokens=new_tokens)
                assert reused.token_ids == alone.token_ids
                if query is not None:
                    torch.testing.assert_close(reused.rows, alone.rows, **CLOSE)
                assert reused.answer.confidence == pytest.approx(alone.answer.confidence, abs=1e-5)
                assert reused.answer.answer_log_probability == pytest.approx(
                    alone.answer.answer_log_probability, abs=1e-4
                )


@pytest.mark.parametrize("kind", ["llava-llama", "llava-mistral-window", "llavanext-llama"])
def test_several_pictures_and_their_questions_go_in_one_batch(loaded: Any, kind: str) -> None:
    model = loaded(kind)
    pictures = [noise_image(seed=seed) for seed in range(3)]
    documents = [[model.encode(text, [picture]) for text in (WORDS[0], WORDS[0] + " ")] for picture in pictures]
    documents = [[family[0]] for family in documents]
    length = len(documents[0][0]) - 4
    prefix = model.prefill([family[0] for family in documents], length)
    rows = [2, 0, 0, 1]
    batch = [documents[row][0] for row in rows]
    together = model.generate(batch, query="first_generated", cache=prefix.branch(rows), max_new_tokens=3)
    for encoded, given_ in zip(batch, together, strict=True):
        (alone,) = model.generate([encoded], query="first_generated", max_new_tokens=3)
        assert given_.token_ids == alone.token_ids
        torch.testing.assert_close(given_.rows, alone.rows, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_decoding_are_those_of_the_last_prompt_token(loaded: Any, kind: str, monkeypatch: Any) -> None:
    model = loaded(kind)
    encoded = [model.encode(WORDS[0], [noise_image(seed=seed)]) for seed in range(2)]
    wanted = [one.rows for one in model.generate(encoded, query="last_prompt", max_new_tokens=2)]
    prefix = model.prefill(encoded, len(encoded[0]) - 3)
    ran: list[int] = []
    hook = model.model.get_output_embeddings().register_forward_hook(lambda *_: ran.append(1))
    plain, reused = model.prompt_rows(encoded), model.prompt_rows(encoded, prefix.branch([0, 1]))
    hook.remove()
    assert not ran, "the language-model head was run"
    for want, one, other in zip(wanted, plain, reused, strict=True):
        torch.testing.assert_close(one, want, **CLOSE)
        torch.testing.assert_close(other, want, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_scored_the_same_from_a_prefix(loaded: Any, kind: str) -> None:
    model = loaded(kind)
    encoded = model.encode(WORDS[2], [noise_image()])
    prefix = model.prefill([encoded], len(encoded) - 1)
    for continuation in ("red", "blue and green"):
        for query in ("first_generated", "last_prompt"):
            alone = model.score(encoded, continuation, query=query)
            reused = model.score(encoded, continuation, query=query, prefix=prefix)
            assert reused.loss == pytest.approx(alone.loss, abs=1e-4)
            assert (reused.is_greedy, reused.n_tokens) == (alone.is_greedy, alone.n_tokens)
            torch.testing.assert_close(reused.rows, alone.rows, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_another_question_is_encoded_without_touching_the_picture(loaded: Any, kind: str) -> None:
    model = loaded(kind)
    picture = noise_image(112, 56)
    known = model.encode(WORDS[0], [picture])
    again, whole = model.encode_again(WORDS[1], known), model.encode(WORDS[1], [picture])
    assert again.inputs["pixel_values"] is known.inputs["pixel_values"]
    assert again.prompt == whole.prompt
    assert again.inputs.keys() == whole.inputs.keys()
    for name, tensor in whole.inputs.items():
        assert torch.equal(again.inputs[name], tensor), name
    for name in ("input_ids", "visual_positions", "patch_positions", "sink_positions"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name


@pytest.mark.parametrize(
    ("settings", "reused"),
    [
        ({}, True),
        ({"do_sample": True, "temperature": 0.7}, True),
        ({"num_beams": 2}, False),
        ({"use_cache": False}, False),
        ({"cache_implementation": "static"}, False),
    ],
)
def test_what_may_go_on_from_a_prefix(loaded: Any, settings: dict[str, Any], reused: bool) -> None:
    assert loaded("llava-llama").reuses_prefix(**settings) is reused
