"""Loading: what a loaded checkpoint says about itself, mended processors, and the words of every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints.loading import check_is_llava
from lmms_visual_heads.checkpoints.settings import choose_dtype
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.tiny import KINDS, QUESTION, noise_image, tiny_checkpoint


@pytest.fixture
def copy(tiny, tmp_path: Path) -> Path:
    """A checkpoint's folder that a test may damage."""
    return Path(shutil.copytree(tiny("llava-llama"), tmp_path / "runs" / "copy"))


def edit(path: Path, **changes: object) -> None:
    """Set fields of a JSON file; None removes a field."""
    document = json.loads(path.read_text())
    document = {name: value for name, value in {**document, **changes}.items() if value is not None}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_describes_itself(tiny, kind: str) -> None:
    model = load_model(str(tiny(kind)), device="cpu")
    assert (model.n_layers, model.n_heads, model.max_positions) == (3, 4, 2048)
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"
    assert not model.model.training
    description = json.loads(json.dumps(model.description))
    assert description["name"] == model.name == "/".join(tiny(kind).parts[-2:])
    assert description["architecture"].endswith("ForConditionalGeneration")
    assert description["format"] == "huggingface"
    assert (description["layers"], description["heads"], description["dtype"]) == (3, 4, "float32")
    assert description["image_processor"].endswith("Pil (pil)")
    text = sum(p.numel() for p in model.model.model.language_model.parameters())
    assert description["language_model_parameters"] == text + model.model.lm_head.weight.numel()
    assert "3 layers x 4 heads" in repr(model)


def test_names_and_dtypes(tiny) -> None:
    folder = tiny("llava-llama")
    assert load_model(folder, device="cpu", model_name="mine").name == "mine"
    assert load_model(folder, device="cpu", model_name="mine").description["name"] == "mine"
    assert load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(folder, device="cpu", dtype=torch.float16).dtype == torch.float16
    assert load_model(folder, device="cpu", dtype="auto").dtype == torch.float32


