"""`visual-heads convert`: equal logits, plain transformers, memory, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints import convert as converting
from lmms_visual_heads.checkpoints.conversations import CONVERSATIONS, IMAGE
from lmms_visual_heads.checkpoints.convert import convert_checkpoint
from lmms_visual_heads.cli import main
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.original import original_checkpoint
from tests.builders.paths import ROOT
from tests.builders.tiny import QUESTION, noise_image
from tests.checkpoints.test_original_oracle import ORACLE

COMMAND = [sys.executable, "-c", "from lmms_visual_heads.cli import main; main()", "convert"]
VARIANTS: dict[str, dict[str, Any]] = {
    "vicuna": {"weights": "bin", "projector_beside": True},
    "half precision": {"dtype": torch.float16, "kv_heads": 2},
    "1.6": {"style": "anyres", "tower": "inside"},
    "vip": {"style": "vip", "weights": "old bin"},
    "phi-3": {"model_type": "llava_phi3", "extra_rows": 5},
    "llama-3": {"llama_3": True, "kv_heads": 2, "rope_theta": 1e4},
    "square": {"style": "square", "shards": 1},
}


def siblings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", VARIANTS)
def test_both_formats_give_the_same(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder, **VARIANTS[name])
    done = convert_checkpoint(folder, tmp_path / "hf" / "converted")
    assert done.largest_difference < 1e-3
    original = load_model(folder, device="cpu")
    converted = load_model(done.destination, device="cpu")
    assert converted.description["format"] == "huggingface"
    assert converted.end_token_ids == original.end_token_ids
    for size in ((56, 56), (90, 50), (40, 130)):
        images = [noise_image(*size)]
        encoded = [model.encode(QUESTION, images) for model in (original, converted)]
        assert torch.equal(encoded[0].input_ids, encoded[1].input_ids)
        assert encoded[0].prompt.replace(f"{IMAGE}\n", f"{IMAGE} \n") == encoded[1].prompt.replace(
            f"{IMAGE}\n", f"{IMAGE} \n"
        )
        assert torch.equal(encoded[0].inputs["pixel_values"], encoded[1].inputs["pixel_values"])
        for query in ("first_generated", "last_prompt"):
            one, other = (
                model.generate([one], query=query, max_new_tokens=4)[0]
                for model, one in zip((original, converted), encoded, strict=True)
            )
            assert one.token_ids == other.token_ids
            torch.testing.assert_close(one.rows, other.rows, atol=1e-5, rtol=0)
    assert siblings(tmp_path / "hf") == ["converted"]
    assert not list(done.destination.glob("part-*"))


def test_plain_transformers_reads_it(tmp_path: Path) -> None:
    """Published weight names, an index, the chat template; nothing of ours is needed."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder, kv_heads=2)
    done = convert_checkpoint(str(folder), tmp_path / "hf")
    index = json.loads((done.destination / "model.safetensors.index.json").read_text())
    assert {
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.bias",
    } <= set(index["weight_map"])
    assert sorted({*index["weight_map"].values()}) == sorted(
        path.name for path in done.destination.glob("*.safetensors")
    )
    assert index["metadata"]["total_size"] == done.bytes
    model = AutoModelForImageTextToText.from_pretrained(done.destination)
    processor = AutoProcessor.from_pretrained(done.destination, backend="pil")
    image = noise_image(90, 50)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, images=[image], return_tensors="pt")
    encoded = load_model(folder, device="cpu").encode(QUESTION, [image])
    assert torch.equal(inputs["input_ids"], encoded.inputs["input_ids"])
    with torch.inference_mode():
        found = model(**inputs).logits
        expected = load_model(folder, device="cpu").model(**encoded.inputs).logits
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected, atol=1e-4, rtol=0)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert int(generated.max()) <= model.config.image_token_id


@pytest.mark.parametrize("name", ["v1", "mistral_instruct", "llava_phi_3", "llava_llama_3", "plain", "chatml_direct"])
def test_chat_templates_say_what_conversations_say(name: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    conversation = CONVERSATIONS[name]
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        conversation.chat_template(IMAGE)
    )
    typed = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": 'Is it "red"?\n{{x}}'}]}
    assert template.render(messages=[typed]) == conversation.prompt('<image>\nIs it "red"?\n{{x}}')
    answer = {"role": "assistant", "content": "yes"}
    assert template.render(messages=[{"role": "user", "content": "Why?"}, answer]) == conversation.prompt("Why?", "yes")


@pytest.mark.skipif(not ORACLE.is_dir(), reason="../shared/oracle is missing")
def test_the_oracles_checkpoints_convert(tmp_path: Path) -> None:
    name = "llava-v1.6-mistral-tiny-7b"
    done = convert_checkpoint(ORACLE / "ckpts" / name, tmp_path / name)
    assert done.largest_difference < 1e-2
    assert load_model(done.destination, device="cpu").description["architecture"] == "LlavaNextForConditionalGeneration"


