"""Prompts, positions and limits of one encoded document."""

from __future__ import annotations

import ast
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints.encoding import VICUNA_TEMPLATE
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.tiny import QUESTION, noise_image, tiny_checkpoint


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny("llava-llama"), device="cpu")


@pytest.fixture(scope="module")
def anyres(tiny):
    return load_model(tiny("llavanext-llama"), device="cpu")


def test_positions_of_one_image(model) -> None:
    encoded = model.encode(QUESTION, [noise_image()])
    assert (encoded.input_ids == model.image_token_id).nonzero()[:, 0].tolist() == encoded.visual_positions.tolist()
    assert len(encoded.visual_positions) == 16
    assert torch.equal(encoded.patch_positions, encoded.visual_positions)
    assert encoded.base_positions is None
    assert encoded.sink_positions.tolist() == [0]
    assert encoded.prompt == "USER: <image>\nHow many of these are there? Answer with a number. ASSISTANT:"
    assert encoded.image_sizes == ((56, 56),)
    assert len(encoded) == encoded.inputs["input_ids"].shape[1] == encoded.inputs["attention_mask"].sum()


def test_positions_with_tiles_and_newlines(anyres) -> None:
    encoded = anyres.encode(QUESTION, [noise_image(112, 112)])
    assert len(encoded.visual_positions) == 16 + 64 + 8
    assert len(encoded.patch_positions) == 16 + 64
    assert torch.equal(encoded.base_positions, encoded.visual_positions[:16])
    newlines = encoded.visual_positions[~torch.isin(encoded.visual_positions, encoded.patch_positions)]
    assert torch.equal(newlines, encoded.visual_positions[16:][8::9])


def test_newline_positions_hold_the_newline_embedding(anyres) -> None:
    """What the model itself scatters to those positions is its newline embedding, and nowhere else."""
    image = noise_image(150, 60)
    encoded = anyres.encode(QUESTION, [image])
    seen = {}

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen["embeddings"] = kwargs["inputs_embeds"][0]

    hook = anyres.model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.inference_mode():
        anyres.model(**encoded.inputs)
    hook.remove()
    same = (seen["embeddings"] == anyres.model.model.image_newline).all(-1).nonzero()[:, 0]
    newlines = encoded.visual_positions[~torch.isin(encoded.visual_positions, encoded.patch_positions)]
    assert len(newlines)
    assert torch.equal(same, newlines)


def test_a_kept_class_token_is_visual_but_no_patch(tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llava-llama"), tmp_path / "full"))
    for name in ("config.json", "processor_config.json"):
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, "vision_feature_select_strategy": "full"}))
    rows = load_model(folder, device="cpu").attention_rows(noise_image(), QUESTION, boxes=[(0, 0, 14, 14)])
    assert len(rows.visual_positions) == 17
    assert torch.equal(rows.patch_positions, rows.visual_positions[1:])
    assert torch.equal(rows.region_positions, rows.visual_positions[1:2])


def test_several_images_and_none(model, anyres) -> None:
    two = model.encode(QUESTION, [noise_image(), noise_image(90, 50)])
    assert two.n_images == 2
    assert len(two.visual_positions) == 32
    none = model.encode(QUESTION, [])
    assert none.n_images == 0
    assert len(none.visual_positions) == len(none.patch_positions) == 0
    assert "pixel_values" not in none.inputs
    mixed = anyres.encode(QUESTION, [noise_image(112, 112), noise_image(50, 90)])
    expected = sum(anyres.encoder.layout(size).n_tokens for size in ((112, 112), (90, 50)))
    assert len(mixed.visual_positions) == expected


def test_placeholders_in_the_text_stay_where_they_are(model) -> None:
    encoded = model.encode("First <image> then <image>: which?", [noise_image(), noise_image(seed=1)])
    assert encoded.prompt == "USER: First <image> then <image>: which? ASSISTANT:"
    gaps = encoded.visual_positions.diff()
    assert int((gaps > 1).sum()) == 1
    with pytest.raises(VisualHeadsError, match="one <image> per image; got 1 for 2 images"):
        model.encode("Look: <image>", [noise_image(), noise_image()])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1", "LA"])
