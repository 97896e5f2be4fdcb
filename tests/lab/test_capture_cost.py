"""The benchmarks run small, and what they measure with is right: intervals, peak memory, the stopwatch, the other ways' rows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.builders.paths import ROOT


def run(verb: str, *arguments: str, out: Path) -> pd.DataFrame:
    """One quick run of a benchmark; its table."""
    words = [sys.executable, "-m", "lab", verb, "--quick", *arguments, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (out / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert "Machine: " in page
    assert f"Remake: `python -m lab {verb} --quick" in page
    assert "<svg" in (out / "picture.svg").read_text(encoding="utf-8")
    return pd.read_csv(out / "table.csv", keep_default_na=True)


def test_capture_cost(tmp_path: Path) -> None:
    table = run("capture-cost", "--repeats", "2", out=tmp_path)
    assert set(table["method"]) == {"off", "ours", "ours, own step", "hooks", "eager"}
    assert (table["same_answer"] == "yes").all()
    ours = table[table["method"] == "ours"]
    assert len(ours) == 4
    assert ours["own_percent"].between(0, 100).all()
    notes = table[table["method"].isin(["hooks", "eager"])]["note"].str.extract(r"within (\S+)")[0].astype(float)
    assert len(notes) == 8
    assert (notes <= 1e-6).all(), "every way reads the same rows"
    eager = table[table["method"] == "eager"].set_index(["batch", "new_tokens"])["peak_mib"]
    assert (eager > 3 * ours.set_index(["batch", "new_tokens"])["peak_mib"]).all()


def test_suite_at_real_shapes_runs_small(tmp_path: Path) -> None:
    table = run("capture-cost", "--suite", "gpu", "--repeats", "2", out=tmp_path)
    assert set(table["method"]) >= {"off", "ours", "hooks", "eager"}
    reuse = pd.read_csv(tmp_path / "reuse.csv").iloc[0]
    assert reuse["answers_equal_of_3"] == 3
    assert reuse["largest_difference_of_a_row"] < 1e-5
    launches = pd.read_csv(tmp_path / "launches.csv").iloc[0]
    assert 0 < launches["off"] < launches["ours"]
    assert (pd.read_csv(tmp_path / "ceilings.csv").iloc[0][["prefill_ms", "prefill_percent_of_matrix_rate"]] > 0).all()


def test_probe_against_llava_hf(tmp_path: Path) -> None:
    table = run("probe-vs-llava-hf", "--repeats", "1", out=tmp_path)
    assert set(table["model"]) == {"visual_heads_llava", "llava_hf"}
    assert (table["empty_answers"] == 0).all()
    assert (table["equal_answers"] == "6 of 6").all(), "both answer alike, so the comparison is fair"
    assert (table[["answer_seconds", "load_seconds", "import_seconds"]] > 0).all(axis=None)


def test_scaling(tmp_path: Path) -> None:
    table = run("capture-scaling", "--repeats", "2", out=tmp_path)
    assert set(table["over"]) == {"visual tokens", "heads", "processes"}
    slopes = pd.read_csv(tmp_path / "slopes.csv").set_index(["over", "quantity"])["slope"]
    assert slopes["heads", "rows_mib"] == pytest.approx(1, abs=0.01)
    assert 0.3 < slopes["heads", "file_kib_per_document"] < 1.1


def test_interval_of_paired_ratios() -> None:
    from lab.capture_cost.timing import ratio_interval

    below = [1.0, 2.0, 4.0, 8.0, 3.0, 5.0, 7.0]
    assert ratio_interval([1.5 * value for value in below], below) == pytest.approx((1.5, 1.5, 1.5))
    middle, low, high = ratio_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 9.0], [1.0] * 7)
    assert middle == pytest.approx(1.3)
    assert 1.0 <= low < middle < high <= 9.0


def test_runs_are_interleaved_and_begin_in_turn() -> None:
    from lab.capture_cost.timing import Way, interleaved

    seen: list[str] = []
    prepared: list[str] = []
    ways = {n: Way(lambda n=n: seen.append(n), lambda n=n: prepared.append(n)) for n in "abc"}
    seconds = interleaved(ways, 3)
    assert "".join(seen) == "abcbcacab" == "".join(prepared)
    assert [len(values) for values in seconds.values()] == [3, 3, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's way of measuring")
def test_peak_counts_what_is_held_at_once() -> None:
    from lab.capture_cost.timing import Way, peak_tensor_bytes

    mebibyte = 2**20

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(8 * mebibyte, dtype=torch.uint8)

    def at_once() -> None:
        _ = [torch.zeros(8 * mebibyte, dtype=torch.uint8) for _ in range(3)]

    assert peak_tensor_bytes(Way(one_after_the_other)) == pytest.approx(8 * mebibyte, rel=0.01)
    assert peak_tensor_bytes(Way(at_once)) == pytest.approx(24 * mebibyte, rel=0.01)


def test_the_stopwatch_sees_every_part_and_goes_again() -> None:
    from lab.capture_cost.backends import Stopwatch, ways
    from lab.capture_cost.models import SHAPES, build, inputs
    from lmms_visual_heads.capture import attention

    before = attention.last_query_row
    model = build(SHAPES["tiny"], "cpu", torch.float32)
    way = ways(model, inputs(model, 1, 1), 2, ("ours",))["ours"]
    way.prepare()
    start = time.perf_counter()
    with Stopwatch() as watch:
        way.run()
    assert all(seconds > 0 for seconds in watch.seconds.values()), watch.seconds
    assert watch.total < time.perf_counter() - start
    assert attention.last_query_row is before


def test_prompts_about_one_image_differ_in_the_question_only() -> None:
    from lab.capture_cost.models import SHAPES, build, inputs

    model = build(SHAPES["tiny"], "cpu", torch.float32)
    first, second = (inputs(model, 1, 1, question=q) for q in range(2))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    different = (first["input_ids"] != second["input_ids"])[0].nonzero()[:, 0]
    assert len(different)
    assert int(different[0]) > 576


def test_a_run_five_times_as_long_does_not_need_five_times_the_memory() -> None:
    from lab.capture_cost import memory

    short, long = memory.measured(150, 40, 40), memory.measured(750, 40, 40)
    assert long["documents"] == 5 * short["documents"]
    assert long["growth_mib"] < 400
    assert long["growth_mib"] < 3 * short["growth_mib"]
