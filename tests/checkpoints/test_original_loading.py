"""Original checkpoints that the tests build themselves: against their Hugging Face twins, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints.conversations import CONVERSATIONS
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.layout import image_layout
from tests.builders.original import TOWER, original_checkpoint
from tests.builders.tiny import QUESTION, noise_image

VARIANTS: dict[str, dict[str, Any]] = {
    "vicuna": {},
    "grouped-query heads": {"kv_heads": 2},
    "one head for all": {"kv_heads": 1, "weights": "bin"},
    "plain llava, old pickles": {"model_type": "llava", "weights": "old bin", "projector_beside": True},
    "one safetensors file": {"shards": 1},
    "one pickle": {"shards": 1, "weights": "bin", "projector_beside": True},
    "1.6 vicuna, trained tower": {"style": "anyres", "tower": "inside"},
    "1.6 mistral": {"style": "anyres", "model_type": "llava_mistral", "kv_heads": 2},
    "vip": {"style": "vip", "weights": "bin"},
    "vip llama-3": {"style": "vip", "llama_3": True, "kv_heads": 2},
    "phi-3 with spare rows": {"model_type": "llava_phi3", "extra_rows": 5},
    "llama-3": {"llama_3": True, "kv_heads": 2, "rope_theta": 1e4},
    "square": {"style": "square"},
    "resize": {"style": "resize"},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """`built(name)`: folder and twin of a variant, built once."""
    torch.set_num_threads(1)
    done: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in done:
            folder = tmp_path_factory.mktemp("original") / "runs" / "checkpoint"
            settings = {"rope_theta": 1e4, **VARIANTS[name]} if "llama_3" in VARIANTS[name] else VARIANTS[name]
            done[name] = folder, original_checkpoint(folder, **settings)
        return done[name]

    return get


@pytest.fixture
def copy(built, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage, its tower beside it."""
    folder = built("vicuna")[0]
    shutil.copytree(folder.parent, tmp_path / "runs")
    return tmp_path / "runs" / folder.name