def test_bf16_answers_and_float32_rows(tiny) -> None:
    model = load_model(tiny("llava-llama3"), device="cpu", dtype="bfloat16")
    rows = model.attention_rows(noise_image(), QUESTION)
    assert rows.values.dtype == torch.float32
    torch.testing.assert_close(rows.values.sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-mistral", "vipllava-llama"])
def test_missing_processor_fields_follow_from_the_model(tiny, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(tiny(kind), tmp_path / kind))
    edit(
        folder / "processor_config.json",
        patch_size=None,
        vision_feature_select_strategy=None,
        num_additional_image_tokens=None,
    )
    whole, mended = load_model(tiny(kind), device="cpu"), load_model(folder, device="cpu")
    images = [noise_image(80, 60)]
    assert torch.equal(whole.encode(QUESTION, images).input_ids, mended.encode(QUESTION, images).input_ids)
    rows = [m.attention_rows(images[0], QUESTION).values for m in (whole, mended)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("fields", ["none", "flat"])
@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-mistral", "vipllava-llama"])
def test_processor_files_as_published_repositories_have_them(tiny, tmp_path: Path, kind: str, fields: str) -> None:
    """preprocessor_config.json and chat_template.json, with a flat processor_config.json or none."""
    folder = Path(shutil.copytree(tiny(kind), tmp_path / "published"))
    processor = json.loads((folder / "processor_config.json").read_text())
    images = {name: value for name, value in processor.pop("image_processor").items() if value is not None}
    images["processor_class"] = processor["processor_class"]
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "chat_template.jinja").unlink()
    if fields == "flat":
        (folder / "processor_config.json").write_text(json.dumps({**processor, "image_token": "<image>"}))
    else:
        (folder / "processor_config.json").unlink()
    published, model = load_model(folder, device="cpu"), load_model(tiny(kind), device="cpu")
    image = noise_image(60, 90)
    assert published.prompt(QUESTION, 1) == model.prompt(QUESTION, 1)
    assert torch.equal(published.attention_rows(image, QUESTION).values, model.attention_rows(image, QUESTION).values)
    assert published.description["image_processor"] == model.description["image_processor"]


def test_bin_weights_and_shards(tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tiny("llava-llama3")
    whole = load_model(folder, device="cpu")
    shards = Path(shutil.copytree(folder, tmp_path / "shards"))
    (shards / "model.safetensors").unlink()
    whole.model.save_pretrained(shards, max_shard_size="200KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    pickled = Path(shutil.copytree(folder, tmp_path / "bin"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    expected = whole.attention_rows(noise_image(), QUESTION).values
    for copied in (shards, pickled):
        loaded = load_model(copied, device="cpu")
        pairs = zip(loaded.model.named_parameters(), whole.model.named_parameters(), strict=True)
        assert all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)
        # Products may differ in the last bits with where the weights lie in memory.
        torch.testing.assert_close(
            loaded.attention_rows(noise_image(), QUESTION).values, expected, atol=1e-5, rtol=1e-5
        )
    next(shards.glob("model-00002-*.safetensors")).unlink()
    assert "weight files must be whole" in refusal(shards)


def test_a_stored_generation_config_brings_no_sampling_and_no_warnings(copy: Path, caplog) -> None:
    """Llama-3's says do_sample and a temperature; others say max_length."""
    expected = load_model(copy, device="cpu").attention_rows(noise_image(), QUESTION, max_new_tokens=5).answer_ids
    edit(copy / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.9, max_length=4096)
    model = load_model(copy, device="cpu")
    caplog.clear()
    assert model.attention_rows(noise_image(), QUESTION, max_new_tokens=5).answer_ids == expected
    assert not caplog.records


def test_dtype_defaults() -> None:
    assert choose_dtype(None, torch.device("cuda")) == torch.bfloat16
    assert choose_dtype(None, torch.device("cpu")) == torch.float32


def test_image_backend_is_pil_whatever_the_file_says(copy: Path) -> None:
    path = copy / "processor_config.json"
    document = json.loads(path.read_text())
    document["image_processor"]["image_processor_type"] = "CLIPImageProcessorFast"
    path.write_text(json.dumps(document))
    assert load_model(copy, device="cpu").description["image_processor"] == "CLIPImageProcessorPil (pil)"


def refusal(source: object, **settings: object) -> str:
    with pytest.raises(VisualHeadsError) as caught:
        load_model(source, **{"device": "cpu", **settings})
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_no_such_checkpoint(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "model")
    hub = refusal("nobody/no-such-model", revision="v9")
    assert "No such checkpoint: nobody/no-such-model is no folder here" in hub
    assert "at revision v9" in hub
    assert "is empty" in refusal("  ")
    assert "needs config.json" in refusal(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "is a file" in refusal(tmp_path / "weights.bin")


def test_unsupported_models_are_named(copy: Path) -> None:
    check_is_llava(copy)
    edit(copy / "config.json", model_type="my_own_kind")
    assert "model_type 'my_own_kind'" in refusal(copy)
    edit(copy / "config.json", model_type="llama")
    assert "model_type 'llama', which is none" in refusal(copy)
    edit(copy / "config.json", model_type="llava_mpt", mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert "Of the original llava format" in refusal(copy)


def test_what_visual_heads_llava_does_not_read_is_named(copy: Path) -> None:
    edit(copy / "config.json", model_type="qwen2_vl")
    with pytest.raises(VisualHeadsError) as caught:
        check_is_llava(copy)
    assert "LLaVA-1.5 (llava), LLaVA-NeXT (llava_next) and ViP-LLaVA (vipllava)" in str(caught.value)
    assert "model_type 'qwen2_vl'. Give one of these, or read it with --model visual_heads_hf" in str(caught.value)
    vision = json.loads((copy / "config.json").read_text())["vision_config"]
    edit(copy / "config.json", model_type="llava", vision_config={**vision, "model_type": "pixtral"})
    with pytest.raises(VisualHeadsError, match="vision tower must be one of clip_vision_model, siglip_vision_model"):
        check_is_llava(copy)


def test_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    assert "must be a JSON document" in refusal(copy)
    (copy / "config.json").write_text("[]")
    assert "must be a JSON object" in refusal(copy)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_weights(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "weight files must be whole" in refusal(copy)


def test_missing_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "weight files must be whole" in refusal(copy)


def test_a_weight_that_is_not_there_is_never_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name)
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "must hold every weight of its model" in refusal(copy)


def test_weights_of_other_shapes(copy: Path) -> None:
    document = json.loads((copy / "config.json").read_text())
    document["text_config"]["intermediate_size"] = 128
    (copy / "config.json").write_text(json.dumps(document))
    assert "weight files must be whole and fit its config.json" in refusal(copy)


def test_a_pickle_that_wants_to_run_code_is_refused(copy: Path) -> None:
    import pickle

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (copy / "ran",))

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Attack()}))
    with pytest.warns(UserWarning, match="pickle protocol"):
        assert "wants to run code" in refusal(copy)
    assert not (copy / "ran").exists()


def test_missing_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    assert "needs its processor and tokenizer files" in refusal(copy)


def test_settings_are_checked(tiny) -> None:
    folder = tiny("llava-llama")
    assert "dtype must be one of float32, float16, bfloat16 or auto; got 'int4'" in refusal(folder, dtype="int4")
    assert "device must be a torch device" in refusal(folder, device="gpu-please")
    assert "conversation= names a template of the original llava format" in refusal(folder, conversation="v1")
    if not torch.cuda.is_available():
        assert "torch sees 0" in refusal(folder, device="cuda")


def test_no_end_token(tmp_path: Path) -> None:
    folder = tiny_checkpoint("llava-llama", tmp_path / "endless")
    model = load_model(folder, device="cpu")
    assert model.end_token_ids == (model.tokenizer.eos_token_id,)
    edit(folder / "generation_config.json", eos_token_id=[7, 9])
    assert load_model(folder, device="cpu").end_token_ids == (7, 9, model.tokenizer.eos_token_id)
