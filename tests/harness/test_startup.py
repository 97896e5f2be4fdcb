"""What starting costs: `visual-heads --help`, and the plugin's share of lmms-eval's own start."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from tests.builders.paths import ROOT

PLUGIN = """
import importlib.metadata, json, tempfile, time

point_class = importlib.metadata.EntryPoint
load = point_class.load

def not_ours(point):
    if point.value.startswith("lmms_visual_heads"):
        raise ImportError("left out")
    return load(point)

point_class.load = not_ours
import lmms_eval.models, lmms_eval.evaluator  # as without us
from lmms_eval.tasks import TaskManager
point_class.load = load
ours = [
    point for point in importlib.metadata.entry_points(group="lmms_eval.models") if point.value.startswith("lmms_visual_heads")
]
assert ours and not hasattr(TaskManager.initialize_tasks, "_adds_visual_heads")

def least(build, times=5):
    found = []
    for _ in range(times):
        before = time.process_time()
        build()
        found.append(time.process_time() - before)
    return min(found)

tasks = lambda: TaskManager("ERROR", include_path=tempfile.mkdtemp(), include_defaults=False)
without = least(tasks)
before = time.process_time()
for point in ours:
    point.load()()
loading = time.process_time() - before
from lmms_visual_heads.harness import plugin
indexing = least(tasks) - without
folder = plugin.tasks_folder
def slow():
    end = time.process_time() + 0.06
    while time.process_time() < end:
        pass
    return folder()
plugin.tasks_folder = slow
print(json.dumps({"loading": loading, "indexing": indexing, "slowed down": loading + least(tasks, 2) - without}))
"""


def test_the_plugin_adds_at_most_50_ms_to_the_start_of_lmms_eval() -> None:
    """Processor time, so that other work on the machine does not count: loading both models' entries, indexing our tasks."""
    done = subprocess.run([sys.executable, "-c", PLUGIN], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds = json.loads(done.stdout.splitlines()[-1])
    assert 0 < seconds["loading"] + seconds["indexing"] < 0.05, seconds
    assert seconds["slowed down"] > 0.05, "a plugin that is too slow would be found"


def test_help_takes_less_than_half_a_second() -> None:
    """Processor time of the least of three starts."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).parent / "visual-heads", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(seconds) < 0.5, seconds
