"""Any family: rows equal eager attention, answers equal a plain `generate`, and what cannot be right is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lmms_visual_heads import load_model
from lmms_visual_heads.capture.layers import attention_layers, local_layers
from lmms_visual_heads.checkpoints import any_encoding
from lmms_visual_heads.checkpoints.any_model import AnyVisualModel, load_any, prove_rows
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.any_tiny import any_checkpoint
from tests.builders.tiny import noise_image, tiny_checkpoint, tiny_tokenizer

KINDS = (
    "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "llava-onevision",
    "gemma3", "idefics3", "paligemma", "mistral3", "lfm2-vl",
)  # fmt: skip
QUESTION = "How many of these are there?"
BEYOND = 2**31 - 1
Load = Callable[[str], AnyVisualModel]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    torch.set_num_threads(1)
    built: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in built:
            built[kind] = any_checkpoint(kind, tmp_path_factory.mktemp("any") / kind)
        return built[kind]

    return get


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Load:
    loaded: dict[str, AnyVisualModel] = {}

    def get(kind: str) -> AnyVisualModel:
        if kind not in loaded:
            loaded[kind] = load_any(folders(kind), device="cpu", dtype="float32")
        return loaded[kind]

    return get


@pytest.fixture(scope="module")
def plain(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    from transformers import AutoModelForImageTextToText

    loaded: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in loaded:
            loaded[kind] = AutoModelForImageTextToText.from_pretrained(
                folders(kind), dtype=torch.float32, attn_implementation="eager"
            ).eval()
        return loaded[kind]

    return get


def eager_rows(model: Any, inputs: dict[str, Tensor], step: int, n_layers: int) -> Tensor:
    """[L, H, K]: rows of the last query of a generation step, from full eager maps; NaN in layers without attention."""
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=2, do_sample=False, eos_token_id=BEYOND, pad_token_id=3,
            output_attentions=True, return_dict_in_generate=True,
        )  # fmt: skip
    length = inputs["input_ids"].shape[1] + step
    layers = attention_layers(model.config.get_text_config(decoder=True))
    rows = torch.full((n_layers, output.attentions[step][0].shape[1], length), float("nan"))
    for layer, attention in zip(layers, output.attentions[step], strict=True):
        row = attention[0, :, -1]
        rows[layer] = torch.nn.functional.pad(row, (length - row.shape[-1], 0))
    return rows


def assert_rows(found: Tensor, expected: Tensor, model: AnyVisualModel, encoded: Any) -> None:
    """Equal within 1e-5; NaN in layers without attention and in local layers that see no visual token."""
    seen = expected[..., encoded.visual_positions].sum(-1).amax(-1) > 0
    local = local_layers(model.model.config.get_text_config(decoder=True))
    blind = [layer for layer in local if not bool(seen[layer])]
    expected = expected.clone()
    expected[blind] = float("nan")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_eager_attention_for_both_queries(kind: str, load: Load, plain: Callable[[str], Any]) -> None:
    model, eager = load(kind), plain(kind)
    for image in (noise_image(90, 60), noise_image(40, 130, seed=1)):
        encoded = model.encode(QUESTION, [image])
        assert len(encoded.visual_positions) > 1
        for step, query in enumerate(("last_prompt", "first_generated")):
            expected = eager_rows(eager, encoded.inputs, step, model.n_layers)
            for max_new_tokens in (1, 4):
                (one,) = model.generate([encoded], query=query, max_new_tokens=max_new_tokens, eos_token_id=BEYOND)
                assert one.rows is not None
                assert_rows(one.rows, expected, model, encoded)
                assert len(one.token_ids) == max_new_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_plain_generate_with_capture_on_and_off(
    kind: str, load: Load, plain: Callable[[str], Any]
) -> None:
    model = load(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 60)])
    with torch.inference_mode():
        tokens = plain(kind).generate(**encoded.inputs, max_new_tokens=5, do_sample=False, pad_token_id=3)
    expected = tokens[0, len(encoded) :].tolist()
    for query in (None, "last_prompt", "first_generated"):
        (one,) = model.generate([encoded], query=query, max_new_tokens=5)
        assert one.token_ids == expected
        assert one.answer.n_answer_tokens == len(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_ends_at_once_and_beams_give_the_same_rows(kind: str, load: Load) -> None:
    model = load(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 60)])
    (usual,) = model.generate([encoded], query="first_generated", max_new_tokens=3, eos_token_id=BEYOND)
    (ended,) = model.generate([encoded], query="first_generated", max_new_tokens=3, eos_token_id=usual.token_ids[0])
    assert ended.token_ids == usual.token_ids[:1]
    torch.testing.assert_close(ended.rows, usual.rows, atol=1e-6, rtol=0, equal_nan=True)
    (beams,) = model.generate([encoded], query="last_prompt", max_new_tokens=2, num_beams=2, eos_token_id=BEYOND)
    (greedy,) = model.generate([encoded], query="last_prompt", max_new_tokens=2, eos_token_id=BEYOND)
    torch.testing.assert_close(beams.rows, greedy.rows, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_rows_or_answers(kind: str, load: Load) -> None:
    model = load(kind)
    batch = [model.encode(QUESTION, [noise_image(90, 60, seed=seed)]) for seed in range(3)]
    together = model.generate(batch, query="first_generated", max_new_tokens=3, eos_token_id=BEYOND)
    for encoded, found in zip(batch, together, strict=True):
        (alone,) = model.generate([encoded], query="first_generated", max_new_tokens=3, eos_token_id=BEYOND)
        assert found.token_ids == alone.token_ids
        torch.testing.assert_close(found.rows, alone.rows, atol=1e-5, rtol=0, equal_nan=True)


def test_most_families_stack_their_documents(load: Load) -> None:
    assert {kind for kind in KINDS if not load(kind).encoder.stacks} <= {"lfm2-vl"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "paligemma"])
def test_scores_equal_one_forward_pass_over_prompt_and_answer(
    kind: str, load: Load, plain: Callable[[str], Any]
) -> None:
    model = load(kind)
    encoded = model.encode(QUESTION, [noise_image(90, 60)])
    score = model.score(encoded, "two dogs", query="first_generated")
    prompt, whole = encoded.prompt, model.encoder.prompt(QUESTION, 1, answer="two dogs")
    tail = model.encoder.text_ids(whole)[len(model.encoder.text_ids(prompt)) :]
    assert len(tail) == score.n_tokens > 1
    ids = torch.cat([encoded.input_ids, torch.tensor(tail)])
    inputs = {**encoded.inputs, "input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    for name, value in encoded.inputs.items():
        if "token_type" in name:
            inputs[name] = torch.nn.functional.pad(value, (0, len(tail)))
    with torch.inference_mode():
        logits = plain(kind)(**inputs).logits[0, len(encoded) - 1 : -1]
    assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor(tail))), abs=1e-4)
    assert score.rows is not None
    assert score.rows.shape[-1] == len(encoded) + 1


def test_a_bidirectional_prefix_is_scored_as_it_is_generated(load: Load) -> None:
    model = load("paligemma")
    encoded = model.encode(QUESTION, [noise_image(90, 60)])
    (one,) = model.generate([encoded], query=None, max_new_tokens=1, eos_token_id=BEYOND)
    score = model.score(encoded, "red", query="last_prompt")
    assert score.answer.top_tokens == one.answer.top_tokens
    assert encoded.sink_positions.tolist() == [], "the prompt starts with the image"
    rows = model.attention_rows(noise_image(90, 60), QUESTION)
    assert rows.statistics().sink_attention.isna().all()


def test_local_layers_that_cannot_see_the_image_are_missing_and_others_are_not(load: Load) -> None:
    model = load("gemma3")
    far = model.attention_rows(noise_image(), QUESTION).statistics()
    near = model.attention_rows(noise_image(), "Y", query="last_prompt").statistics()
    assert far.image_attention.isna().tolist() == [True] * 8 + [False] * 4
    assert far.concentration.isna().tolist() == far.focus.isna().tolist() == far.image_attention.isna().tolist()
    assert near.image_attention.notna().all()
    assert far.region_attention.isna().all()


def test_layers_without_attention_are_missing(load: Load) -> None:
    statistics = load("lfm2-vl").attention_rows(noise_image(), QUESTION).statistics()
    assert statistics.image_attention.isna().tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_the_visual_token_is_the_one_that_images_add(load: Load) -> None:
    """Gemma-3's processor calls the start of the image its image token; the config and the prompt know better."""
    model = load("gemma3")
    assert model.processor.image_token == "<start_of_image>"
    assert model.tokenizer.convert_ids_to_tokens(model.image_token_id) == "<image_soft_token>"
    assert load("mistral3").tokenizer.convert_ids_to_tokens(load("mistral3").image_token_id) == "[IMG]"


