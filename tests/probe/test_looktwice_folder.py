"""The data folder: made from a server or a folder, stopped and gone on with, opened with checks; the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lmms_visual_heads.cli import main
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice import build_folder, open_folder, read_image
from lmms_visual_heads.probe.looktwice.folder import SCHEMA_VERSION, draw_box
from lmms_visual_heads.probe.looktwice.summary import Summary
from tests.builders.looktwice import QUICK, SIZE, HostileServer, facts, fill, image_bytes, pointqa_file, vip_file, write

N = 8


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HostileServer(N) as running:
        yield running


@pytest.fixture
def questions(tmp_path: Path) -> str:
    return str(write(tmp_path / "pointQA_twice_test.json", vip_file(N)))


def build(out: Path, questions: str, server: HostileServer | None = None, **more: Any) -> Summary:
    if server is not None:
        more["image_url"] = server.image_url
    return build_folder(out, [questions], patience=QUICK, quiet=True, **more)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_folder_holds_questions_images_and_facts(server: HostileServer, questions: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = build(out, questions, server)
    assert (summary.n_scenes, summary.fetched, summary.complete) == (N, N, True)
    assert set(snapshot(out)) == {
        "dataset.json",
        "questions.jsonl",
        *(f"images/{facts(i)['image']}.jpg" for i in range(N)),
    }
    opened = open_folder(out)
    assert opened.facts["schema_version"] == SCHEMA_VERSION
    assert opened.facts["split"] == "test"
    assert opened.facts["counts"]["images"] == N
    assert opened.facts["source"]["questions"][0]["name"] == "pointQA_twice_test.json"
    assert str(tmp_path) not in (out / "dataset.json").read_text()
    for kind in ("general", "obj", "super"):
        documents = opened.documents(kind)
        for number, document in enumerate(documents):
            known = facts(number)
            assert document["item_id"] == f"looktwice-{known['image']}-0"
            assert document["answer"] == str(known["count"])
            assert document["pointed_box"] == known["box"]
            assert document["object_boxes"] is None
            assert document["question"] == known.get(kind, "How many of these are there?")
            assert "choices" not in document
        assert opened.documents(f"{kind}_visual") == [document | {"with_box": True} for document in documents]


def test_the_named_folder_of_an_image_is_asked_first(server: HostileServer, questions: str, tmp_path: Path) -> None:
    build(tmp_path / "out", questions, server)
    assert server.asked == [server.path(number) for number in range(N)]


def test_without_a_named_folder_both_are_asked(server: HostileServer, tmp_path: Path) -> None:
    path = write(tmp_path / "looktwiceqa_dataset.json", pointqa_file(2))
    build(tmp_path / "out", str(path), server)
    name = facts(0)["image"]
    assert server.asked == [f"/VG_100K_2/{name}.jpg", f"/VG_100K/{name}.jpg", server.path(1)]


def test_another_run_fetches_only_what_is_missing_or_damaged(
    server: HostileServer, questions: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(out, questions, server)
    before = snapshot(out)
    images = sorted((out / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(image_bytes(1)[:-30])
    (out / "images" / f"{images[2].name}.part").write_bytes(b"left behind by a killed run")
    server.asked.clear()
    summary = build(out, questions, server)
    assert server.asked == [server.path(0), server.path(1)]
    assert (summary.kept, summary.fetched, summary.repaired) == (N - 2, 2, 1)
    assert snapshot(out) == before


def test_a_stopped_run_keeps_what_is_whole(server: HostileServer, questions: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.behave(server.path(3), "stall")
    script = (
        "from lmms_visual_heads.cli import main; import sys;"
        f"main(['data', 'looktwice', '--out', {str(out)!r}, '--questions', {questions!r},"
        f" '--image-url', {server.image_url!r}, '--timeout', '30', '--quiet'])"
    )
    running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    while server.path(3) not in server.asked:
        assert running.poll() is None
    running.send_signal(2)
    _, text = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "are kept, and the same command goes on" in text
    assert "Traceback" not in text
    assert set(snapshot(out)) == {f"images/{facts(i)['image']}.jpg" for i in range(3)}
    server.behave(server.path(3), "ok")
    server.asked.clear()
    assert build(out, questions, server).kept == 3
    assert server.asked == [server.path(number) for number in range(3, N)]


def test_images_that_the_server_does_not_have_are_named_and_left_out(
    server: HostileServer, questions: str, tmp_path: Path
) -> None:
    del server.files[server.path(2)]
    summary = build(tmp_path / "out", questions, server)
    name = f"{facts(2)['image']}.jpg"
    assert summary.complete
    assert summary.not_there == [name]
    assert f"1 images are not on the server (404), left out: {name}." in summary.sentences()
    assert len(open_folder(tmp_path / "out").documents("obj")) == N - 1


def test_a_failing_image_leaves_the_folder_incomplete_until_it_is_there(
    server: HostileServer, questions: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    server.behave(server.path(2), "truncate")
    assert not build(out, questions, server).complete
    with pytest.raises(VisualHeadsError, match=r"A complete folder is required; .* lacks 1 images"):
        open_folder(out)
    assert build(out, questions, server, allow_missing=True).complete
    assert len(open_folder(out).documents("obj")) == N - 1
    server.behave(server.path(2), "ok")
    assert build(out, questions, server).fetched == 1
    assert len(open_folder(out).documents("obj")) == N


def test_a_server_that_fails_for_every_image_ends_the_run_early(
    server: HostileServer, questions: str, tmp_path: Path
) -> None:
    for number in range(1, N):
        server.behave(server.path(number), 500)
        server.behave(server.path(number).replace("VG_100K_2", "VG_100K"), 500)
    with pytest.raises(VisualHeadsError, match=r"5 images in a row .* 1 of 8 images are in .* again to go on"):
        build(tmp_path / "out", questions, server)


def test_no_network_ends_the_run_at_once(questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HostileServer(0) as gone:
        url = gone.image_url
    with pytest.raises(VisualHeadsError, match=r"2 images in a row could not be fetched, .*no connection"):
        build(tmp_path / "out", questions, image_url=url)
    with pytest.raises(VisualHeadsError, match=r"The question file could not be fetched: .*Name a local copy"):
        build_folder(tmp_path / "out", [url.replace("{folder}/{image_id}.jpg", "q.json")], patience=QUICK, quiet=True)


def test_question_file_and_split_list_come_from_a_server_once(server: HostileServer, tmp_path: Path) -> None:
    server.files["/data/looktwiceqa_dataset.json"] = json.dumps(pointqa_file(N)).encode()
    server.files["/data/looktwiceqa_val_imgs.json"] = json.dumps([facts(1)["image"], facts(4)["image"]]).encode()
    server.behave("/data/looktwiceqa_dataset.json", "html", "truncate", "ok")
    url = f"{server.address}/data/looktwiceqa_dataset.json"
    summary = build(tmp_path / "out", url, server, split="val")
    assert (summary.split, summary.n_scenes, summary.n_records) == ("val", 2, N)
    asked = len(server.asked)
    assert build(tmp_path / "out", url, server, split="val").kept == 2
    assert len(server.asked) == asked
    assert open_folder(tmp_path / "out").facts["source"]["questions"][0]["name"] == url


def test_splits_of_the_published_file(tmp_path: Path) -> None:
    images = fill(tmp_path / "vg", N)
    path = write(tmp_path / "looktwiceqa_dataset.json", pointqa_file(N))
    everything = build(tmp_path / "out", str(path), images=images)
    assert (everything.split, everything.n_scenes) == ("all", N)
    assert "No list of a split lies beside the question file" in everything.sentences()[-1]
    with pytest.raises(
        VisualHeadsError, match=r"--split train needs a list of its images; .*train_imgs\.json is not there"
    ):
        build(tmp_path / "out", str(path), images=images, split="train")
    write(tmp_path / "looktwiceqa_test_imgs.json", [facts(i)["image"] for i in (5, 0, 2)])
    test = build(tmp_path / "out", str(path), images=images)
    assert (test.split, test.n_scenes) == ("test", 3)
    assert build(tmp_path / "out", str(path), images=images, split="all").n_scenes == N
    own = write(tmp_path / "mine.json", [int(facts(7)["image"])])
    assert build(tmp_path / "out", str(path), images=images, split_file=str(own)).n_scenes == 1
    write(own, ["1"])
    with pytest.raises(VisualHeadsError, match="has none of the images"):
        build(tmp_path / "out", str(path), images=images, split_file=str(own))
    write(own, {"a": 1})
    with pytest.raises(VisualHeadsError, match="must be a JSON list of image ids"):
        build(tmp_path / "out", str(path), images=images, split_file=str(own))


def test_a_file_of_one_split_is_not_taken_for_another(questions: str, tmp_path: Path) -> None:
    images = fill(tmp_path / "vg", N)
    with pytest.raises(VisualHeadsError, match="holds the test split"):
        build(tmp_path / "out", questions, images=images, split="train")
    assert build(tmp_path / "out", questions, images=images, split="test").split == "test"


def test_a_limit_is_seeded_stable_and_fetches_only_its_images(
    server: HostileServer, questions: str, tmp_path: Path
) -> None:
    build(tmp_path / "a", questions, server, limit=3, seed=1)
    assert len(server.asked) == 3
    build(tmp_path / "b", questions, server, limit=3, seed=1)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    build(tmp_path / "c", questions, server, limit=3, seed=2)
    items = [[d["item_id"] for d in open_folder(tmp_path / name).documents("obj")] for name in "ac"]
    assert items[0] != items[1]


def test_images_from_a_local_folder(questions: str, tmp_path: Path) -> None:
    images = fill(tmp_path / "vg", N - 1)
    flat = images / f"{facts(N - 1)['image']}.jpg"
    shutil.copy(images / "VG_100K" / f"{facts(0)['image']}.jpg", flat)
    summary = build(tmp_path / "out", questions, images=images)
    assert (summary.copied, summary.fetched, summary.complete) == (N, 0, True)
    shutil.rmtree(images)
    opened = open_folder(tmp_path / "out")
    assert read_image(tmp_path / "out", opened.documents("obj")[0]).size == SIZE


def test_a_local_folder_that_lacks_an_image_says_which(questions: str, tmp_path: Path) -> None:
    images = fill(tmp_path / "vg", N)
    name = f"{facts(3)['image']}.jpg"
    next(images.rglob(name)).unlink()
    broken = next(images.rglob(f"{facts(4)['image']}.jpg"))
    broken.write_bytes(b"<html></html>")
    summary = build(tmp_path / "out", questions, images=images)
    assert not summary.complete
    assert summary.not_fetched[name] == f"{name} is not in {images}"
    assert "is an HTML page" in summary.not_fetched[broken.name]
    assert set((tmp_path / "out" / "images").iterdir()).isdisjoint({tmp_path / "out" / "images" / broken.name})


def test_a_local_folder_first_and_a_server_for_the_rest(server: HostileServer, questions: str, tmp_path: Path) -> None:
    summary = build(tmp_path / "out", questions, server, images=fill(tmp_path / "vg", 5))
    assert (summary.copied, summary.fetched) == (5, N - 5)


def test_boxes_are_checked_against_the_image(server: HostileServer, tmp_path: Path) -> None:
    records = vip_file(5)
    records[0]["bboxes"] = [[-3, 5, 50, 40]]
    records[1]["bboxes"] = [[200, 100, 300, 200]]
    records[2]["width"], records[2]["height"] = 500, 375
    records[3]["point"] = [79, 200]
    path = str(write(tmp_path / "q_test.json", records))
    summary = build(tmp_path / "out", path, server)
    assert (summary.n_scenes, summary.clipped) == (2, 1)
    reasons = " ".join(summary.left_out)
    assert "the box (200, 100, 300, 200) lies outside the image of 80 x 60 pixels" in reasons
    assert "the image must have 500 x 375 pixels; it has 80 x 60" in reasons
    assert "the point (79, 200) lies outside the image of 80 x 60 pixels" in reasons
    assert "record 2 (id pointQA_twice-1), image 2400001.jpg" in reasons
    assert open_folder(tmp_path / "out").documents("obj")[0]["pointed_box"] == [0, 5, 50, 40]
    only_bad = str(write(tmp_path / "bad.json", records[1:2]))
    with pytest.raises(VisualHeadsError, match=r"No scene is left: record 1 .* lies outside the image"):
        build(tmp_path / "bad", only_bad, server)


def test_four_options_give_letters(questions: str, tmp_path: Path) -> None:
    images = fill(tmp_path / "vg", N)
    build(tmp_path / "out", questions, images=images, answers="options", seed=4)
    general, obj = (open_folder(tmp_path / "out").documents(kind) for kind in ("general", "obj"))
    for number, document in enumerate(obj):
        assert document["choices"]["ABCD".index(document["answer"])] == str(facts(number)["count"])
        assert document["choices"] == general[number]["choices"]
    build(tmp_path / "again", questions, images=images, answers="options", seed=4)
    assert open_folder(tmp_path / "again").documents("obj") == obj
    build(tmp_path / "again", questions, images=images, answers="options", seed=5)
    assert open_folder(tmp_path / "again").documents("obj") != obj


def test_a_file_of_one_question_type_makes_one_task(tmp_path: Path) -> None:
    records = [{key: value for key, value in record.items() if key != "super_question"} for record in vip_file(N)]
    for record in records:
        del record["general_question"]
    path = str(write(tmp_path / "q.json", records))
    build(tmp_path / "out", path, images=fill(tmp_path / "vg", N))
    opened = open_folder(tmp_path / "out")
    assert len(opened.documents("obj")) == N
    with pytest.raises(VisualHeadsError, match=r"Questions of the type super are required; .* has only obj"):
        opened.documents("super_visual")


def test_a_second_run_on_the_same_folder_is_refused(questions: str, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(VisualHeadsError, match="Another run is filling"):
            build(out, questions, images=fill(tmp_path / "vg", N))


@pytest.fixture
def made(questions: str, tmp_path: Path) -> Path:
    build(tmp_path / "out", questions, images=fill(tmp_path / "vg", N))
    return tmp_path / "out"


def change(made: Path, **changes: Any) -> None:
    known = json.loads((made / "dataset.json").read_text())
    write(made / "dataset.json", known | changes)


def test_a_folder_that_was_tampered_with_is_refused(made: Path) -> None:
    open_folder(made)
    image = next((made / "images").iterdir())
    whole = image.read_bytes()
    image.unlink()
    image.write_bytes(whole[:-1])
    with pytest.raises(VisualHeadsError, match=r"1 of 8 images in .* are missing or changed, such as images/24"):
        open_folder(made)
    image.write_bytes(whole)
    lines = (made / "questions.jsonl").read_text()
    (made / "questions.jsonl").write_text(lines.replace("people", "horses"))
    with pytest.raises(VisualHeadsError, match=r"is not the file that dataset.json describes"):
        open_folder(made)
    (made / "questions.jsonl").unlink()
    with pytest.raises(VisualHeadsError, match=r"questions\.jsonl cannot be read"):
        open_folder(made)
    change(made, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(VisualHeadsError, match=f"up to schema version {SCHEMA_VERSION}; .* Update lmms-visual-heads"):
        open_folder(made)
    change(made, format="other")
    with pytest.raises(VisualHeadsError, match="is not the description of a LookTwice-QA folder"):
        open_folder(made)
    (made / "dataset.json").write_text("{")
    with pytest.raises(VisualHeadsError, match=r"dataset\.json cannot be read"):
        open_folder(made)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VisualHeadsError, match=r"VHEAD_DATA must name a folder .* is no folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(VisualHeadsError, match=r"has no dataset\.json"):
        open_folder(tmp_path)


def test_an_image_that_changes_during_a_run_is_refused(made: Path) -> None:
    document = open_folder(made).documents("obj")[0]
    path = made / document["image"]
    path.unlink()
    with pytest.raises(VisualHeadsError, match="cannot be read"):
        read_image(made, document)
    path.write_bytes(image_bytes(0, (60, 80)))
    with pytest.raises(VisualHeadsError, match="must have 80 x 60 pixels; it has 60 x 80"):
        read_image(made, document)
    with pytest.raises(VisualHeadsError, match="An image of the folder is required"):
        read_image(made, document | {"image": "images/../../secret.jpg"})


def test_swapped_images_are_found_out(made: Path) -> None:
    """Two pictures of one size under each other's names: the checksum that was written is checked when it is read."""
    documents = {document["image"]: document for document in open_folder(made).documents("obj")}
    first, second = sorted(documents)[:2]
    for name, seed in ((first, 1), (second, 2)):
        (made / name).unlink()
        (made / name).write_bytes(image_bytes(seed + 100, tuple(documents[name]["image_size"])))
    with pytest.raises(VisualHeadsError, match=r"is not the image that dataset\.json describes: its checksum differs"):
        read_image(made, documents[first])


