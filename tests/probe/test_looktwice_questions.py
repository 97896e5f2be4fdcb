"""Question files: the published forms say the same; what is missing or wrong is named; the draw is stable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice.fields import question_type, read_box
from lmms_visual_heads.probe.looktwice.options import with_options
from lmms_visual_heads.probe.looktwice.reading import chosen_items, read_questions_files
from lmms_visual_heads.probe.looktwice.records import LETTERS, Question, RecordProblem, fit_box, parse_count
from tests.builders.looktwice import facts, pointqa_file, pointqa_record, vip_file, write

N = 6
PROMPT = "\nAnswer the question using a single word or phrase."


def shikra_file(n: int) -> list[dict[str, Any]]:
    records = []
    for number in range(n):
        known, published = facts(number), pointqa_record(number)
        del published["ans"]
        image = f"{known['folder']}/{known['image']}.jpg"
        box = known["box"]
        point = [published["point"]["x"], published["point"]["y"]]
        records.append(published | {"file_path": image, "bbox": box, "point": point, "answer": str(known["count"])})
    return records


def conversation_file(n: int) -> list[dict[str, Any]]:
    """One record with all three questions as turns."""
    records = []
    for number, record in enumerate(vip_file(n)):
        turns = []
        for kind in ("general", "obj", "super"):
            text = record.pop(f"{kind}_question") + " The exemplary object is within the rectangle." + PROMPT
            turns += [
                {"from": "human", "value": ("" if turns else "<image>\n") + text},
                {"from": "gpt", "value": record["answer"]},
            ]
        del record["answer"]
        records.append(record | {"id": f"pointQA_twice-{number}", "conversations": turns})
    return records


def study_files(folder: Path, n: int) -> list[Path]:
    """One file a question type, with the options of the study."""
    paths = []
    for kind in ("general", "obj", "super"):
        records = []
        for number, record in enumerate(vip_file(n)):
            count = facts(number)["count"]
            options = [str(count), *[str(other) for other in range(1, 8) if other != count][:3]]
            options = options[1:] + options[:1] if kind == "obj" else options
            choices = dict(zip(("choice_a", "choice_b", "choice_c", "choice_d"), options, strict=True))
            letter = LETTERS[options.index(str(count))]
            question = record[f"{kind}_question"]
            base = {"question_id": number, "image": record["image"], "bboxes": record["bboxes"], "question": question}
            records.append(base | choices | {"gt": letter})
        paths.append(write(folder / f"point_QA-{kind}.jsonl", records))
    return paths


def all_forms(folder: Path) -> dict[str, list[Path]]:
    return {
        "pointqa": [write(folder / "looktwiceqa_dataset.json", pointqa_file(N))],
        "vip": [write(folder / "pointQA_twice_test.json", vip_file(N))],
        "shikra": [write(folder / "pointQA_twice_val.jsonl", shikra_file(N))],
        "conversations": [write(folder / "conversations.json", conversation_file(N))],
        "study": study_files(folder, N),
    }


@pytest.mark.parametrize("form", ["pointqa", "vip", "shikra", "conversations", "study"])
def test_every_published_form_says_the_same(form: str, tmp_path: Path) -> None:
    read = read_questions_files(all_forms(tmp_path)[form])
    assert read.problems == []
    assert read.types == ("general", "obj", "super")
    assert list(read.records) == [f"looktwice-{facts(i)['image']}-0" for i in range(N)]
    for number, record in enumerate(read.records.values()):
        known = facts(number)
        assert record.image_name == f"{known['image']}.jpg"
        assert record.box == tuple(known["box"])
        assert record.count == known["count"]
        texts = {kind: question.text for kind, question in record.questions.items()}
        assert texts == {"general": "How many of these are there?", "obj": known["obj"], "super": known["super"]}
        assert record.folder == (None if form == "pointqa" else known["folder"])
    assert read.by_image == (form == "pointqa")


def test_records_in_other_wrappings_are_found(tmp_path: Path) -> None:
    wrapped = write(tmp_path / "a.json", {"info": {"version": 1}, "annotations": vip_file(N)})
    single = write(tmp_path / "b.json", {key: records[0] for key, records in pointqa_file(N).items()})
    assert list(read_questions_files([wrapped]).records) == list(read_questions_files([single]).records)
    assert [read_questions_files([path]).by_image for path in (wrapped, single)] == [False, True]


def test_options_of_the_data_are_kept(tmp_path: Path) -> None:
    record = next(iter(read_questions_files(study_files(tmp_path, 2)).records.values()))
    assert record.questions["general"].choices == ("1", "2", "3", "4")
    assert record.questions["obj"].letter == "D"
    assert with_options(record.questions["obj"], 1, "x", 3) is record.questions["obj"]


def test_several_questions_on_one_image_get_numbers(tmp_path: Path) -> None:
    content = {"2400000": [pointqa_record(0), pointqa_record(0) | {"ans": "5"}]}
    read = read_questions_files([write(tmp_path / "q.json", content)])
    assert {item: record.count for item, record in read.records.items()} == {
        "looktwice-2400000-0": 1,
        "looktwice-2400000-1": 5,
    }


def broken(**changes: Any) -> dict[str, Any]:
    record = vip_file(2)[1]
    for name, value in changes.items():
        if value is None:
            del record[name]
        else:
            record[name] = value
    return record


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"answer": None}, "'answer' (or 'ans') is missing"),
        ({"bboxes": None}, "'bbox' (or 'bboxes', 'box', 'pointed_box') is missing"),
        ({"image": None}, "the image is missing: 'image', 'image_id' or a numeric 'id' is required"),
        ({"super_question": None}, "'super_question' is missing"),
        ({"answer": "many"}, "the answer must be one number in digits or as a word; 'many' came"),
        ({"answer": "3 or 4"}, "one number"),
        ({"answer": 2.5}, "a whole number; 2.5 came"),
        ({"bboxes": [[30, 8, 10, 30]]}, "the box (30, 8, 10, 30) has its corners swapped"),
        ({"bboxes": [[10, 8, 10, 30]]}, "the box (10, 8, 10, 30) has no area"),
        ({"bboxes": [[0.1, 0.2, 0.5, 0.5]]}, "looks like shares of the image; pixels are required"),
        ({"bboxes": [[1, 2, 3]]}, "the box must be [left, top, right, bottom] or {x, y, w, h}"),
        ({"bboxes": [[1, 2, "3", 4]]}, "a corner of the box must be a number; '3' came"),
        ({"bboxes": [[1, 2, float("nan"), 4]]}, "not finite"),
        ({"bboxes": {"x": 1, "y": 2, "w": -3, "h": 4}}, "negative width or height: -3 x 4"),
        ({"bboxes": {"x": 1, "y": 2, "w": 3}}, "the box lacks 'h'"),
        ({"image": "vg/../../etc/pass wd.jpg"}, "the image's name must be an id"),
        ({"bboxes": [[1, 2, 10**400, 4]]}, "must be a number of pixels"),
        ({"obj_question": 7}, "'obj_question' must be a question; 7 came"),
    ],
)
def test_a_bad_record_is_left_out_and_named(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", [vip_file(1)[0], broken(**changes)])
    read = read_questions_files([path])
    assert list(read.records) == ["looktwice-2400000-0"]
    assert len(read.problems) == 1
    assert read.problems[0].startswith("record 2 (id pointQA_twice-1): ")
    assert sentence in read.problems[0]
    only_bad = write(tmp_path / "bad.json", [broken(**changes)])
    if "super_question" not in changes:
        with pytest.raises(VisualHeadsError, match=r"No record of bad\.json can be used: record 1 ") as caught:
            read_questions_files([only_bad])
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is broken"),
        ('[{"id": 1', "q.json is broken: Expecting"),
        ('{"id": 1}\n{"id": 2}\n{"id": ', "line 3 of .*q.json is broken"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12", "only a pointer of Git LFS"),
        ("<html>Not found</html>", "is an HTML page"),
        ("[]", "list without records"),
        ("{}", "dict without records"),
        ('"text"', "holds a str"),
        ("[1, 2]", "a record with named fields is required; int came"),
        ("[" * 100_000, "is broken"),
    ],
)
def test_a_broken_question_file_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(text)
    with pytest.raises(VisualHeadsError, match=sentence):
        read_questions_files([path])


def test_a_binary_question_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(VisualHeadsError, match="is not text"):
        read_questions_files([path])


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("3", 3),
        (3, 3),
        (3.0, 3),
        ("three", 3),
        ("Three.", 3),
        (" 12 ", 12),
        ("There are seven.", 7),
        ("none", 0),
        ("40", 40),
    ],
)
def test_counts_are_read_as_digits_and_words(answer: object, count: int) -> None:
    assert parse_count(answer) == count


@pytest.mark.parametrize("answer", [True, None, "", "-3", [3], "3.5", "two or three"])
def test_what_is_no_count_is_refused(answer: object) -> None:
    with pytest.raises(RecordProblem, match="number"):
        parse_count(answer)


def test_the_words_of_a_question_tell_its_type() -> None:
    assert question_type("How many of these are there?") == "general"
    assert question_type("How many of these are in the photo?") == "general"
    assert question_type("How many of these?") == "general"
    assert question_type("How many of these beings are there?") == "super"
    assert question_type("How many people are pictured?") == "obj"


def test_a_box_over_the_edge_is_cut_and_one_outside_refused() -> None:
    assert fit_box((-2, 0, 20, 10), (80, 60)) == (0, 0, 20, 10)
    assert fit_box((70, 50, 80, 60), (80, 60)) == (70, 50, 80, 60)
    with pytest.raises(RecordProblem, match=r"lies outside the image of 80 x 60 pixels"):
        fit_box((90, 10, 99, 20), (80, 60))
    with pytest.raises(RecordProblem, match=r"reaches too far outside"):
        fit_box((60, 10, 120, 20), (80, 60))


def test_boxes_with_width_and_height_are_corners_plus_sides() -> None:
    assert read_box({"x": 3, "y": 4, "w": 10, "h": 20}) == (3, 4, 13, 24)


ITEMS = [f"looktwice-{number}-0" for number in range(60)]


@given(st.integers(0, 5), st.integers(1, 60), st.integers(1, 60))
def test_the_draw_is_seeded_nested_and_in_order(seed: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    small, large = chosen_items(ITEMS, few, seed), chosen_items(ITEMS, more, seed)
    assert len(small) == few
    assert set(small) <= set(large)
    assert small == [item for item in ITEMS if item in set(small)]


def test_the_draw_differs_between_seeds_and_not_between_runs() -> None:
    assert chosen_items(ITEMS, 10, 0) != chosen_items(ITEMS, 10, 1)
    assert chosen_items(ITEMS, 4, 0) == ["looktwice-11-0", "looktwice-32-0", "looktwice-44-0", "looktwice-48-0"]
    assert chosen_items(ITEMS, 99, 0) == ITEMS


@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 400))
def test_options_are_four_numbers_with_the_answer_under_its_letter(count: int, seed: int, item: int) -> None:
    question = with_options(Question("How many?"), count, f"item-{item}", seed)
    assert question.choices is not None
    assert len(set(question.choices)) == 4
    assert question.choices[LETTERS.index(str(question.letter))] == str(count)
    assert set(question.choices) - {str(count)} <= set("1234567")
    assert question == with_options(Question("How many?"), count, f"item-{item}", seed)


def test_letters_are_spread_evenly() -> None:
    letters = [with_options(Question("?"), 2, f"i{n}", 0).letter for n in range(400)]
    assert all(70 <= letters.count(letter) <= 130 for letter in LETTERS)


def test_json_in_which_a_number_is_too_long_does_not_end_in_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(vip_file(1)).replace('"answer": "1"', '"answer": ' + "1" * 5000))
    with pytest.raises(VisualHeadsError):
        read_questions_files([path])
