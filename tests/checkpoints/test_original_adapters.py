"""LoRA adapters and folders that are not whole: model_base=, non_lora_trainables.bin, peft=, checkpoint-* folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmms_visual_heads import load_model
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.original import original_checkpoint
from tests.builders.tiny import QUESTION, noise_image

RANK, ALPHA = 4, 8


def adapter(
    folder: Path, layers: dict[str, tuple[int, int]], prefix: str = "base_model.model.", **changes: Any
) -> dict:
    """Write a random adapter; returns layer -> change of its weight."""
    folder.mkdir(exist_ok=True, parents=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(1)
    weights, deltas = {}, {}
    for layer, (rows, columns) in layers.items():
        down = torch.randn(RANK, columns, generator=generator) * 0.2
        up = torch.randn(rows, RANK, generator=generator) * 0.2
        weights |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
        deltas[layer] = up @ down * (ALPHA / RANK)
    save_file(weights, folder / "adapter_model.safetensors")
    return deltas


def rows(model: Any) -> torch.Tensor:
    return model.attention_rows(noise_image(90, 50), QUESTION).values


LAYERS = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 128)}


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Path, Path, Any]:
    """An original LoRA folder and its base: a language model without projector and tower; and what they make together."""
    whole = tmp_path / "runs" / "checkpoint"
    original_checkpoint(whole, shards=1)
    weights = load_file(whole / "model.safetensors")
    projector = {name: tensor for name, tensor in weights.items() if "mm_projector" in name}
    base = Path(shutil.copytree(whole, tmp_path / "runs" / "vicuna"))
    save_file({n: t for n, t in weights.items() if n not in projector}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    folder = tmp_path / "runs" / "lora"
    deltas = adapter(folder, LAYERS)
    shutil.copy(whole / "config.json", folder)
    torch.save({f"base_model.model.{name}": t for name, t in projector.items()}, folder / "non_lora_trainables.bin")
    for layer, delta in deltas.items():
        weights[f"{layer}.weight"] += delta
    save_file(weights, whole / "model.safetensors")
    return folder, base, load_model(whole, device="cpu")


def test_an_original_lora_folder_with_its_base(lora) -> None:
    folder, base, merged = lora
    model = load_model(folder, device="cpu", model_base=base)
    torch.testing.assert_close(rows(model), rows(merged), atol=1e-5, rtol=0)
    with pytest.raises(VisualHeadsError, match="or give model_base= where the folder holds an adapter only"):
        load_model(folder, device="cpu")
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(VisualHeadsError, match=r"holds non_lora_trainables\.bin"):
        load_model(folder, device="cpu", model_base=base)


def test_a_projector_folder_with_its_base(lora) -> None:
    folder, base, _ = lora
    (folder / "adapter_config.json").unlink()
    projector = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    (folder / "non_lora_trainables.bin").unlink()
    torch.save(
        {name.removeprefix("base_model.model."): t for name, t in projector.items()}, folder / "mm_projector.bin"
    )
    model = load_model(folder, device="cpu", model_base=base)
    assert torch.equal(model.model.model.multi_modal_projector.linear_1.weight, next(iter(
        tensor for name, tensor in projector.items() if name.endswith("mm_projector.0.weight")
    )))  # fmt: skip


def test_peft_on_both_formats(tiny, tmp_path: Path, lora) -> None:
    folder = tiny("llava-llama")
    names = {
        "model.language_model.layers.0.self_attn.q_proj": "model.language_model.layers.0.self_attn.q_proj",
        "language_model.model.layers.1.mlp.down_proj": "model.language_model.layers.1.mlp.down_proj",
    }
    shapes = dict(zip(names, ((64, 64), (64, 96)), strict=True))
    deltas = adapter(tmp_path / "adapter", shapes, base_model_name_or_path=str(folder))
    plain = load_model(folder, device="cpu")
    adapted = load_model(folder, device="cpu", peft=tmp_path / "adapter")
    assert adapted.description["peft_layers"] == 2
    for name, now in names.items():
        changed = adapted.model.get_parameter(now + ".weight") - plain.model.get_parameter(now + ".weight")
        torch.testing.assert_close(changed, deltas[name], atol=1e-6, rtol=0)
    alone = load_model(tmp_path / "adapter", device="cpu")
    assert alone.name.endswith("adapter")
    assert torch.equal(rows(alone), rows(adapted))
    original, _, merged = lora
    base = original.parent / "checkpoint"
    weights = load_file(base / "model.safetensors")
    for layer, delta in adapter(tmp_path / "second", LAYERS, prefix="base_model.model.").items():
        weights[f"{layer}.weight"] -= delta
    save_file(weights, base / "model.safetensors")
    torch.testing.assert_close(
        rows(load_model(base, device="cpu", peft=tmp_path / "second")), rows(merged), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "must be a plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights 'loftq'"),
        ({"corda_config": {"corda_method": "kpm"}}, "corda_config"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"use_qalora": True}, "use_qalora True"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"invented_next_year": 0.5}, "invented_next_year 0.5"),
        ({"peft_type": None}, "must say its peft_type"),
        ({"r": "4"}, "rank r of at least 1"),
        ({"lora_alpha": None}, "number lora_alpha"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern"),
        ({"r": 3}, "must fit its config"),
    ],
)
def test_adapters_that_are_refused(tiny, tmp_path: Path, changes: dict, words: str) -> None:
    adapter(tmp_path / "adapter", {"model.language_model.layers.0.self_attn.q_proj": (64, 64)}, **changes)
    with pytest.raises(VisualHeadsError, match=words):
        load_model(tiny("llava-llama"), device="cpu", peft=tmp_path / "adapter")


def test_tensors_that_are_no_pair_are_refused(tiny, tmp_path: Path) -> None:
    for extra in ("model.layers.0.self_attn.q_proj.lora_B.bias", "model.layers.1.self_attn.q_proj.lora_A.weight"):
        folder = tmp_path / extra.rsplit(".", 1)[1]
        adapter(folder, {"model.language_model.layers.0.self_attn.q_proj": (64, 64)})
        weights = load_file(folder / "adapter_model.safetensors") | {f"base_model.model.{extra}": torch.ones(RANK, 64)}
        save_file(weights, folder / "adapter_model.safetensors")
        with pytest.raises(VisualHeadsError, match="pairs of lora_A and lora_B matrices and nothing else"):
            load_model(tiny("llava-llama"), device="cpu", peft=folder)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "pissa"}, {"lora_bias": True},
     {"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"init_lora_weights": "olora"}],
    ids=str,
)  # fmt: skip
def test_what_peft_itself_wrote_is_merged_as_peft_does_or_refused(tiny, tmp_path: Path, settings: dict) -> None:
    peft = pytest.importorskip("peft")
    base = tiny("llava-llama")

    def fresh() -> Any:
        return load_model(base, device="cpu").model

    torch.manual_seed(0)
    places = r".*vision_tower.*\.q_proj" if "lora_bias" in settings else r".*language_model.*\.(q_proj|down_proj)"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=places, **settings)
    adapted = peft.get_peft_model(fresh(), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    truth = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapter").merge_and_unload().state_dict()
    changes_more = set(settings) - {"use_rslora"} and settings.get("init_lora_weights") != "gaussian"
    if changes_more:
        with pytest.raises(VisualHeadsError, match="|".join(settings)):
            load_model(base, device="cpu", peft=tmp_path / "adapter")
        return
    ours = load_model(base, device="cpu", peft=tmp_path / "adapter").model.state_dict()
    largest = max(float((ours[name] - truth[name]).abs().max()) for name in truth)
    assert largest < 1e-5


def test_damaged_and_foreign_adapters(tiny, tmp_path: Path) -> None:
    folder = tiny("llava-llama")

    def refusal(source: object = folder, **settings: object) -> str:
        with pytest.raises(VisualHeadsError) as caught:
            load_model(source, device="cpu", **settings)
        return str(caught.value)

    assert "peft= must name a folder or a hub id" in refusal(peft="nobody/no-such-adapter")
    (tmp_path / "nothing").mkdir()
    assert "An adapter needs adapter_config.json" in refusal(peft=tmp_path / "nothing")
    adapter(tmp_path / "foreign", {"model.layers.7.self_attn.q_proj": (64, 64)})
    assert "must be in its base model" in refusal(peft=tmp_path / "foreign")
    adapter(tmp_path / "wide", {"model.layers.0.self_attn.q_proj": (64, 32)})
    assert "must fit" in refusal(peft=tmp_path / "wide")
    assert "does not name it. Give model_base=" in refusal(tmp_path / "wide")
    save_file({"base_model.model.lm_head.weight": torch.zeros(2)}, tmp_path / "wide" / "adapter_model.safetensors")
    assert "base_model.model.lm_head.weight" in refusal(peft=tmp_path / "wide")
    (tmp_path / "wide" / "adapter_model.safetensors").unlink()
    assert "is missing" in refusal(peft=tmp_path / "wide")


def test_a_checkpoint_folder_without_a_processor(tiny, tmp_path: Path) -> None:
    folder = tiny("llava-llama")
    step = Path(shutil.copytree(folder, tmp_path / "run" / "checkpoint-100"))
    for path in step.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(VisualHeadsError, match="needs its processor and tokenizer files"):
        load_model(step, device="cpu")
    assert torch.equal(rows(load_model(step, device="cpu", model_base=folder)), rows(load_model(folder, device="cpu")))


@pytest.mark.parametrize("lacking", ["*processor*", "tokenizer*"])
def test_a_checkpoint_folder_without_a_part_of_its_processor(tiny, tmp_path: Path, lacking: str) -> None:
    folder = tiny("llava-llama")
    step = Path(shutil.copytree(folder, tmp_path / "run" / "checkpoint-100"))
    for path in step.glob(lacking):
        path.unlink()
    with pytest.raises(VisualHeadsError, match="or give model_base="):
        load_model(step, device="cpu")
    assert torch.equal(rows(load_model(step, device="cpu", model_base=folder)), rows(load_model(folder, device="cpu")))


def test_an_original_checkpoint_folder_without_a_tokenizer(tmp_path: Path) -> None:
    whole = tmp_path / "runs" / "checkpoint"
    original_checkpoint(whole)
    step = Path(shutil.copytree(whole, tmp_path / "runs" / "checkpoint-100"))
    for path in step.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(VisualHeadsError, match="needs its tokenizer files"):
        load_model(step, device="cpu")
    model = load_model(step, device="cpu", model_base=whole)
    assert torch.equal(rows(model), rows(load_model(whole, device="cpu")))
