"""The suite: its pictures hold what its answers say, its words are known, and trainings on it compute what the plain model does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from lab import suite
from lab.suite import bars, written
from lab.zoo import design, labels, lessons, packing, tower
from lab.zoo.model import build_model
from lab.zoo.settings import TURN_TYPES, Training, proof_settings_path, read_settings
from lab.zoo.vocabulary import build_processor, build_tokenizer, words
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.layout import COLOUR_NAMES, COLOURS, Scene
from lmms_visual_heads.probe.questions import full_prompt
from lmms_visual_heads.probe.random_stream import RandomStream

NAMES = [benchmark.name for benchmark in suite.BENCHMARKS]
documents_of = cache(suite.documents)
MICRO = Training(
    "micro", 7, hidden=32, layers=2, heads=4, tower_hidden=32, tower_steps=10, tower_batch=8, alignment_steps=10,
    steps=30, batch=4, turns=6, scenes=8, generators={"scenes": 40, "bars": 30, "written": 30},
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_items_are_complete_and_none_is_asked_twice(name: str) -> None:
    documents = documents_of(name)
    assert len(documents) == 2000
    picture = next(field for field in ("scene", "chart", "pair") if field in documents[0])
    assert len({(document[picture], document["question"]) for document in documents}) == 2000
    assert len({document["item_id"] for document in documents}) == 2000
    assert documents == suite.documents(name)


def test_unknown_benchmark_is_named() -> None:
    with pytest.raises(VisualHeadsError, match=r"The suite has the benchmarks suite_existence, .*; 'suite_pope' came"):
        suite.documents("suite_pope")


def heights_in(pixels: np.ndarray) -> dict[str, int]:
    """Rows in which each bar's colour occurs, looked up in the drawn picture."""
    return {
        name: int((pixels == np.array(colour)).all(-1).any(1).sum())
        for name, colour in COLOURS.items()
        if (pixels == np.array(colour)).all(-1).any()
    }


@pytest.mark.parametrize("index", range(0, 2000, 97))
def test_answers_about_charts_can_be_read_off_the_pixels(index: int) -> None:
    asked = {name: documents_of(name)[index] for name in NAMES if "chart" in documents_of(name)[index]}
    heights = heights_in(np.asarray(suite.draw(asked["suite_tallest"])))
    assert asked["suite_tallest"]["answer"] == max(heights, key=heights.__getitem__)
    assert asked["suite_shortest"]["answer"] == min(heights, key=heights.__getitem__)
    assert asked["suite_bar_count"]["answer"] == str(len(heights))
    words_of = asked["suite_taller"]["question"].split()
    assert (asked["suite_taller"]["answer"] == "yes") == (heights[words_of[2]] > heights[words_of[7]])


@pytest.mark.parametrize("index", range(0, 2000, 97))
def test_answers_about_scenes_are_those_of_the_layout(index: int) -> None:
    one = {name: documents_of(name)[index] for name in NAMES}
    scene = Scene.from_text(one["suite_existence"]["scene"])
    name = one["suite_existence"]["question"].split()[3]
    assert (one["suite_existence"]["answer"] == "yes") == any(thing.name == name for thing in scene.things)
    asked = scene.things[0]
    assert one["suite_color_word"]["answer"] == asked.colour
    assert one["suite_color"]["question"].split()[2] == asked.name
    assert (one["suite_color"]["answer"] == "yes") == (one["suite_color"]["question"].split()[3] == f"{asked.colour}?")
    x0, y0, x1, y1 = asked.box
    quadrant = 2 * ((y0 + y1) / 2 > 168) + ((x0 + x1) / 2 > 168)
    assert one["suite_position"]["answer"] == "ABCD"[quadrant]
    crowd = Scene.from_text(one["suite_obj_count"]["scene"])
    counted = sum(thing.name == crowd.things[0].name for thing in crowd.things)
    assert one["suite_obj_count"]["answer"] == str(counted)
    colour = one["suite_color_count"]["question"].split()[2]
    assert one["suite_color_count"]["answer"] == str(sum(thing.colour == colour for thing in crowd.things))
    inside = np.asarray(suite.draw(one["suite_color_word"]))[y0:y1, x0:x1]
    assert (inside == np.array(COLOURS[asked.colour])).all(-1).any()