def test_refusals(tmp_path: Path, tiny) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder)
    with pytest.raises(VisualHeadsError, match="takes a checkpoint in the original llava format"):
        convert_checkpoint(tiny("llava-llama"), tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(VisualHeadsError, match="exists and is not empty"):
        convert_checkpoint(folder, tmp_path / "full")
    with pytest.raises(VisualHeadsError, match="exists and is not empty"):
        convert_checkpoint(folder, tmp_path / "full" / "file")
    with pytest.raises(VisualHeadsError, match="cannot be made"):
        convert_checkpoint(folder, tmp_path / "full" / "file" / "new")
    with pytest.raises(VisualHeadsError, match="conversation must be one of"):
        convert_checkpoint(folder, tmp_path / "hf", conversation="nobody")
    (tmp_path / "empty").mkdir()
    assert (
        convert_checkpoint(folder, tmp_path / "empty", conversation="llava_v1").description["conversation"]
        == "llava_v1"
    )
    assert "curious human" in load_model(tmp_path / "empty", device="cpu").prompt("What?", 1)
    assert siblings(tmp_path) == ["empty", "full", "runs"]


def test_a_disk_that_is_too_small_is_found_before_writing(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(VisualHeadsError, match=r"needs about .* GB beside it"):
        convert_checkpoint(folder, tmp_path / "hf")
    assert siblings(tmp_path) == ["runs"]


@pytest.mark.parametrize("failure", ["truncated", "missing weight", "proof", "interrupt", "disk"])
def test_nothing_half_converted_is_left(tmp_path: Path, monkeypatch, failure: str) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder)
    expected: type[BaseException] = VisualHeadsError
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    if failure == "truncated":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif failure == "missing weight":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    elif failure == "proof":
        logits = iter([torch.zeros(4), torch.ones(4)])
        monkeypatch.setattr(converting, "_logits", lambda *args: next(logits))
    else:
        expected = KeyboardInterrupt if failure == "interrupt" else VisualHeadsError

        def fail(*args: object) -> None:
            raise KeyboardInterrupt if failure == "interrupt" else OSError(28, "No space left on device")

        monkeypatch.setattr(converting, "write_shard", fail)
    with pytest.raises(expected):
        convert_checkpoint(folder, tmp_path / "hf")
    assert siblings(tmp_path) == ["runs"]


def test_the_command_and_ctrl_c(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(folder), str(tmp_path / "hf")])
    assert ended.value.code in (0, None)
    assert "conversation v1; logits equal the original's to" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["convert", str(folder), str(tmp_path / "hf")])
    assert "exists and is not empty" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "hf")
    with subprocess.Popen([*COMMAND, folder, tmp_path / "hf"], stderr=subprocess.PIPE, text=True) as stopped:
        while not list(tmp_path.glob(".hf.converting-*")):
            assert stopped.poll() is None
            time.sleep(0.005)
        stopped.send_signal(signal.SIGINT)
        _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "nothing was left at the destination" in errors
    assert siblings(tmp_path) == ["runs"]


MEASURE = """
import sys, threading, time
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from lmms_visual_heads.checkpoints import convert as converting, loading, original
peak, phase = {"writing": 0, "proof": 0}, ["start"]
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("Private_Dirty", "Swap:"))) * 1024
def watch():
    while phase[0] != "done":
        name = phase[0]
        if name in peak:
            peak[name] = max(peak[name], private())
        time.sleep(0.01)
def report(step, done, total):
    phase[0] = step.split()[0].rstrip(":")
import transformers.models.llava.modeling_llava, transformers.models.clip.modeling_clip
base = private()
thread = threading.Thread(target=watch, daemon=True); thread.start()
converting.convert_checkpoint(sys.argv[1], sys.argv[2], progress=report)
phase[0] = "done"; thread.join()
print(base, peak["writing"], peak["proof"])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="private memory is read from Linux's /proc")
def test_memory_of_writing_and_of_the_proof(tmp_path: Path) -> None:
    """At most 1.2 times the largest shard beside the model in its stored dtype; writing alone needs no model at all.

    Pickles of the old kind are the worst case: they cannot be mapped.
    """
    folder = tmp_path / "runs" / "checkpoint"
    original_checkpoint(folder, hidden=1024, layers=8, shards=4, weights="old bin", dtype=torch.float16)
    sizes = [path.stat().st_size for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, tmp_path / "hf", ROOT],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    base, writing, proof = map(int, done.stdout.split())
    slack = 24 * 2**20  # what importing and running transformers itself takes
    assert writing - base < 1.2 * max(sizes) + slack
    assert proof - base < sum(sizes) + 1.2 * max(sizes) + slack


def test_a_square_image_is_not_the_whole_proof() -> None:
    width, height = converting._example().size
    assert width != height
    assert isinstance(converting._example(), Image.Image)