def test_only_the_tools_own_unfinished_files_are_removed(questions: str, tmp_path: Path, server: HostileServer) -> None:
    mine = [tmp_path / "thesis.part", tmp_path / "film" / "scene.part", tmp_path / "film" / "images" / "a.part"]
    left = [tmp_path / "images" / "1.jpg.part", tmp_path / "questions.jsonl.part"]
    for path in mine + left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    build_folder(tmp_path, [questions], image_url=server.image_url, patience=QUICK, quiet=True)
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in left)


def test_a_password_in_an_address_is_kept_nowhere(questions: str, tmp_path: Path, server: HostileServer) -> None:
    secret = server.image_url.replace("http://", "http://anna:geheim@")
    build_folder(tmp_path, [questions], image_url=secret, patience=QUICK, quiet=True)
    facts = (tmp_path / "dataset.json").read_text()
    assert "geheim" not in facts
    assert "http://***@" in facts
    for address in (
        "http://anna:geheim@127.0.0.1:9/{image_id}.jpg",
        "ftp://anna:geheim@x/{image_id}",
        "http://a:geheim@x/1.jpg",
    ):
        with pytest.raises(VisualHeadsError) as refusal:
            build_folder(tmp_path / "new", [questions], image_url=address, patience=QUICK, quiet=True)
        assert "geheim" not in str(refusal.value)