def test_handwriting_is_shared_by_nobody_and_answered_by_its_labels() -> None:
    scans, values = written.scans()
    assert scans.shape == (1797, 8, 8)
    for index in range(0, 2000, 97):
        document = documents_of("suite_written_left")[index]
        pair = written.Pair.from_text(document["pair"])
        assert min(pair.left.scan, pair.right.scan) >= written.N_TRAINING
        assert document["answer"] == str(values[pair.left.scan])
        larger = documents_of("suite_written_larger")[index]["answer"]
        assert larger == str(max(values[pair.left.scan], values[pair.right.scan]))
        order = documents_of("suite_written_order")[index]["answer"]
        assert (order == "yes") == (values[pair.left.scan] > values[pair.right.scan])
    taught = [written.random_pair(RandomStream("taught", index), training=True) for index in range(200)]
    assert max(max(pair.left.scan, pair.right.scan) for pair in taught) < written.N_TRAINING


def test_vocabulary_knows_the_suite_and_keeps_the_old_numbers() -> None:
    assert words(True)[: len(words())] == words()
    tokenizer = build_tokenizer(suite=True)
    for name in NAMES:
        for document in documents_of(name)[:200]:
            prompt = full_prompt(document["question"], document.get("choices"))
            assert (
                tokenizer.unk_token_id not in tokenizer(f"USER: {prompt} ASSISTANT: {document['answer']}")["input_ids"]
            )


@pytest.mark.parametrize("key_heads", [None, 2])
@pytest.mark.parametrize("anyres", [False, True])
def test_packed_equals_single_turn(anyres: bool, key_heads: int | None) -> None:
    training = replace(MICRO, hidden=48, image_size=32, patch_size=16, anyres=anyres, key_value_heads=key_heads)
    processor = build_processor(32, 16, suite=True, anyres=anyres)
    model = build_model(training, processor).eval()
    assert type(model) is (LlavaNextForConditionalGeneration if anyres else LlavaForConditionalGeneration)
    images, encoded, pictures = lessons.encode_pictures(training, processor)
    assert {type(picture) for picture in pictures} == {lessons.TrainingScene, bars.Chart, written.Pair}
    features = tower.tower_features(model, images, processor)
    rows = torch.arange(len(pictures))
    with torch.no_grad():
        assert packing.image_embeddings(model, features).shape[1] == training.n_visual_tokens
        packed = packing.answer_logits(model, features, encoded, rows, processor)
        for n in range(len(pictures)):
            for q, turn in enumerate(lessons.turns_about(pictures[n], training, n)):
                content = [{"type": "image"}, {"type": "text", "text": turn.prompt}]
                prompt = processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
                inputs = processor(
                    text=[f"{prompt} {turn.answer}"], images=[lessons.draw_picture(pictures[n])], return_tensors="pt"
                )
                assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == training.n_visual_tokens
                assert torch.allclose(packed[n, q], model(**inputs).logits[0, -3:], atol=1e-5), turn


def test_every_type_of_turn_is_asked() -> None:
    asked = {
        turn.kind
        for index in range(150)
        for turn in lessons.turns_about(lessons.training_picture(MICRO, index), MICRO, index)
    }
    assert asked == set(TURN_TYPES) == set(lessons.ANSWERS)


def test_noise_replaces_the_given_share_of_answers() -> None:
    right = [lessons.turns_about(lessons.training_picture(MICRO, i), MICRO, i) for i in range(200)]
    noisy = replace(MICRO, noisy_answers=50)
    wrong = [lessons.turns_about(lessons.training_picture(noisy, i), noisy, i) for i in range(200)]
    pairs = [(a, b) for left, other in zip(right, wrong, strict=True) for a, b in zip(left, other, strict=True)]
    assert all(a.prompt == b.prompt for a, b in pairs)
    assert 0.25 < np.mean([a.answer != b.answer for a, b in pairs]) < 0.5