def edit(folder: Path, **changes: object) -> None:
    """Set fields of config.json; None removes a field."""
    document = json.loads((folder / "config.json").read_text())
    document = {name: value for name, value in {**document, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(document))


def refusal(source: object, **settings: object) -> str:
    with pytest.raises(VisualHeadsError) as caught:
        load_model(source, **{"device": "cpu", **settings})
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    return sentence


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_equals_its_twin(built, name: str) -> None:
    """Same weights in a model that transformers built: same logits and, for both queries, same rows."""
    folder, twin = built(name)
    model = load_model(folder, device="cpu")
    encoded = model.encode(QUESTION, [noise_image(90, 50)])
    twin.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = twin(**encoded.inputs, output_attentions=True)
        found = model.model(**encoded.inputs)
    vocabulary = found.logits.shape[-1]
    assert vocabulary == twin.config.text_config.vocab_size - 1
    torch.testing.assert_close(found.logits[0, -1], expected.logits[0, -1, :vocabulary], atol=1e-4, rtol=0)
    rows = model.attention_rows(noise_image(90, 50), QUESTION, query="last_prompt")
    eager = torch.stack([layer[0, :, -1] for layer in expected.attentions])
    torch.testing.assert_close(rows.values, eager, atol=1e-5, rtol=0)


def test_towers_run_on_sdpa_and_nothing_is_complained_of(built, caplog, capfd) -> None:
    for name in ("vicuna", "1.6 mistral", "vip"):
        model = load_model(built(name)[0], device="cpu")
        model.attention_rows(noise_image(), QUESTION)
        assert model.model.config.vision_config._attn_implementation == "sdpa"
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_what_a_checkpoint_says_about_itself(built) -> None:
    folder, twin = built("1.6 mistral")
    description = json.loads(json.dumps(load_model(folder, device="cpu").description))
    text = sum(p.numel() for p in twin.model.language_model.parameters()) + twin.lm_head.weight.numel()
    assert description["language_model_parameters"] == text - 2 * 64  # the twin has one row more
    assert {key: description[key] for key in ("format", "model_type", "conversation", "image_aspect")} == {
        "format": "original",
        "model_type": "llava_mistral",
        "conversation": "mistral_instruct",
        "image_aspect": "anyres",
    }
    assert description["architecture"] == "LlavaNextForConditionalGeneration"
    assert description["vision_tower"] == TOWER
    assert description["image_processor"] == "LlavaNextImageProcessorPil (pil)"
    assert load_model(built("1.6 vicuna, trained tower")[0], device="cpu").description["vision_tower"] == "checkpoint"


@pytest.mark.parametrize(
    ("name", "conversation"),
    [("vicuna", "v1"), ("1.6 vicuna, trained tower", "v1"), ("1.6 mistral", "mistral_instruct"), ("vip", "llava_v1"),
     ("vip llama-3", "llava_llama_3"), ("llama-3", "llava_llama_3"), ("phi-3 with spare rows", "llava_phi_3"),
     ("plain llava, old pickles", "v1")],
)  # fmt: skip
def test_the_conversation_follows_from_the_checkpoint(built, name: str, conversation: str) -> None:
    assert load_model(built(name)[0], device="cpu").description["conversation"] == conversation


def test_the_folders_name_decides_nothing(built, tmp_path: Path) -> None:
    folder = built("vicuna")[0]
    shutil.copytree(folder.parent, tmp_path / "runs")
    renamed = (tmp_path / "runs" / folder.name).rename(tmp_path / "runs" / "vip-llava-v1.6-mistral-llama-3-phi-3")
    assert load_model(renamed, device="cpu").description["conversation"] == "v1"


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_every_conversation_can_be_asked_for(built, conversation: str) -> None:
    model = load_model(built("vicuna")[0], device="cpu", conversation=conversation)
    assert model.description["conversation"] == conversation
    template = CONVERSATIONS[conversation]
    assert model.prompt("What?", 1) == template.opening + "<image>\nWhat?" + template.ask
    finished = model.encoder.prompt("What?", 1, answer="red")
    assert finished.startswith(model.prompt("What?", 1))
    assert finished.endswith("red" + template.after)


def test_an_unknown_conversation_lists_the_known_ones(built) -> None:
    sentence = refusal(built("vicuna")[0], conversation="vicuna_v11")
    assert all(name in sentence for name in CONVERSATIONS)
    assert "got 'vicuna_v11'. Did you mean vicuna_v1?" in sentence


def test_pieces_around_the_image_are_tokenised_apart(built) -> None:
    """sentencepiece models get one blank of their own after the image; Llama-3 prompts have two BOS."""
    model = load_model(built("vicuna")[0], device="cpu")
    encoded = model.encode(QUESTION, [noise_image()])
    after = encoded.input_ids[encoded.visual_positions[-1] + 1 :][:2].tolist()
    assert model.tokenizer.convert_ids_to_tokens(after) == ["▁", "<0x0A>"]
    assert encoded.input_ids.tolist().count(model.tokenizer.bos_token_id) == 1
    llama = load_model(built("llama-3")[0], device="cpu")
    assert llama.encode(QUESTION, [noise_image()]).sink_positions.tolist() == [0, 1]


@pytest.mark.parametrize("piece", ["\nWhat is this?", " then ", "  two", "USER: ", "", "a"])
def test_pieces_are_those_of_sentencepiece(built, piece: str) -> None:
    import sentencepiece

    folder = built("vicuna")[0]
    expected = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(piece)
    encoder = load_model(folder, device="cpu").encoder
    ids = encoder.text_ids(f"<image>{piece}")
    assert ids == [encoder.tokenizer.bos_token_id, encoder.config.image_token_id, *expected]


def test_no_image_and_several_images(built) -> None:
    for name in ("vicuna", "1.6 mistral"):
        model = load_model(built(name)[0], device="cpu")
        none = model.encode(QUESTION, [])
        assert "pixel_values" not in none.inputs
        assert model.generate([none], query=None, max_new_tokens=2)[0].token_ids
        two = model.encode(QUESTION, [noise_image(), noise_image(90, 50)])
        assert two.prompt.count("<image>") == 2
        assert model.generate([two], query="last_prompt", max_new_tokens=1)[0].rows.shape[-1] == len(two)
        with pytest.raises(VisualHeadsError, match="one <image> per image; got 1 for 2 images"):
            model.encode("Look: <image>", [noise_image(), noise_image()])
        with pytest.raises(VisualHeadsError, match="one <image> per image; got 0 for 1 images"):
            model.encoder.encode_prompt("Nothing here", [noise_image()])


def test_unpadding_rounds_as_the_original_in_the_model_too(built) -> None:
    """Sizes for which transformers keeps other rows or columns: layout, regions and the model's own features agree."""
    model = load_model(built("1.6 mistral")[0], device="cpu")
    ours, other = model.preprocessing, dataclasses.replace(model.preprocessing, unpad_rounding="huggingface")
    sizes = [
        (h, w)
        for h in range(10, 260)
        for w in range(10, 260)
        if image_layout((h, w), ours) != image_layout((h, w), other)
    ]
    assert sizes
    for height, width in sizes[:3]:
        encoded = model.encode(QUESTION, [noise_image(width, height)], boxes=[(0, 0, width / 2, height)])
        assert len(encoded.visual_positions) == image_layout((height, width), ours).n_tokens
        assert encoded.region is not None
        assert len(encoded.region) == len(encoded.patch_positions)
        assert model.generate([encoded], query="last_prompt", max_new_tokens=1)[0].rows is not None


def test_scores_follow_the_conversation(built) -> None:
    model = load_model(built("vicuna")[0], device="cpu")
    encoded = model.encode(QUESTION, [noise_image()])
    scored = model.score(encoded, "a circle", query="last_prompt")
    answer = model.tokenizer(" a circle</s>", add_special_tokens=False)["input_ids"]
    assert scored.n_tokens in (len(answer), len(answer) - 1)
    rows = model.generate([encoded], query="last_prompt", max_new_tokens=1)[0].rows
    torch.testing.assert_close(scored.rows, rows, atol=1e-5, rtol=0)


def test_image_aspect_is_the_users_choice(built) -> None:
    folder = built("vicuna")[0]
    image = noise_image(90, 50)
    padded, cropped = (load_model(folder, device="cpu", image_aspect=aspect) for aspect in ("pad", "crop"))
    assert (padded.description["image_aspect"], cropped.description["image_aspect"]) == ("pad", "crop")
    assert torch.equal(
        load_model(folder, device="cpu").encode(QUESTION, [image]).inputs["pixel_values"],
        padded.encode(QUESTION, [image]).inputs["pixel_values"],
    )
    square = Image.new("RGB", (90, 90), (122, 116, 104))
    square.paste(image, (0, 20))
    assert torch.equal(
        padded.encode(QUESTION, [image]).inputs["pixel_values"],
        cropped.encode(QUESTION, [square]).inputs["pixel_values"],
    )
    assert not torch.equal(
        padded.encode(QUESTION, [image]).inputs["pixel_values"],
        cropped.encode(QUESTION, [image]).inputs["pixel_values"],
    )
    assert "sees tiles (anyres). Leave it out." in refusal(built("1.6 mistral")[0], image_aspect="pad")
    assert "image_aspect must be pad or crop; got 'tile'" in refusal(folder, image_aspect="tile")


def test_image_aspect_of_a_hugging_face_checkpoint(tiny) -> None:
    """Published processors crop; the user may pad as the original does."""
    image = noise_image(90, 50)
    published = load_model(tiny("llava-llama"), device="cpu")
    padded = load_model(tiny("llava-llama"), device="cpu", image_aspect="pad")
    assert (published.description["image_aspect"], padded.description["image_aspect"]) == ("crop", "pad")
    assert "the original LLaVA-1.5 and ViP-LLaVA code pads" in published.description["image_aspect_note"]
    assert "image_aspect_note" not in padded.description
    assert published.preprocessing.crop
    assert padded.preprocessing.pad
    square = Image.new("RGB", (90, 90), (122, 116, 104))
    square.paste(image, (0, 20))
    assert torch.equal(
        padded.encode(QUESTION, [image]).inputs["pixel_values"],
        published.encode(QUESTION, [square]).inputs["pixel_values"],
    )
    assert "sees tiles (anyres)" in refusal(tiny("llavanext-llama"), image_aspect="pad")


@pytest.mark.parametrize("place", ["beside", "parent", "in checkpoint", "working directory"])
def test_where_the_tower_may_lie(tmp_path: Path, monkeypatch, place: str) -> None:
    folder = tmp_path / "a" / "b" / "checkpoint"
    twin = original_checkpoint(folder, tower="parent" if place == "working directory" else place)
    if place == "working directory":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "a" / TOWER).rename(tmp_path / "elsewhere" / TOWER)
        assert "not found" in refusal(folder)
        monkeypatch.chdir(tmp_path / "elsewhere")
    model = load_model(folder, device="cpu")
    weight = model.model.model.vision_tower.state_dict()["post_layernorm.weight"]
    assert torch.equal(weight, twin.model.vision_tower.state_dict()["post_layernorm.weight"])


