"""How `make test` shares its work: a file's tests stay in one process, both processes work, the slowest files start first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.builders import slowest_first
from tests.builders.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
RECORDING = """
import json, os, time
import pytest

@pytest.fixture(scope="module", autouse=True)
def made_once(request):
    write({"fixture": "made_once", "file": request.node.nodeid})

@pytest.fixture(autouse=True)
def recorded(request):
    write({"test": request.node.nodeid, "file": request.node.nodeid.split("::")[0]})
    yield
    time.sleep(0.02)

def write(record):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps({"process": os.getpid(), **record}) + "\\n")
"""
TESTS_OF_A_FILE = """
import pytest

@pytest.mark.parametrize("number", range(NUMBER))
def test_one(number):
    pass

class TestMore:
    def test_two(self):
        pass
"""


def options() -> list[str]:
    """What the Makefile gives to pytest."""
    (words,) = re.findall(r"^PYTEST := \$\(BIN\)/python -m pytest (.+)$", MAKEFILE, re.MULTILINE)
    return str(words).split()


SLOW = slowest_first.SLOWEST[0]
FILES = (*(f"tests/{letter}/test_{letter}.py" for letter in "abyz"), SLOW)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A small suite run as `make test` would: which process did what, in order."""
    folder = tmp_path_factory.mktemp("suite")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(TESTS_OF_A_FILE.replace("NUMBER", "2" if name == SLOW else "4"))
    (folder / "conftest.py").write_text(RECORDING)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", slowest_first.__name__, *options(), "."]
    # A worker that runs this test was told things in PYTEST_…; plugins that are not needed would be half of the time.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "RECORD": str(folder / "record.jsonl"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{5 * len(FILES) - 2} passed" in done.stdout
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def test_tests_of_one_file_run_in_one_process_and_two_processes_work(records: list[dict[str, Any]]) -> None:
    """As the demo's must, whose runs are made by a fixture of their module."""
    processes = {name: {one["process"] for one in records if one["file"] == name} for name in FILES}
    assert {len(of_file) for of_file in processes.values()} == {1}
    assert len(set.union(*processes.values())) == 2
    assert sorted(one["file"] for one in records if "fixture" in one) == sorted(FILES)


def test_the_slowest_file_starts_first_wherever_it_stands(records: list[dict[str, Any]]) -> None:
    process = next(one["process"] for one in records if one["file"] == SLOW)
    assert next(one["file"] for one in records if one["process"] == process) == SLOW


def test_every_name_in_the_list_of_slow_files_is_a_file() -> None:
    assert slowest_first.missing() == []


def test_both_targets_share_their_work_in_this_way_and_leave_out_no_test() -> None:
    recipes = dict(re.findall(r"^(test|test-lab):.*\n\t(.+)$", MAKEFILE, re.MULTILINE))
    assert recipes == {"test": "$(PYTEST) $(TESTS)", "test-lab": "$(PYTEST) tests/lab"}
    assert re.findall(r"^TESTS := (.+)$", MAKEFILE, re.MULTILINE) == ["tests --ignore=tests/lab"]
    ran = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make check", "make demo", "make test", "make test-lab"} <= set(ran)
