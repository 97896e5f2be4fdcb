"""The downloader against a hostile server: nothing half-written is ever taken for whole."""

from __future__ import annotations

import io
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice.download import Downloader, Failed, NotThere, Patience, check_address
from lmms_visual_heads.probe.looktwice.images import ImageFacts, check_image
from tests.builders.looktwice import QUICK, SIZE, HostileServer, image_bytes

LARGEST = 100_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HostileServer(2) as running:
        yield running


def fetch(server: HostileServer, target: Path, *paths: str, patience: Patience = QUICK) -> ImageFacts:
    with Downloader(patience) as downloader:
        urls = [server.address + path for path in paths or (server.path(0),)]
        return downloader.fetch(urls, target, partial(check_image, name=target.name), LARGEST)


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives(server: HostileServer, tmp_path: Path) -> None:
    facts = fetch(server, tmp_path / "1.jpg")
    assert (tmp_path / "1.jpg").read_bytes() == image_bytes(0)
    assert facts.size == SIZE
    assert facts.n_bytes == len(image_bytes(0))
    assert only(tmp_path) == ["1.jpg"]


BAD = {
    "500": "the server answered 500",
    "429": "the server answered 429",
    "stall": "the server sent nothing for 1 s",
    "drip": "the file took longer than 0.8 s",
    "truncate": "the transfer broke off",
    "announce_more": "the transfer broke off",
    "announce_less": "is cut off",
    "unannounced_half": "is cut off or damaged",
    "html": "is an HTML page",
    "damaged": "is cut off",
    "empty": "is empty",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_a_server_that_misbehaves_once_costs_one_more_attempt(
    behaviour: str, server: HostileServer, tmp_path: Path
) -> None:
    patience = Patience(retries=1, stall_seconds=1.0, file_seconds=0.8, pause_seconds=0.01)
    server.behave(server.path(0), int(behaviour) if behaviour.isdigit() else behaviour, "ok")
    fetch(server, tmp_path / "1.jpg", patience=patience)
    assert (tmp_path / "1.jpg").read_bytes() == image_bytes(0)
    assert len(server.asked) == 2
    assert only(tmp_path) == ["1.jpg"]


@pytest.mark.parametrize("behaviour", BAD)
def test_a_server_that_always_misbehaves_leaves_nothing_behind(
    behaviour: str, server: HostileServer, tmp_path: Path
) -> None:
    patience = Patience(retries=1, stall_seconds=1.0, file_seconds=0.8, pause_seconds=0.01)
    server.behave(server.path(0), int(behaviour) if behaviour.isdigit() else behaviour)
    with pytest.raises(Failed, match="2 attempts, the last one: .*" + BAD[behaviour]) as caught:
        fetch(server, tmp_path / "1.jpg", patience=patience)
    assert caught.value.answered
    assert len(server.asked) == 2
    assert only(tmp_path) == []


def test_an_older_whole_file_survives_a_failure(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(image_bytes(7))
    server.behave(server.path(0), "truncate")
    with pytest.raises(Failed):
        fetch(server, tmp_path / "1.jpg")
    assert (tmp_path / "1.jpg").read_bytes() == image_bytes(7)


def test_a_missing_file_is_looked_for_at_the_next_address_without_retries(
    server: HostileServer, tmp_path: Path
) -> None:
    fetch(server, tmp_path / "1.jpg", "/VG_100K_2/none.jpg", server.path(0))
    assert server.asked == ["/VG_100K_2/none.jpg", server.path(0)]
    with pytest.raises(NotThere, match=r"not on the server .*none\.jpg.*gone\.jpg"):
        fetch(server, tmp_path / "2.jpg", "/VG_100K_2/none.jpg", "/gone.jpg")


def test_a_failing_address_and_a_missing_one_are_a_failure(server: HostileServer, tmp_path: Path) -> None:
    server.behave("/first.jpg", 503)
    with pytest.raises(Failed, match="503"):
        fetch(server, tmp_path / "1.jpg", "/first.jpg", "/gone.jpg")


def test_a_refusal_is_not_repeated(server: HostileServer, tmp_path: Path) -> None:
    server.behave(server.path(0), 403)
    with pytest.raises(Failed, match="403"):
        fetch(server, tmp_path / "1.jpg")
    assert len(server.asked) == 1


def test_an_endless_or_huge_file_is_given_up(server: HostileServer, tmp_path: Path) -> None:
    server.files[server.path(0)] = b"x" * (LARGEST + 1)
    with pytest.raises(Failed, match=r"announced 100,001 bytes; at most 100,000 are accepted"):
        fetch(server, tmp_path / "1.jpg")
    assert only(tmp_path) == []


def test_no_server_is_a_failure_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HostileServer(0) as gone:
        address = gone.address
    with Downloader(QUICK) as downloader, pytest.raises(Failed, match="no connection") as caught:
        downloader.fetch([f"{address}/1.jpg", f"{address}/2.jpg"], tmp_path / "1.jpg", check_image, LARGEST)
    assert not caught.value.answered


def test_pauses_double(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("lmms_visual_heads.probe.looktwice.download.time.sleep", pauses.append)
    server.behave(server.path(0), 500, 500, 500, "ok")
    fetch(server, tmp_path / "1.jpg", patience=Patience(retries=3, pause_seconds=2.0))
    assert [longest / 2 <= pause <= longest for pause, longest in zip(pauses, (2, 4, 8), strict=True)] == [True] * 3


def test_a_stop_in_the_middle_leaves_no_part(server: HostileServer, tmp_path: Path) -> None:
    def stop(path: Path) -> None:
        assert path.name == "1.jpg.part"
        raise KeyboardInterrupt

    with Downloader(QUICK) as downloader, pytest.raises(KeyboardInterrupt):
        downloader.fetch([server.address + server.path(0)], tmp_path / "1.jpg", stop, LARGEST)
    assert only(tmp_path) == []


def test_while_it_arrives_the_file_has_another_name(server: HostileServer, tmp_path: Path) -> None:
    server.behave(server.path(0), "stall", "ok")
    seen: set[str] = set()
    worker = threading.Thread(target=fetch, args=(server, tmp_path / "1.jpg"))
    worker.start()
    while worker.is_alive():
        for path in tmp_path.iterdir():
            seen.add(path.name)
            if path.name == "1.jpg":
                assert path.read_bytes() == image_bytes(0)
        time.sleep(0.01)
    assert seen >= {"1.jpg.part"}


def test_a_folder_that_is_gone_is_one_sentence(server: HostileServer, tmp_path: Path) -> None:
    with pytest.raises(VisualHeadsError, match="A folder that can be written is required"):
        fetch(server, tmp_path / "none" / "1.jpg")


def test_unusable_network_settings_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    with Downloader(QUICK) as downloader, pytest.raises(VisualHeadsError, match="network settings"):
        downloader.fetch(["https://localhost/1.jpg"], tmp_path / "1.jpg", check_image, LARGEST)


@pytest.mark.parametrize("url", ["ftp://x/1.jpg", "file:///etc/passwd", "x.jpg", "http://", "http://[1/x"])
def test_only_web_addresses_are_accepted(url: str) -> None:
    with pytest.raises(VisualHeadsError, match="must begin with http"):
        check_address(url)


def saved(kind: str, mode: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, SIZE, 7).save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("filled_up", [False, True])
def test_every_prefix_of_an_image_is_refused(filled_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled_up)  # lmms-eval sets it in its process
    path = tmp_path / "1.jpg"
    for whole in (image_bytes(3), saved("JPEG", "L"), saved("PNG", "RGB"), saved("JPEG", "RGB", progressive=True)):
        ends = [*range(0, len(whole) - 12, 41), len(whole) - 12, len(whole) - 3, len(whole) - 2, len(whole) - 1]
        # A PNG's last chunk carries no pixels: without its checksum the picture is still whole.
        for end in [end for end in ends if end >= 0 and (whole[:2] == b"\xff\xd8" or end < len(whole) - 16)]:
            path.write_bytes(whole[:end])
            with pytest.raises(VisualHeadsError, match="A whole image is required"):
                check_image(path)
        path.write_bytes(whole)
        assert check_image(path).size == SIZE
    assert filled_up == ImageFile.LOAD_TRUNCATED_IMAGES


def test_unusual_images_are_whole(tmp_path: Path) -> None:
    for number, (kind, mode) in enumerate(
        [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "RGBA")]
    ):
        path = tmp_path / str(number)
        path.write_bytes(saved(kind, mode))
        assert check_image(path).size == SIZE
    path.write_bytes(image_bytes(1) + b"camera's own data")
    assert check_image(path).size == SIZE


def test_other_formats_and_giants_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(saved("BMP", "RGB"))
    with pytest.raises(VisualHeadsError, match="no image in JPEG, PNG or WebP"):
        check_image(path)
    giant = bytearray(saved("PNG", "1"))
    giant[16:24] = (50_000).to_bytes(4, "big") * 2
    giant[29:33] = zlib.crc32(bytes(giant[12:29])).to_bytes(4, "big")
    path.write_bytes(giant)
    with pytest.raises(VisualHeadsError, match="at most 100,000,000 pixels"):
        check_image(path)
    with pytest.raises(VisualHeadsError, match="cannot be read"):
        check_image(tmp_path)
