"""Disks that fail a run: folders that vanish, damaged files, no room left, no locks, signals. Nothing is lost in silence."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import processes, recording, run_facts
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.tables import HEAD_COLUMNS, files, journal
from tests.builders.lmms_tasks import InlineTask, picture, questions, run

Tiny = Callable[[str], Path]
N = 4


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk after every document, and none merged."""
    monkeypatch.setattr(journal, "FLUSH_SECONDS", 0.0)


def task() -> InlineTask:
    return InlineTask("t", [{**one, "question": "How many?"} for one in questions(N)])


def model(tiny: Tiny, folder: Path, before: Callable[[int], None] = lambda n: None, **more: Any) -> VisualHeadsLlava:
    """A model that calls `before` with the number of documents that it has answered, before every answer."""
    found = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(folder), capture_tasks="*", **more)
    generate, done = found.visual_model.generate, []

    def watched(batch: Any, **given: Any) -> Any:
        before(len(done))
        done.append(1)
        return generate(batch, **given)

    found.visual_model.generate = watched  # type: ignore[method-assign]
    return found


def stopped(tiny: Tiny, folder: Path, after: int = 3, **more: Any) -> Path:
    """The journal of a run that Ctrl-C ended after some documents."""

    def stop(n: int) -> None:
        if n == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model(tiny, folder, stop, **more), [task()])
    (left,) = folder.glob("*.run")
    return left


def tables(folder: Path) -> list[pd.DataFrame]:
    """The tables of a finished run, which has left nothing else."""
    found = sorted(folder.iterdir())
    assert [path.name.split(".", 1)[1] for path in found] == ["answers.parquet", "heads.parquet"]
    return [pd.read_parquet(path) for path in found]


UNDISTURBED: list[pd.DataFrame] = []


def assert_whole(tiny: Tiny, folder: Path) -> None:
    """The tables in `folder` are those of an undisturbed run."""
    if not UNDISTURBED:
        run(model(tiny, folder.with_name("undisturbed")), [task()])
        UNDISTURBED.extend(tables(folder.with_name("undisturbed")))
    for mine, theirs in zip(tables(folder), UNDISTURBED, strict=True):
        pd.testing.assert_frame_equal(mine, theirs)


def test_a_folder_that_vanishes_is_noticed_at_the_next_chunk(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    with pytest.raises(VisualHeadsError, match=r"was removed or replaced, and what it held is lost. Start the same"):
        run(model(tiny, folder, lambda n: shutil.rmtree(folder) if n == 3 else None), [task()])
    assert not list(tmp_path.rglob("*.parquet"))
    run(model(tiny, folder), [task()])
    assert_whole(tiny, folder)


def test_rows_that_are_gone_when_the_tables_are_written_are_not_left_out_in_silence(tiny: Tiny, tmp_path: Path) -> None:
    def lose(n: int) -> None:
        if n == 3:
            next((tmp_path / "heads").rglob("0-000002.heads.chunk")).unlink()

    with pytest.raises(VisualHeadsError, match=r"numbers of 1 documents are not \(t 1\): files in .* were removed"):
        run(model(tiny, tmp_path / "heads", lose), [task()])
    assert not list(tmp_path.rglob("*.parquet"))
    run(model(tiny, tmp_path / "heads"), [task()])
    assert_whole(tiny, tmp_path / "heads")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("0-000002.responses.jsonl", lambda path: path.write_bytes(path.read_bytes()[:-20])),
        ("0-000002.responses.jsonl", lambda path: path.write_bytes(bytes(100))),
        ("0-000002.heads.chunk", lambda path: path.write_bytes(path.read_bytes()[:-20])),
        ("0-000002.heads.chunk", lambda path: path.unlink()),
        ("0-000001.answers.chunk", lambda path: path.write_bytes(b"")),
    ],
)
def test_a_damaged_part_is_set_aside_and_measured_again(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], Any]
) -> None:
    damage(stopped(tiny, tmp_path / "heads") / name)
    asked: list[int] = []
    run(model(tiny, tmp_path / "heads", asked.append), [task()])
    assert len(asked) == N - 2
    assert "is damaged and was set aside (process 0, part" in " ".join(capsys.readouterr().err.split())
    assert_whole(tiny, tmp_path / "heads")