def test_a_tower_that_is_not_found_says_where_it_was_looked_for(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder, tower="nowhere")
    sentence = refusal(folder)
    assert f"The vision tower '{TOWER}' must lie in" in sentence
    for place in (folder / TOWER, folder.parent / TOWER, tmp_path / TOWER, Path.cwd() / TOWER):
        assert str(place) in sentence
    assert "on the hub" in sentence


def test_a_frozen_tower_inside_the_checkpoint_is_used_where_no_other_lies(tmp_path: Path) -> None:
    """With a published name nothing but the weights is needed, and they may all be inside."""
    folder = tmp_path / "runs" / "checkpoint"
    twin = original_checkpoint(folder, tower="inside", unfreeze_mm_vision_tower=False)
    beside = load_model(folder, device="cpu")
    assert beside.description["vision_tower"] == TOWER  # the published one, as the original takes
    (folder.parent / TOWER / "model.safetensors").unlink()
    inside = load_model(folder, device="cpu")
    assert inside.description["vision_tower"] == "checkpoint"
    weight = inside.model.model.vision_tower.state_dict()["post_layernorm.weight"]
    assert torch.equal(weight, twin.model.vision_tower.state_dict()["post_layernorm.weight"])


def test_dtypes(built) -> None:
    folder = built("vicuna")[0]
    assert load_model(folder, device="cpu", dtype="auto").dtype == torch.float32
    half = load_model(folder, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.attention_rows(noise_image(), QUESTION).values.dtype == torch.float32


def test_weights_do_not_hang_on_the_files(copy: Path) -> None:
    """Files may change after loading."""
    model = load_model(copy, device="cpu")
    before = model.attention_rows(noise_image(), QUESTION).values
    for path in copy.glob("*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(model.attention_rows(noise_image(), QUESTION).values, before)


@pytest.mark.parametrize("kind", ["llava_mpt", "llava_qwen", "llava_gemma", "llava_mixtral"])
def test_unsupported_model_types(copy: Path, kind: str) -> None:
    edit(copy, model_type=kind)
    sentence = refusal(copy)
    assert "llava_llama, llava_mistral and llava_phi3" in sentence
    assert repr(kind) in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_projector_type": "linear"}, "The projector must be mlp2x_gelu"),
        ({"mm_projector_type": "mlp3x_gelu"}, "has mm_projector_type 'mlp3x_gelu'"),
        ({"mm_projector_type": None}, "has mm_projector_type 'linear'"),
        ({"mm_vision_tower": None}, "names its vision tower as mm_vision_tower"),
        ({"s2": True}, "S2 scaling"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio must be pad, square, resize or anyres"),
        ({"image_aspect_ratio": "anyres"}, "Tiles must be merged as spatial_unpad"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}, "image_grid_pinpoints"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature must be patch"),
        ({"hidden_size": 128}, "weights must fit its config.json"),
        ({"num_hidden_layers": 3}, "must hold every weight of its model"),
        ({"num_hidden_layers": 1}, "which has none"),
    ],
)
def test_config_that_cannot_be(copy: Path, changes: dict[str, object], words: str) -> None:
    edit(copy, **changes)
    assert words in refusal(copy)


def test_a_tower_that_is_no_clip(copy: Path) -> None:
    edit(copy.parent / TOWER, model_type="siglip_vision_model")
    assert "must be a CLIP" in refusal(copy)
    (copy.parent / TOWER / "config.json").write_text("{")
    assert "must be a JSON document; it is damaged" in refusal(copy)


def test_missing_and_truncated_shards(copy: Path) -> None:
    shard = sorted(copy.glob("model-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert f"{shard} is truncated or damaged" in refusal(copy)
    shard.unlink()
    assert f"{shard} is missing" in refusal(copy)
    (copy / "model.safetensors.index.json").write_text("{")
    assert "must be a JSON document with a weight_map" in refusal(copy)
    for path in copy.glob("model*"):
        path.unlink()
    assert "needs weights" in refusal(copy)


@pytest.mark.parametrize("name", ["one pickle", "plain llava, old pickles"])
def test_truncated_pickles(built, tmp_path: Path, name: str) -> None:
    shutil.copytree(built(name)[0].parent, tmp_path / "runs")
    folder = tmp_path / "runs" / "checkpoint"
    weights = sorted(folder.glob("pytorch_model*.bin"))[0]
    weights.write_bytes(weights.read_bytes()[:-2000])
    sentence = refusal(folder)
    assert str(weights) in sentence
    assert "truncated or damaged" in sentence or "damaged or wants to run code" in sentence


@pytest.mark.parametrize("file", ["pytorch_model.bin", "mm_projector.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused(built, tmp_path: Path, file: str, zipped: bool) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    shutil.copytree(built("one pickle")[0].parent, tmp_path / "runs")
    folder = tmp_path / "runs" / "checkpoint"
    if zipped:
        torch.save({"model.embed_tokens.weight": Attack()}, folder / file)
        assert "wants to run code" in refusal(folder)
    else:
        (folder / file).write_bytes(pickle.dumps({"model.embed_tokens.weight": Attack()}))
        with pytest.warns(UserWarning, match="pickle protocol"):
            assert "wants to run code" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_missing_tokenizer_and_unknown_device(copy: Path) -> None:
    assert "dtype must be one of" in refusal(copy, dtype="int4")
    (copy / "tokenizer.model").write_bytes(b"nonsense")
    assert "needs its tokenizer files" in refusal(copy)


def test_a_stray_weight_is_not_ignored(copy: Path) -> None:
    from safetensors.torch import save_file

    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.vision_resampler.query"] = "extra.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"model.vision_resampler.query": torch.zeros(2)}, copy / "extra.safetensors")
    assert "'model.language_model.vision_resampler.query', which has none" in refusal(copy)
