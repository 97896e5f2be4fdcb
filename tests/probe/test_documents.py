"""The drawn scenes: the same everywhere, regions that hold what they say, questions whose answers can be recounted."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe import documents as data
from lmms_visual_heads.probe import shapes
from lmms_visual_heads.probe.drawing import BOX_COLOUR, BOX_THICKNESS, draw_pixels
from lmms_visual_heads.probe.layout import COLOURS, DIGITS, KINDS, QUADRANTS, Scene, Thing, arrange
from lmms_visual_heads.probe.questions import BENCHMARKS, LETTERS, full_prompt
from lmms_visual_heads.probe.random_stream import RandomStream, text_hash

FINGERPRINTS = {
    "general": "001cdaeac48ff942",
    "obj": "0737eb0b132e931a",
    "super": "86e5c9c73f1ba76c",
    "general_visual": "838bcf344c382190",
    "obj_visual": "5761a354b66654f8",
    "super_visual": "51f390626809d72f",
    "existence": "05550512d0873804",
    "color": "6a702ee30bfe2b8f",
    "position": "bf1f434afa74fe39",
    "color_count": "fddb447ba74b58e4",
    "digit": "613573a888b7f41d",
}
"""First 16 hex digits. They stand for pixels, questions, answers and boxes: a change makes old head tables incomparable."""


def test_random_stream_is_splitmix64() -> None:
    stream = RandomStream.__new__(RandomStream)
    stream._state = 1234567
    # The first outputs of the reference implementation for seed 1234567.
    assert [stream.word() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert text_hash("") == 0xCBF29CE484222325
    assert text_hash("a") == 0xAF63DC4C8601EC8C


def test_random_draws_stay_in_range_and_differ_between_purposes() -> None:
    stream = RandomStream("test", 1)
    assert {stream.between(2, 4) for _ in range(200)} == {2, 3, 4}
    assert sorted(stream.sample(range(9), 9)) == list(range(9))
    drawn = Counter(stream.weighted((1, 0, 3)) for _ in range(2000))
    assert drawn[1] == 0
    assert drawn[2] > 2 * drawn[0]
    assert RandomStream("test", 1).word() != RandomStream("test", 2).word() != RandomStream("tests", 2).word()


@pytest.mark.parametrize("name", data.DATA_NAMES)
def test_data_is_pinned(name: str) -> None:
    assert data.data_fingerprint(name)[:16] == FINGERPRINTS[name]


def test_unknown_name_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        VisualHeadsError, match=r"needs one of the names general, .*digit; 'genral' came\. Use one of them\."
    ):
        data.documents("genral")


def test_sizes_and_plain_values() -> None:
    for name in data.DATA_NAMES:
        documents = data.documents(name)
        assert len(documents) == (256 if name in data.PROBE_DATA else 1000)
        assert json.loads(json.dumps(documents)) == documents
        assert len({d["item_id"] for d in documents}) == len(documents)
        assert all(set(d) == set(documents[0]) for d in documents)
    data.documents("digit")[0]["answer"] = "changed"
    assert data.documents("digit")[0]["answer"] != "changed"


def test_no_item_is_repeated_and_worlds_are_disjoint() -> None:
    from lab.zoo.lessons import training_scene
    from lab.zoo.settings import read_settings

    seen: dict[str, str] = {}
    for name in ("general", *BENCHMARKS):
        documents = data.documents(name)
        assert len({(d["scene"], d["question"]) for d in documents}) == len(documents)
        for document in documents:
            assert seen.setdefault(document["scene"], name) == name
    for training in read_settings():
        for index in range(200):
            text = training_scene(training.seed, index, 50).scene.to_text()
            assert seen.setdefault(text, f"{training.name} {index}") == f"{training.name} {index}"


def test_the_three_types_ask_about_the_same_scenes() -> None:
    by_type = {name: data.documents(name) for name in data.PROBE_DATA}
    for row in zip(*by_type.values(), strict=True):
        for key in ("item_id", "scene", "answer", "pointed_box", "object_boxes"):
            assert len({str(document[key]) for document in row}) == 1
    assert [d["with_box"] for name in by_type for d in by_type[name]] == [False] * 768 + [True] * 768


_ARTICLES = r"an?"
_PLURALS = {kind.plural: kind.name for kind in KINDS}


def _recount(document: dict[str, Any]) -> str:
    """Slow twin: the answer, from the words of the question and the raw list of things."""
    scene = json.loads(document["scene"])
    things = scene["things"]
    names = [thing[0] for thing in things]
    question = document["question"]
    if match := re.fullmatch(rf"Is there {_ARTICLES} (\w+) in the image\?", question):
        return "yes" if match[1] in names else "no"
    if match := re.fullmatch(r"Is the (\w+) (\w+)\?", question):
        (colour,) = [thing[1] for thing in things if thing[0] == match[1]]
        return "yes" if colour == match[2] else "no"
    if match := re.fullmatch(r"Where is the (\w+)\?", question):
        (cell,) = [thing[2] for thing in things if thing[0] == match[1]]
        side = ("bottom" if cell >= 8 else "top") + (" right" if cell % 4 >= 2 else " left")
        return LETTERS[document["choices"].index(side)]
    if match := re.fullmatch(r"How many (\w+) things are there\?", question):
        return str(sum(thing[1] == match[1] for thing in things))
    if question == "What digit is shown?":
        (digit,) = [name for name in names if name.isdigit()]
        return str(digit)
    pointed = names[scene["pointed"]]
    if match := re.fullmatch(r"How many (\w+) are pictured\?", question):
        assert _PLURALS[match[1]] == pointed
    elif match := re.fullmatch(r"How many of these (\w+) are there\?", question):
        assert {kind.name: kind.supercategory for kind in KINDS}[pointed] == match[1]
    else:
        assert question == "How many of these are there?"
    return str(names.count(pointed))


@pytest.mark.parametrize("name", data.DATA_NAMES)
def test_answers_can_be_recounted(name: str) -> None:
    for document in data.documents(name):
        assert _recount(document) == document["answer"], document


def test_answers_are_balanced() -> None:
    shares = {name: Counter(d["answer"] for d in data.documents(name)) for name in BENCHMARKS}
    assert shares["existence"] == {"yes": 500, "no": 500}
    assert shares["color"] == {"yes": 500, "no": 500}
    assert shares["position"] == dict.fromkeys("ABCD", 250)
    assert shares["digit"] == dict.fromkeys(DIGITS, 100)
    assert set(shares["color_count"]) == set("012345")
    assert max(shares["color_count"].values()) <= 167
    # A limited run must be balanced, too.
    assert Counter(d["answer"] for d in data.documents("position")[:100]) == dict.fromkeys("ABCD", 25)


def test_facts_state_the_chance_level() -> None:
    expected = {"existence": 0.5, "color": 0.5, "position": 0.25, "color_count": 0.167, "digit": 0.1}
    for name, chance in expected.items():
        facts = data.benchmark_facts(name)
        assert (facts.n_documents, facts.primary_metric, facts.chance) == (1000, "exact_match", chance)
    assert data.benchmark_facts("super").chance < 0.3


def test_the_supercategory_says_more_than_these() -> None:
    """A reader of the layout without the pointer gets more answers right when the question names the supercategory."""
    right: Counter[str] = Counter()
    for document in data.documents("super"):
        counts = Scene.from_text(document["scene"]).kinds()
        word = document["question"].split()[4]
        own = [count for name, count in counts.items() if word == {k.name: k.supercategory for k in KINDS}[name]]
        right["these"] += document["answer"] == str(max(counts.values()))
        right["super"] += document["answer"] == str(max(own))
    assert right["super"] > right["these"] + 20
    assert right["these"] > 150


@pytest.mark.parametrize("size", [58, 63, 68])
def test_silhouettes_fill_their_square_and_differ(size: int) -> None:
    masks = {name: shapes.silhouette(name, size) for name in [*(k.name for k in KINDS), *DIGITS]}
    for name, mask in masks.items():
        x0, y0, x1, y1 = shapes.tight_box(name, size)
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
        assert max(x1 - x0, y1 - y0) > 0.8 * size
    names = list(masks)
    for i, first in enumerate(names):
        for second in names[:i]:
            different = (masks[first] ^ masks[second]).mean()
            assert different > 0.03, (first, second)


def test_regions_hold_exactly_the_pixels_of_their_thing() -> None:
    for document in data.documents("general")[:60]:
        scene = Scene.from_text(document["scene"])
        assert document["pointed_box"] in document["object_boxes"]
        assert len(document["object_boxes"]) == int(document["answer"])
        whole = draw_pixels(scene)
        for index, thing in enumerate(scene.things):
            others = tuple(other for i, other in enumerate(scene.things) if i != index)
            without = draw_pixels(Scene(scene.background, scene.texture, others))
            rows, columns = np.nonzero((whole != without).any(-1))
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == list(thing.box)


def test_visual_variant_differs_only_by_the_red_box() -> None:
    plain, visual = data.documents("obj"), data.documents("obj_visual")
    for left, right in zip(plain[:60], visual[:60], strict=True):
        a, b = np.asarray(data.draw(left)), np.asarray(data.draw(right))
        x0, y0, x1, y1 = left["pointed_box"]
        t = BOX_THICKNESS
        ring = np.zeros(a.shape[:2], bool)
        ring[y0 - t : y1 + t, x0 - t : x1 + t] = True
        ring[y0:y1, x0:x1] = False
        assert (b[ring] == BOX_COLOUR).all()
        assert (a[~ring] == b[~ring]).all()
        # The box covers background only: no thing has a pixel under it.
        assert a[ring].max() < min(max(colour) for colour in COLOURS.values())


def test_no_thing_has_the_colour_of_the_box() -> None:
    assert BOX_COLOUR not in COLOURS.values()


def test_quadrants_hold_the_whole_thing() -> None:
    for document in data.documents("position"):
        scene = Scene.from_text(document["scene"])
        x0, y0, x1, y1 = scene.things[0].box
        quadrant = QUADRANTS[LETTERS.index(document["answer"])]
        assert (y1 <= 168) == quadrant.startswith("top")
        assert (y0 >= 168) == quadrant.startswith("bottom")
        assert (x1 <= 168) == quadrant.endswith("left")
        assert (x0 >= 168) == quadrant.endswith("right")


def test_scene_text_round_trip_and_full_grid() -> None:
    scene = arrange(RandomStream("test", 3), [("cat", "red")] * 16, pointed=4)
    assert Scene.from_text(scene.to_text()) == scene
    assert {thing.cell for thing in scene.things} == set(range(16))
    assert Thing("cat", "red", 15, 68, 8, 8).quadrant == 3


def test_prompts_use_the_words_of_the_field() -> None:
    assert full_prompt("Is the cat red?") == "Is the cat red?\nAnswer the question using a single word or phrase."
    assert full_prompt("Where is the cat?", QUADRANTS) == (
        "Where is the cat?\nA. top left\nB. top right\nC. bottom left\nD. bottom right\n"
        "Answer with the option's letter from the given choices directly."
    )