def test_damage_within_a_part_is_found_when_it_is_read(tiny: Tiny, tmp_path: Path) -> None:
    path = stopped(tiny, tmp_path / "heads") / "0-000002.heads.chunk"
    columns = [column.name for column in HEAD_COLUMNS]
    pages = pq.read_metadata(path).row_group(0).column(columns.index("image_attention"))
    content = bytearray(path.read_bytes())
    content[pages.data_page_offset + pages.total_compressed_size - 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(VisualHeadsError, match=r"0-000002.heads.chunk is damaged .* only what stood in it is measured"):
        run(model(tiny, tmp_path / "heads"), [task()])
    assert not list(tmp_path.rglob("*.parquet*"))
    run(model(tiny, tmp_path / "heads"), [task()])
    assert_whole(tiny, tmp_path / "heads")


@pytest.mark.parametrize(
    "what", ["0-000003.heads", "0-000003.responses", "0-000004.answers", "table.heads", "table.answers"]
)
def test_no_room_left_for_any_file_is_one_sentence(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    finalise = files.finalise

    def full(part: Path, path: Path) -> Path:
        if path.name.startswith(what):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return finalise(part, path)

    monkeypatch.setattr(journal, "MOST_CHUNKS", 3)  # the fourth file of three chunks is their merged one
    with monkeypatch.context() as patch:
        patch.setattr(files, "finalise", full)
        with pytest.raises(
            VisualHeadsError, match=r"cannot be written: No space left on device. Make room and start the"
        ):
            run(model(tiny, tmp_path / "heads"), [task()])
    assert not list(tmp_path.rglob("*.parquet*")), "half a table stayed behind"
    run(model(tiny, tmp_path / "heads"), [task()])
    assert_whole(tiny, tmp_path / "heads")


def test_ctrl_c_while_the_tables_are_written_leaves_no_half_table(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recording.AnswerTableWriter, "append_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            run(model(tiny, tmp_path / "heads"), [task()])
    assert f"{N} documents are kept" in " ".join(capsys.readouterr().err.split())
    assert [path.suffix for path in (tmp_path / "heads").iterdir()] == [".run"]
    asked: list[int] = []
    run(model(tiny, tmp_path / "heads", asked.append), [task()])
    assert not asked
    assert_whole(tiny, tmp_path / "heads")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_as_ctrl_c_does(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What clusters send half a minute before they take the machine away: nothing measured is lost, not even the last part."""
    monkeypatch.setattr(journal, "FLUSH_SECONDS", 1e9)
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and then a run ignores it, too
    with pytest.raises(SystemExit) as ended:
        run(model(tiny, tmp_path / "heads", lambda n: os.kill(os.getpid(), number) if n == 3 else None), [task()])
    assert ended.value.code == 128 + number
    said = " ".join(capsys.readouterr().err.split())
    assert f"(Stopped: {name} came). 3 documents are kept" in said
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, before)
    run(model(tiny, tmp_path / "heads"), [task()])
    assert_whole(tiny, tmp_path / "heads")


def test_a_handler_of_somebody_else_stays(tiny: Tiny, tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        run(model(tiny, tmp_path, lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == 1 else None), [task()])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert tables(tmp_path)


def test_runs_with_other_arguments_leave_each_others_journals_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    first = stopped(tiny, folder)
    second = stopped_other(tiny, folder, first)
    asked: list[int] = []
    run(model(tiny, folder, asked.append), [task()])
    assert len(asked) == N - 3
    assert not first.exists()
    assert second.exists(), "the journal of the other query is gone"


def stopped_other(tiny: Tiny, folder: Path, first: Path) -> Path:
    """The journal of a stopped run with another query beside `first`."""

    def stop(n: int) -> None:
        if n == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model(tiny, folder, stop, query="last_prompt"), [task()])
    (other,) = set(folder.glob("*.run")) - {first}
    return other


def test_a_clock_that_stands_still_or_goes_back_overwrites_no_table(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(recording.datetime):  # type: ignore[name-defined,misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1)

    monkeypatch.setattr(recording, "datetime", Clock)
    for n in (1, 2, 3):
        run(model(tiny, tmp_path), [task()])
        assert len(list(tmp_path.glob("*.heads.parquet"))) == len(list(tmp_path.glob("*.answers.parquet"))) == n


def test_where_a_disk_has_no_locks_a_second_run_is_noticed_by_its_first(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    first = model(tiny, tmp_path)
    second = model(tiny, tmp_path)
    with pytest.raises(VisualHeadsError, match="was removed or replaced"):
        run(first, [task()])
    run(second, [task()])
    assert tables(tmp_path)


def opened(folder: Path, rank: int = 0) -> journal.RunJournal:
    return journal.RunJournal(
        folder, "run", {"model": {"name": "m", "layers": 1, "heads": 1}, "query": "last_prompt"}, rank
    )


def test_a_part_that_another_process_merges_meanwhile_is_read_where_it_went(tmp_path: Path) -> None:
    """Process 1 reads what there is while process 0 goes on and merges its chunks."""
    first, second = opened(tmp_path), opened(tmp_path, 1)
    for number in range(journal.MOST_CHUNKS - 1):
        first.add_response({"task": "t", "doc_id": number})
        first.flush()
    reading = second.responses()
    found = [next(reading)["doc_id"]]
    first.add_response({"task": "t", "doc_id": journal.MOST_CHUNKS - 1})
    first.flush()  # the sixteenth: all of them become one
    found += [one["doc_id"] for one in reading]
    assert set(found) == set(range(journal.MOST_CHUNKS))


def test_processes_that_write_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    here, other = opened(tmp_path / "a"), opened(tmp_path / "a", 1)
    elsewhere = opened(tmp_path / "b", 1)
    monkeypatch.setattr(processes, "gather", lambda token: [here.token, other.token])
    processes.check_same_journal(here)
    monkeypatch.setattr(processes, "gather", lambda token: [here.token, elsewhere.token])
    with pytest.raises(VisualHeadsError, match=r"process 1 does not write into .*on a disk that all machines share"):
        processes.check_same_journal(here)


def test_processes_with_different_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"test": [{"item_id": "1", "pointed_box": [0, 0, 1, 1]}, {"item_id": "2"}]}
    real = {"test": [{"item_id": "1", "pointed_box": [0, 0, 1, 2]}, {"item_id": "2"}]}
    one, other = (run_facts.data_of({"vhead_super": data, "pope": data}) for data in (drawn, real))
    assert one["pope"] == other["pope"], "of other people's tasks only the numbers of documents are compared"
    monkeypatch.setattr(processes, "gather", lambda data: [one, one])
    processes.check_same_data(one, tmp_path)
    monkeypatch.setattr(processes, "gather", lambda data: [one, other])
    with pytest.raises(VisualHeadsError, match=r"that of task vhead_super in process 1 is not .* VHEAD_DATA alike"):
        processes.check_same_data(one, tmp_path)
    assert run_facts.data_of({"pope": {"test": iter([picture(1)])}}) == {"pope": "[]"}