def test_other_image_modes(model, mode: str) -> None:
    image = Image.new("I;16", (30, 40)) if mode == "I;16" else noise_image(30, 40).convert(mode)
    assert len(model.encode(QUESTION, [image]).visual_positions) == 16


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_extreme_image_sizes(model, anyres, size: tuple[int, int]) -> None:
    for one in (model, anyres):
        encoded = one.encode(QUESTION, [noise_image(*size)])
        assert one.generate([encoded], query="last_prompt", max_new_tokens=1)[0].rows is not None


def test_a_prompt_that_is_too_long_is_refused_never_truncated(tiny, tmp_path: Path) -> None:
    short = load_model(tiny_checkpoint("llava-llama", tmp_path / "short", max_position_embeddings=60), device="cpu")
    assert short.max_positions == 60
    assert len(short.encode(QUESTION, [noise_image()])) < 60
    with pytest.raises(
        VisualHeadsError, match=r"fit the model's 60 positions; this prompt has \d+ tokens.*never trunc"
    ):
        short.encode(QUESTION + " 0" * 40, [noise_image()])


def test_double_bos_is_two_sinks(tmp_path: Path) -> None:
    doubled = load_model(tiny_checkpoint("llava-llama3", tmp_path / "llama3", double_bos=True), device="cpu")
    encoded = doubled.encode(QUESTION, [noise_image()])
    assert encoded.input_ids[:2].tolist() == [doubled.tokenizer.bos_token_id] * 2
    assert encoded.sink_positions.tolist() == [0, 1]


def test_no_chat_template_means_the_familys_default(tmp_path: Path) -> None:
    plain = load_model(tiny_checkpoint("llava-llama", tmp_path / "plain", chat_template=None), device="cpu")
    assert plain.prompt("What?", 1) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the user's questions. USER: <image>\nWhat? ASSISTANT:"
    )
    assert plain.prompt("What?", 2).count("<image> <image>\nWhat?") == 1


def test_default_template_is_that_of_lmms_evals_wrapper() -> None:
    """Read from the source file: importing lmms-eval's models takes many seconds."""
    found = find_spec("lmms_eval")
    if found is None or found.origin is None:
        pytest.skip("lmms-eval is not installed")
    source = (Path(found.origin).parent / "models" / "simple" / "llava_hf.py").read_text()
    line = next(line for line in source.splitlines() if line.startswith("VICUNA_CHAT_TEMPLATE = "))
    assert ast.literal_eval(line.partition(" = ")[2]) == VICUNA_TEMPLATE


PUBLISHED = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
STRINGS_ONLY = (
    "{% for m in messages %}{% if m['role']=='user' %}[INST] {{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }}</s>{% endif %}{% endfor %}"
)


def test_templates_of_typed_parts_and_of_strings(tmp_path: Path) -> None:
    typed = load_model(tiny_checkpoint("llava-llama", tmp_path / "typed", chat_template=PUBLISHED), device="cpu")
    assert typed.prompt("What is it?", 1) == "USER: <image>\nWhat is it? ASSISTANT:"
    assert typed.encoder.prompt("What is it?", 1, answer="a cat") == "USER: <image>\nWhat is it? ASSISTANT: a cat "
    strings = load_model(tiny_checkpoint("llava-llama", tmp_path / "strings", chat_template=STRINGS_ONLY), device="cpu")
    assert strings.prompt("What is it?", 1) == "[INST] <image>\nWhat is it? [/INST]"
    assert strings.prompt("What is it?", 0) == "[INST] What is it? [/INST]"
    assert strings.prompt("Here <image> what?", 1) == "[INST] Here <image> what? [/INST]"
    assert strings.encoder.prompt("What?", 1, answer="a cat") == "[INST] <image>\nWhat? [/INST] a cat</s>"
    broken = load_model(tiny_checkpoint("llava-llama", tmp_path / "broken", chat_template="Hello!"), device="cpu")
    with pytest.raises(VisualHeadsError, match="chat template must keep the question and one <image> per image"):
        broken.prompt("What is it?", 1)