@pytest.mark.parametrize("anyres", [False, True])
def test_labels_of_tiles_are_those_of_a_finer_grid(anyres: bool) -> None:
    training = replace(MICRO, image_size=32, patch_size=16, anyres=anyres, scenes=30)
    pictures = [lessons.training_picture(training, index) for index in range(training.scenes)]
    found = labels.training_labels(pictures, training)
    base = found.name[:, 0] if anyres else found.name
    assert torch.equal(base, labels.patch_labels(pictures, 2).name)
    if anyres:
        fine = labels.patch_labels(pictures, 4).name.unflatten(1, (4, 4))
        for tile, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
            expected = fine[:, row : row + 2, column : column + 2].flatten(1)
            assert torch.equal(found.name[:, 1 + tile], expected)
            assert bool((found.quadrant[:, 1 + tile] == -1).all())


def test_bars_are_labelled_where_patches_lie_in_them() -> None:
    charts = [bars.random_chart(RandomStream("labels", index)) for index in range(20)]
    found = labels.patch_labels(charts, 8)
    for n, chart in enumerate(charts):
        pixels = bars.draw_chart(chart)
        for patch in range(64):
            y, x = (42 * place + 21 for place in divmod(patch, 8))
            colours = [name for name in COLOUR_NAMES if tuple(pixels[y, x]) == COLOURS[name]]
            expected = COLOUR_NAMES.index(colours[0]) if colours else -1
            assert int(found.colour[n, patch]) == expected


def test_factors_are_balanced_and_independent() -> None:
    trainings = read_settings(proof_settings_path())
    first = [t for t in trainings if t.name.startswith("z") and not t.name.endswith("-repeat")]
    lockbox = [t for t in trainings if t.name.startswith("l")]
    assert (len(first), len(lockbox)) == (32, 16)
    assert len({training.seed for training in trainings}) == len(trainings)
    assert sum(training.stratum == "ordinary" for training in first) >= 20
    assert {training.stratum for training in first} == {"ordinary", "smoothed", "noisy", "broken"}
    columns = np.array([[t.layers, t.hidden, t.n_visual_tokens, t.steps, t.scenes] for t in first if t.steps > 1])
    correlation = np.corrcoef(columns.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.45
    stream = RandomStream("balanced")
    assert sorted(design.balanced(["a", "b", "c"], [2, 1, 1], 8, stream)) == ["a"] * 4 + ["b"] * 2 + ["c"] * 2


def test_a_group_may_have_a_factor_and_a_mixture_of_its_own() -> None:
    level = [{"weight": 1, "set": {"steps": 20}}]
    plain = {"group": "a", "prefix": "a", "n": 3, "seed": 1}
    own = {"group": "b", "prefix": "b", "n": 3, "seed": 2, "mixture": {"super": 3.0}}
    own["factors"] = {"budget": [{"weight": 1, "set": {"steps": 40}}]}
    width = [{"weight": 1, "set": {"hidden": 48}}]
    content = {"factors": {"budget": level, "width": width}, "skills": [["digit"]], "mixture": {"obj": 2.0}}
    entries = design.drawn_entries({**content, "draw": [plain, own]})["trainings"]
    assert entries[:3] == design.drawn_entries({**content, "draw": [plain]})["trainings"]
    assert [(e["steps"], e["hidden"], e["mixture"].get("obj"), e["mixture"].get("super")) for e in entries] == [
        *[(20, 48, 2.0, None)] * 3,
        *[(40, 48, None, 3.0)] * 3,
    ]


def test_a_repeat_differs_by_its_seed_only() -> None:
    by_name = {training.name: training for training in read_settings(proof_settings_path())}
    repeats = [name for name in by_name if name.endswith("-repeat")]
    assert len(repeats) == 3
    for name in repeats:
        original = by_name[name.removesuffix("-repeat")]
        assert replace(by_name[name], name=original.name, seed=original.seed) == original