def test_the_limit_on_pixels_is_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_visual_heads.probe.looktwice import images

    monkeypatch.setattr(images, "LARGEST_PIXELS", 5_000)
    for size, whole in (((50, 100), True), ((50, 101), False), ((100, 150), False)):
        path = tmp_path / f"{size[1]}.png"
        Image.new("RGB", size).save(path)
        if whole:
            assert images.check_image(path).size == size
        else:
            with pytest.raises(VisualHeadsError, match="of at most 5,000 pixels"):
                images.check_image(path)


def test_the_frame_lies_around_the_box_and_inside_the_image() -> None:
    image = Image.new("RGB", (336, 200), (9, 9, 9))
    drawn = draw_box(image, (50, 60, 100, 90))
    red = [(x, y) for x in range(336) for y in range(200) if drawn.getpixel((x, y)) == (255, 0, 0)]
    assert (min(red), max(red)) == ((47, 57), (102, 92))
    assert not [(x, y) for x, y in red if 50 <= x < 100 and 60 <= y < 90]
    assert len(red) == 56 * 36 - 50 * 30
    assert image.getpixel((48, 60)) == (9, 9, 9)
    edge = draw_box(image, (0, 0, 336, 200))
    assert edge.getpixel((0, 0)) == edge.getpixel((335, 199)) == (255, 0, 0)
    assert draw_box(Image.new("RGB", (3, 3)), (1, 1, 2, 2)).getpixel((0, 0)) == (255, 0, 0)


