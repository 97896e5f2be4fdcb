"""What starting costs: the plugin's share of lmms-eval's own start, and a run's memory beside the model."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PLUGIN = """
import time
import lmms_eval.models
from importlib.metadata import entry_points
from lmms_eval.models import registry_v2
(ours,) = [point for point in entry_points(group="lmms_eval.models") if point.module.startswith("lmms_visual_heads")][:1]
started = time.perf_counter()
payload = ours.load()
_ = payload() if callable(payload) else payload
print(time.perf_counter() - started)
"""


def test_the_plugin_adds_at_most_50_ms_to_the_start_of_lmms_eval() -> None:
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", PLUGIN], capture_output=True, text=True, check=True, cwd=ROOT)
        seconds.append(float(done.stdout.splitlines()[-1]))
    assert statistics.median(seconds) < 0.05, seconds


def test_a_run_ten_times_as_long_does_not_need_ten_times_the_memory() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import memory
    finally:
        sys.path.pop(0)
    short, long = memory.measured(150, 40, 40), memory.measured(1500, 40, 40)
    assert long["documents"] == 10 * short["documents"]
    assert long["growth_mib"] < 400
    assert long["growth_mib"] < 5 * short["growth_mib"]
