"""VHEAD_DATA puts the real data under the names of the vhead tasks, in lmms-eval itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lmms_eval.api.model import lmms
from lmms_eval.tasks import TaskManager

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import plugin, tasks
from lmms_visual_heads.probe.looktwice import build_folder
from tests.builders.lmms_tasks import answers, run
from tests.builders.looktwice import QUICK, SIZE, facts, fill, vip_file, write

N = 5
WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def folder(place: Path, **more: Any) -> Path:
    questions = write(place / "pointQA_twice_test.json", vip_file(N))
    build_folder(place / "out", [str(questions)], images=fill(place / "vg", N), patience=QUICK, quiet=True, **more)
    return place / "out"


def task(name: str) -> Any:
    plugin.register()
    return TaskManager("ERROR", include_defaults=False).load_task_or_group(name)[name]


class Oracle(lmms):
    """Answers what it was told; keeps what it was asked."""

    def __init__(self, replies: list[str]) -> None:
        super().__init__()
        self.replies = replies
        self.prompts: list[str] = []
        self.images: list[Any] = []

    def generate_until(self, requests: Any) -> list[str]:
        for request in requests:
            context, _, doc_to_visual, doc_id, name, split = request.args
            self.prompts.append(context)
            self.images += doc_to_visual(self.task_dict[name][split][doc_id])
        return [self.replies[request.args[3]] for request in requests]

    def loglikelihood(self, requests: Any) -> list[Any]:
        raise AssertionError("not used")

    def generate_until_multi_round(self, requests: Any) -> list[str]:
        raise AssertionError("not used")


def test_tasks_read_the_folder_and_score_numbers_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHEAD_DATA", str(folder(tmp_path)))
    plugin.register()
    model = Oracle(["1", "two", "There are 3.", "5", "5"])
    results = run(model, ["vhead_super"])
    assert results["results"]["vhead_super"]["exact_match,none"] == pytest.approx(0.8)
    assert model.prompts == [facts(number)["super"] + WORD for number in range(N)]
    assert {(image.mode, image.size) for image in model.images} == {("RGB", SIZE)}
    assert len(answers(results, "vhead_super")) == N
    documents = task("vhead_super").test_docs()
    assert documents[1]["item_id"] == f"looktwice-{facts(1)['image']}-0"
    assert documents[1]["pointed_box"] == facts(1)["box"]


def test_the_visual_task_differs_only_by_the_red_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHEAD_DATA", str(folder(tmp_path)))
    plain, visual = task("vhead_obj").test_docs()[2], task("vhead_obj_visual").test_docs()[2]
    assert {key for key in plain if plain[key] != visual[key]} == {"with_box"}
    [before], [after] = tasks.doc_to_visual(plain), tasks.doc_to_visual(visual)
    left, top, right, bottom = plain["pointed_box"]
    for x in range(SIZE[0]):
        for y in range(SIZE[1]):
            frame = left - 1 <= x < right + 1 and top - 1 <= y < bottom + 1
            frame &= not (left <= x < right and top <= y < bottom)
            assert after.getpixel((x, y)) == ((255, 0, 0) if frame else before.getpixel((x, y)))


def test_options_ask_for_a_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHEAD_DATA", str(folder(tmp_path, answers="options")))
    documents = task("vhead_general").test_docs()
    letters = [document["answer"] for document in documents]
    model = Oracle([letters[0], f"{letters[1]}. 4", f"({letters[2]})", "no idea", letters[4].lower()])
    results = run(model, ["vhead_general"])
    assert results["results"]["vhead_general"]["exact_match,none"] == pytest.approx(0.8)
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", documents[0]["choices"], strict=True))
    assert model.prompts[0] == f"How many of these are there?{options}{LETTER}"


def test_the_drawn_benchmarks_stay_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHEAD_DATA", str(folder(tmp_path)))
    document = task("scenes_position").test_docs()[0]
    assert tasks.doc_to_visual(document)[0].size == (336, 336)
    assert tasks.doc_to_text(document, {"post_prompt": "!"}).endswith("!")
    monkeypatch.delenv("VHEAD_DATA")
    assert tasks.doc_to_visual(task("vhead_obj").test_docs()[0])[0].size == (336, 336)


def test_a_bad_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHEAD_DATA", str(tmp_path / "none"))
    with pytest.raises(VisualHeadsError, match="VHEAD_DATA must name a folder made by visual-heads data looktwice"):
        task("vhead_obj")


def test_a_folder_that_is_forgotten_in_the_middle_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHEAD_DATA", str(folder(tmp_path)))
    document = task("vhead_obj").test_docs()[0]
    monkeypatch.delenv("VHEAD_DATA")
    with pytest.raises(VisualHeadsError, match="VHEAD_DATA, which is no longer set"):
        tasks.doc_to_visual(document)