BAD_ARGUMENTS = [
    (["--answers", "letters"], "--answers must be one of short, options"),
    (["--split", "test-dev"], "--split must be one of train, val, test, all"),
    (["--image-url", "ftp://x/{image_id}"], "must begin with http"),
    (["--image-url", "http://x/image.jpg"], "needs the place {image_id}"),
    (["--image-url", "http://x/{image_id}/{size}"], "no others"),
    (["--images", "none"], "--images needs a folder"),
    (["--questions", "none.json"], "is none of them"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_ARGUMENTS)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], sentence: str, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = fill(tmp_path / "vg", 1)
    given = ["--questions", questions] if "--questions" not in arguments else []
    given += ["--images", str(images)] if "--images" not in arguments else []
    with pytest.raises(SystemExit) as caught:
        main(["data", "looktwice", "--out", str(tmp_path / "out"), *given, *arguments])
    assert caught.value.code == 1
    text = capsys.readouterr().err
    assert sentence in text
    assert text.count("\n") == 1


def test_the_command_says_what_it_did(
    server: HostileServer, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = [
        "data",
        "looktwice",
        "--out",
        out,
        "--questions",
        questions,
        "--image-url",
        server.image_url,
        "--retries",
        "0",
    ]
    server.behave(server.path(1), 503)
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 1
    text = capsys.readouterr().err
    assert "1 images could not be had, such as 2400001.jpg" in text
    assert "Run the same command again" in text
    server.behave(server.path(1), "ok")
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 0
    written = capsys.readouterr()
    assert f"{N} scenes of the test split" in written.out
    assert f"Images: 1 fetched, 0 from the local folder, {N - 1} there already." in written.out
    assert f"VHEAD_DATA={out}" in written.out
    assert "Visual Genome images" in written.err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_folder_that_cannot_be_written_is_one_sentence(questions: str, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(VisualHeadsError, match="--out needs a folder that can be written"):
        build(tmp_path / "locked" / "out", questions, images=fill(tmp_path / "vg", 1))


def test_out_that_is_a_file_is_one_sentence(questions: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(VisualHeadsError, match="--out needs a folder that can be written"):
        build(tmp_path / "out", questions, images=fill(tmp_path / "vg", 1))