def test_templates_that_write_the_first_token_do_not_get_it_twice(load: Load) -> None:
    ids = load("gemma3").encode(QUESTION, [noise_image()]).input_ids.tolist()
    assert ids.count(load("gemma3").tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_small_thin_and_coloured_images_work_or_end_in_one_sentence(kind: str, load: Load) -> None:
    model = load(kind)
    for mode in ("L", "CMYK", "RGBA", "P"):
        assert len(model.attention_rows(Image.new(mode, (90, 60)), QUESTION).visual_positions) > 1
    for size in ((1, 1), (20000, 20)):
        try:
            found = len(model.attention_rows(Image.new("RGB", size), QUESTION, query="last_prompt").visual_positions)
        except VisualHeadsError as error:
            found = 0
            sentence = str(error)
        assert found or f"{size[0]} x {size[1]}" in sentence or "positions; this prompt has" in sentence


@pytest.mark.parametrize("kind", ["qwen2-vl", "internvl", "idefics3", "gemma3"])
def test_several_images_and_none(kind: str, load: Load) -> None:
    model = load(kind)
    one = model.encode(QUESTION, [noise_image(90, 60)])
    two = model.encode(QUESTION, [noise_image(90, 60), noise_image(90, 60, seed=1)])
    none = model.encode(QUESTION, [])
    assert len(two.visual_positions) == 2 * len(one.visual_positions)
    assert len(none.visual_positions) == 0
    for encoded in (two, none):
        assert model.generate([encoded], query="first_generated", max_new_tokens=2)[0].rows is not None


def test_soft_capped_attention_is_refused(folders: Callable[[str], Path]) -> None:
    with pytest.raises(
        VisualHeadsError, match=r"paligemma caps its attention scores \(attn_logit_softcapping = 50.0\)"
    ):
        load_any(folders("paligemma2"), device="cpu")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "mllama"}, "mllama looks at the image through cross-attention"),
        ({"model_type": "idefics"}, "idefics looks at the image through cross-attention"),
        ({"model_type": "florence2"}, "florence2 is an encoder-decoder"),
        ({"model_type": "llama"}, "model_type 'llama', which is none"),
        ({"model_type": "newest_vl"}, "needs a model that this transformers knows; .* has model_type 'newest_vl'"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "code.Config"}}, "needs a model that this transformers knows"),
        ({"model_type": "qwen2_vl"}, "needs its processor and tokenizer files"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VisualHeadsError, match=sentence) as caught:
        load_any(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_alone_is_no_processor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(VisualHeadsError, match=r"needs its processor|needs a processor for images and text"):
        load_any(tmp_path, device="cpu")


def test_visual_tokens_that_are_not_marked_are_refused(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_encoding.AnyEncoder, "_candidates", lambda self: [0])
    with pytest.raises(
        VisualHeadsError, match=r"mistral3 \(PixtralProcessor\) names no token that an image puts there"
    ):
        load_any(folders("mistral3"), device="cpu")


def test_a_wrong_visual_token_is_found_out(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("qwen2-vl")
    monkeypatch.setattr(model.encoder, "image_token_id", model.tokenizer.convert_tokens_to_ids("<|vision_start|>"))
    with pytest.raises(VisualHeadsError, match="another picture changes 0 of 1 marked positions and 16 others"):
        prove_rows(model)


def test_a_decoder_with_cross_attention_is_refused(load: Load) -> None:
    from lmms_visual_heads.capture.support import check_decoder

    class TextCrossAttention(torch.nn.Module):
        pass

    model = load("internvl")
    decoder = model.model.get_decoder()
    decoder.extra = TextCrossAttention()
    try:
        with pytest.raises(
            VisualHeadsError, match=r"internvl has cross-attention \(TextCrossAttention\) in its decoder"
        ):
            check_decoder(model.model)
    finally:
        del decoder.extra


def test_the_description_is_that_of_the_other_models(load: Load) -> None:
    description = load("qwen3-vl").description
    assert description["architecture"] == "Qwen3VLForConditionalGeneration"
    assert (description["layers"], description["heads"]) == (3, 4)
    assert description["image_processor"].startswith("Qwen2VLImageProcessor")
    assert description["image_processor"].endswith(("(torchvision)", "(pil)"))
    assert description["language_model_parameters"] > 0
    json.dumps(description)


@pytest.mark.parametrize("kind", ["qwen2-vl", "gemma3", "paligemma", "lfm2-vl"])
def test_the_self_check_holds_for_any_family(kind: str, load: Load) -> None:
    from lmms_visual_heads.capture.selfcheck import self_check

    result = self_check(load(kind), repeats=1)
    assert [finding.holds for finding in result.findings] == [True] * 4, result.findings
    assert 0 <= result.facts["largest_image_attention"] <= 1 + 1e-6


def test_one_door_loads_every_family(folders: Callable[[str], Path], tiny: Callable[[str], Path]) -> None:
    settings = {"device": "cpu", "dtype": "float32"}
    other = load_model(folders("qwen2-vl"), **settings)
    assert isinstance(other, AnyVisualModel)
    assert "qwen2-vl': Qwen2VLForConditionalGeneration, 3 layers x 4 heads, float32 on cpu" in repr(other)
    assert not isinstance(load_model(tiny("llava-llama"), **settings), AnyVisualModel)
    rows = other.attention_rows(noise_image(), QUESTION, boxes=[(0, 0, 9, 9)], max_new_tokens=2)
    assert rows.region_positions is None
    assert len(rows.values.shape) == 3
    assert rows.values.shape[2] == len(rows.input_ids) + 1
    assert rows.prompt.count(other.encoder.image_token) == 1
    assert len(rows.statistics()) == 3 * 4
    assert repr(rows).startswith(
        f"AttentionRows(3 layers x 4 heads x {rows.values.shape[2]} keys, query first_generated"
    )


def test_what_only_llava_takes_is_refused_for_other_families(folders: Callable[[str], Path]) -> None:
    for name, value in (("conversation", "v1"), ("image_aspect", "pad"), ("model_base", "x"), ("peft", "x")):
        with pytest.raises(VisualHeadsError, match=rf"{name}= came, which is for LLaVA"):
            load_model(folders("qwen2-vl"), device="cpu", **{name: value})


def test_questions_do_not_share_an_images_tensors_in_unknown_families(load: Load) -> None:
    model = load("qwen2-vl")
    encoded = model.encode(QUESTION, [noise_image()])
    with pytest.raises(VisualHeadsError, match=r"share an image's tensors in LLaVA families only.*Use encode"):
        model.encode_again(QUESTION, encoded)


def test_the_old_name_still_loads_and_says_so(tiny: Callable[[str], Path]) -> None:
    from lmms_visual_heads import load_any_model

    with pytest.warns(DeprecationWarning, match="load_model loads every family"):
        assert isinstance(load_any_model(tiny("llava-llama"), device="cpu"), AnyVisualModel)


@pytest.mark.parametrize("load", [load_model, load_any], ids=["door", "any"])
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("llava-gemma2", r"caps its attention scores \(attn_logit_softcapping = 0.5\)"),
        ("llava-gptoss", r"GptOssModel\) without scaled dot-product attention"),
    ],
)
def test_a_text_model_whose_answers_would_not_be_its_own_is_refused_in_every_family(
    tmp_path: Path, load: Callable[..., Any], kind: str, sentence: str
) -> None:
    """SDPA leaves out the cap and the sinks: without the check, answers and rows are those of another model."""
    with pytest.raises(VisualHeadsError, match=sentence):
        load(tiny_checkpoint(kind, tmp_path / kind), device="cpu", dtype="float32")


def test_llava_itself_gives_the_same_rows_without_regions(tiny: Callable[[str], Path]) -> None:
    image = noise_image()  # needs no resize, in which the image backends differ by grey levels
    known = load_model(tiny("llava-llama"), device="cpu", dtype="float32").attention_rows(image, QUESTION)
    found = load_any(tiny("llava-llama"), device="cpu", dtype="float32").attention_rows(
        image, QUESTION, boxes=[(0, 0, 9, 9)]
    )
    assert found.region_positions is None
    assert torch.equal(found.visual_positions, known.visual_positions)
    torch.testing.assert_close(found.values, known.values, atol=1e-4, rtol=0)
