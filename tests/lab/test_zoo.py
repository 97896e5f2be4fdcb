"""The small checkpoints: their vocabulary, their packed training, going on after a stop, and what the shipped ones can do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor
from typer.testing import CliRunner

from lab.measure.shipped import BENCHMARK_PROMPTS
from lab.zoo import labels as labels_of
from lab.zoo import lessons, packing, shipping, tower
from lab.zoo.model import build_model
from lab.zoo.scoring import accuracies
from lab.zoo.settings import TURN_TYPES, Training, read_settings
from lab.zoo.training import batch_rows, prepare_lessons, run_training
from lab.zoo.vocabulary import BLANK, build_processor
from lmms_visual_heads.demo import manifest
from lmms_visual_heads.demo.measured import BENCHMARK_FOLDER, measured_folder
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.measurements import ANSWER_MEANS, read_measurements
from lmms_visual_heads.probe import documents as data
from lmms_visual_heads.probe.drawing import draw_scene
from lmms_visual_heads.probe.questions import full_prompt

MICRO = Training(
    "micro", 7, hidden=32, layers=2, heads=4, tower_hidden=32, tower_steps=10, tower_batch=8, alignment_steps=10,
    steps=30, batch=4, turns=3, scenes=40, snapshots=(15,),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor(48, 12)


def chat(processor: LlavaProcessor, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def test_chat_template_is_that_of_llava(processor: LlavaProcessor) -> None:
    assert chat(processor, "Is it?") == "USER: <image>\nIs it? ASSISTANT:"
    assert processor.apply_chat_template([{"role": "user", "content": "Is it?"}]) == "USER: Is it? "


def test_vocabulary_knows_every_question_and_answer(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    longest = 0
    for name in data.DATA_NAMES:
        for document in data.documents(name):
            prompt = chat(processor, full_prompt(document["question"], document.get("choices")))
            asked = tokenizer(prompt)["input_ids"]
            answered = tokenizer(f"{prompt} {document['answer']}")["input_ids"]
            assert tokenizer.unk_token_id not in answered
            assert answered[: len(asked)] == asked
            blank, word = answered[len(asked) :]
            assert tokenizer.convert_ids_to_tokens(blank) == BLANK
            generated = [blank, word, tokenizer.eos_token_id]
            assert tokenizer.decode(generated, skip_special_tokens=True).strip() == document["answer"]
            longest = max(longest, len(asked))
    assert longest <= 14


def test_letters_are_no_articles_and_words_are_lower_cased(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    assert tokenizer("IS there a Cat")["input_ids"] == tokenizer("is there a cat")["input_ids"]
    assert tokenizer("is there a cat")["input_ids"][1:] == [ids(word) for word in ("is", "there", "a", "cat")]
    assert tokenizer("ASSISTANT: A")["input_ids"][-1] == ids("A") != ids("a")


def test_images_are_resized_without_crop_or_pad(processor: LlavaProcessor) -> None:
    scene = lessons.training_scene(1, 0, 50)
    resized = lessons.resized_images([scene], processor)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(draw_scene(scene.scene, with_box=scene.with_box).resize((48, 48), Image.Resampling.BICUBIC))
    assert np.array_equal(resized, expected)


def test_training_images_equal_those_of_inference(processor: LlavaProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    scenes = [lessons.training_scene(1, index, 50) for index in range(6)]
    trained_on = lessons.normalised(lessons.resized_images(scenes, processor), processor)
    images = [draw_scene(item.scene, with_box=item.with_box) for item in scenes]
    here = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    there = loaded.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(trained_on, here, atol=1e-5)
    # A processor loaded by Auto may resize with torchvision, which rounds differently by one step of 255.
    assert (trained_on - there).abs().max() < 3 / 255 / 0.27


def test_patch_labels_name_what_stands_there() -> None:
    scenes = [lessons.training_scene(3, index, 100) for index in range(60)]
    for side in (4, 6, 8):
        labels = labels_of.patch_labels(scenes, side)
        for n, item in enumerate(scenes):
            assert int((labels.name[n] > 0).sum()) == len(item.scene.things)
            assert int(labels.boxed[n].sum()) == int(item.with_box)
            for thing in item.scene.things:
                x0, y0, x1, y1 = thing.box
                patch = int((y0 + y1) / 2 / 336 * side) * side + int((x0 + x1) / 2 / 336 * side)
                assert labels_of.NAMES[labels.name[n, patch] - 1] == thing.name
                if side % 2 == 0:
                    assert int(labels.quadrant[n, patch]) == thing.quadrant


def test_packed_equals_single_turn(processor: LlavaProcessor) -> None:
    """Six questions in one row give the logits that the plain model gives to each alone."""
    training = replace(MICRO, hidden=48, turns=6, scenes=3)
    model = build_model(training, processor).eval()
    scenes = [lessons.training_scene(training.seed, index, 50) for index in range(training.scenes)]
    turns = [lessons.turns_about(item, training, index) for index, item in enumerate(scenes)]
    encoded = lessons.encode_turns(turns, processor)
    features = tower.tower_features(model, lessons.resized_images(scenes, processor), processor)
    rows = torch.arange(len(scenes))
    with torch.no_grad():
        packed = packing.answer_logits(model, features, encoded, rows, processor)
        targets = packing.answer_targets(encoded, rows, processor)
        for n, item in enumerate(scenes):
            image = draw_scene(item.scene, with_box=item.with_box)
            for q, turn in enumerate(turns[n]):
                text = f"{chat(processor, turn.prompt)} {turn.answer}"
                inputs = processor(text=[text], images=[image], return_tensors="pt")
                alone = model(**inputs).logits[0, -3:]
                assert torch.allclose(packed[n, q], alone, atol=1e-5), turn
                assert targets[n, q, :2].tolist() == inputs["input_ids"][0, -2:].tolist()


def test_every_type_of_turn_is_asked_and_answered_rightly(processor: LlavaProcessor) -> None:
    training = replace(MICRO, scenes=200)
    asked = set()
    for index in range(training.scenes):
        item = lessons.training_scene(training.seed, index, training.box_share)
        for turn in lessons.turns_about(item, training, index):
            asked.add(turn.kind)
            if turn.kind in ("general", "super", "obj") and item.scene.pointed is not None:
                assert turn.answer == str(item.scene.count(item.scene.things[item.scene.pointed].name))
    assert asked == set(lessons.SCENE_TURNS)


def test_every_epoch_shows_every_scene_once() -> None:
    epoch = MICRO.scenes // MICRO.batch
    first, second = (torch.cat([batch_rows(MICRO, e * epoch + step) for step in range(epoch)]) for e in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(MICRO.scenes))
    assert first.tolist() != second.tolist()


class _Stopped(Exception):
    pass


def _stop_at_23(stage: str, done: int, total: int, loss: float) -> None:
    if stage == "language model" and done == 23:
        raise _Stopped


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = run_training(MICRO, tmp_path / "whole")
    with pytest.raises(_Stopped):
        run_training(MICRO, tmp_path / "parts", _stop_at_23, save_every=10)
    stages = []
    parts = run_training(MICRO, tmp_path / "parts", lambda stage, *_: stages.append(stage), save_every=10)
    assert stages == ["language model"] * 10
    left, right = (load_file(folder / "micro-s30" / "model.safetensors") for folder in (whole, parts))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    facts = [json.loads((folder / "micro-s30" / "training.json").read_text()) for folder in (whole, parts)]
    assert facts[0] == facts[1]
    assert facts[0]["lineage"] == "micro"
    assert [json.loads(line)["step"] for line in (parts / "history.jsonl").read_text().splitlines()] == [15, 30]
    assert not (parts / "state.safetensors").exists()
    stages.clear()
    run_training(MICRO, tmp_path / "parts", lambda stage, *_: stages.append(stage))
    assert stages == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand: torch sees none")
@pytest.mark.parametrize("change", [{}, {"tower_share": 0.1, "image_size": 32, "patch_size": 16, "anyres": True}])
def test_a_training_on_a_gpu_is_that_on_the_cpu_up_to_rounding(change: dict, tmp_path: Path) -> None:
    """The losses of the first steps agree, a stopped one goes on, and what it keeps can be read without a GPU."""
    training = replace(MICRO, **change)
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, kept in losses.items():
        run_training(training, tmp_path / device, lambda *told, kept=kept: kept.append(told[-1]), device=device)
    assert torch.allclose(*(torch.tensor(kept[:30]) for kept in losses.values()), rtol=1e-3)
    with pytest.raises(_Stopped):
        run_training(training, tmp_path / "parts", _stop_at_23, save_every=10, device="cuda")
    run_training(training, tmp_path / "parts", save_every=10, device="cuda")
    left, right = (
        load_file(tmp_path / folder / "micro" / "micro-s30" / "model.safetensors") for folder in ("cuda", "parts")
    )
    assert all(torch.allclose(left[key], right[key], atol=1e-2) for key in left)


def answers(folder: Path, documents: list[dict], batch: int = 50) -> list[list[int]]:
    """Generated tokens of plain transformers: no code of this package but the drawing."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    result = []
    for first in range(0, len(documents), batch):
        part = documents[first : first + batch]
        texts = [chat(processor, full_prompt(d["question"], d.get("choices"))) for d in part]
        inputs = processor(text=texts, images=[data.draw(d) for d in part], padding=True, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        result += tokens[:, inputs["input_ids"].shape[1] :].tolist()
    return result


def test_command_trains_and_ships_and_the_checkpoint_answers(tmp_path: Path) -> None:
    from lab.__main__ import command
    from lab.cli import zoo

    settings = tmp_path / "zoo.yaml"
    entry = {key: value for key, value in MICRO.to_dict().items() if key != "mixture"} | {"shipped": [30], "steps": 30}
    settings.write_text(json.dumps({"trainings": [entry]}))
    work, target = str(tmp_path / "work"), tmp_path / "checkpoints"
    runner = CliRunner()
    result = runner.invoke(command(zoo.ship), ["--config", str(settings), "--from", work, "--to", str(target)])
    assert isinstance(result.exception, VisualHeadsError)
    assert "micro-s30 is missing. Run `python -m lab train --only micro" in str(result.exception)
    result = runner.invoke(command(zoo.train), ["--config", str(settings), "--out", work])
    assert result.exit_code == 0, result.output
    result = runner.invoke(command(zoo.ship), ["--config", str(settings), "--from", work, "--to", str(target)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "micro-s30"]
    result = runner.invoke(command(zoo.status), ["--config", str(settings), "--out", work])
    assert [line.split()[1] for line in result.output.splitlines() if "trained" in line] == ["micro-s15", "micro-s30"]
    (shipped,) = manifest.shipped_checkpoints(target)
    assert shipped["visual_tokens"] == 16
    for tokens in answers(shipped["path"], data.documents("digit")[:3]):
        assert len(tokens) >= 1
    result = runner.invoke(command(zoo.train), ["--config", str(settings), "--only", "macro"])
    assert "--only needs one of micro; 'macro' came" in str(result.exception)
    result = runner.invoke(command(zoo.train), ["--config", str(settings), "--device", "cuda:77"])
    assert "device 'cuda:77' needs 78 GPU(s)" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_size": 50}, "needs an image size that its patch size divides; 'micro' has 50 and 12"),
        ({"heads": 5}, "needs heads of an even width; 'micro' splits 32 units among 5 heads"),
        ({"snapshots": (31,)}, "Snapshots need steps from 1 to 30; 'micro' has [31]"),
        ({"shipped": (7,)}, "Only kept steps can be shipped; 'micro' keeps [15, 30] and ships [7]"),
        ({"mixture": {"colour": 1.0}}, "'micro' names colour. Remove the others."),
    ],
)
def test_impossible_settings_are_refused(change: dict, sentence: str) -> None:
    with pytest.raises(VisualHeadsError) as error:
        replace(MICRO, **change)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is none"),
        ("defaults: {}", "needs a list `trainings`"),
        ("trainings: [{name: a, seed: 1, depth: 3}]", "has depth. Remove them."),
        ("trainings: [{name: a, seed: 1}, {name: a, seed: 2}]", "needs its own name"),
        ("trainings: [{name: a, seed: 1}, {name: b, seed: 1}]", "needs its own seed"),
    ],
)
def test_broken_settings_files_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(text)
    with pytest.raises(VisualHeadsError) as error:
        read_settings(path)
    assert sentence in str(error.value)
    with pytest.raises(VisualHeadsError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


def test_shipped_checkpoints_are_small_complete_and_of_many_lineages() -> None:
    entries = manifest.shipped_checkpoints()
    assert len(entries) >= 8
    assert len({entry["lineage"] for entry in entries}) >= 5
    sizes = [sum(file.stat().st_size for file in entry["path"].iterdir()) for entry in entries]
    assert max(sizes) <= shipping.LARGEST_CHECKPOINT
    assert sum(sizes) <= shipping.LARGEST_SET
    expected = {training.checkpoint_name(step) for training in read_settings() for step in training.shipped}
    assert {entry["name"] for entry in entries} == expected
    for key in ("layers", "hidden", "visual_tokens", "step"):
        assert len({entry[key] for entry in entries}) >= 3


def test_a_shipped_checkpoint_beats_chance_with_plain_transformers() -> None:
    documents = data.documents("existence")[:200]
    last = max(manifest.shipped_checkpoints(), key=lambda entry: entry["step"])
    processor = AutoProcessor.from_pretrained(last["path"])
    ids = processor.tokenizer.convert_tokens_to_ids
    right = 0
    for document, tokens in zip(documents, answers(last["path"], documents), strict=True):
        assert tokens[0] == ids(BLANK)
        assert tokens[2] == processor.tokenizer.eos_token_id
        right += processor.decode(tokens, skip_special_tokens=True).strip() == document["answer"]
    assert right > 150


def test_quick_accuracies_agree_with_generated_answers() -> None:
    entry = min(manifest.shipped_checkpoints(), key=lambda entry: entry["visual_tokens"])
    processor = build_processor(entry["image_size"], entry["patch_size"])
    documents = data.documents("position")[:60]
    generated = [processor.decode(t, skip_special_tokens=True).strip() for t in answers(entry["path"], documents)]
    plain = np.mean([answer == document["answer"] for answer, document in zip(generated, documents, strict=True)])
    # Images may be resized by another library there, so a doubtful answer or two may differ.
    assert abs(accuracies(entry["path"], processor, ["position"], limit=60)["position"] - plain) <= 2 / 60


def test_ship_refuses_what_is_too_large(tmp_path: Path) -> None:
    training = replace(MICRO, shipped=(30,))
    folder = tmp_path / "micro" / "micro-s30"
    folder.mkdir(parents=True)
    (folder / manifest.FACTS_FILE).write_text(json.dumps({"name": "micro-s30", "lineage": "micro"}))
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    with pytest.raises(VisualHeadsError, match=r"may take 2\.5 MB; micro-s30 takes 3\.0 MB"):
        shipping.ship([training], tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    shutil.rmtree(folder)


def test_lessons_have_the_declared_shapes(processor: LlavaProcessor) -> None:
    lesson = prepare_lessons(MICRO, processor)
    assert lesson.images.shape == (40, 3, 48, 48)
    assert lesson.labels.name.shape == (40, 16)
    assert lesson.turns.ids.shape[:2] == (40, 3)
    assert set(lesson.turns.kind.flatten().tolist()) <= set(range(len(TURN_TYPES)))


def test_every_shipped_checkpoint_has_its_own_answers_and_cuts() -> None:
    """What the demo fits on: the same prompts for all, every head cut, and none of it older than the checkpoints' settings."""
    folder = measured_folder() / BENCHMARK_FOLDER
    measured = read_measurements([folder])
    names = {entry["name"] for entry in manifest.shipped_checkpoints()}
    assert set(measured.answers.model) == set(measured.causal.model) == names
    assert len(list(folder.iterdir())) == 2 * len(names)
    assert set(measured.answers.n_prompts) == {BENCHMARK_PROMPTS}
    assert len({digest for (_, task), digest in measured.fingerprints.items() if task == "scenes_color"}) == 1
    assert np.isfinite(measured.answers[list(ANSWER_MEANS)].to_numpy()).all()
    for entry in manifest.shipped_checkpoints():
        cuts = measured.causal[measured.causal.model == entry["name"]]
        assert len(cuts) == 5 * (1 + entry["layers"] + entry["layers"] * entry["heads"])
