"""With several workers the slowest files start first: a long file that starts last leaves the other workers idle.

A pytest plugin. `make test` gives every file to one worker (`--dist loadfile`), in the order of collection
(`--no-loadscope-reorder`; otherwise the files with most tests come first, which are quick ones).
"""

from __future__ import annotations

import pytest

from tests.builders.paths import ROOT

SLOWEST = (
    "tests/demo/test_demo.py",
    "tests/harness/test_recovery.py",
    "tests/harness/test_faults.py",
    "tests/cli/test_command_line.py",
    "tests/prediction/test_references.py",
    "tests/lab/test_walkthrough.py",
    "tests/lab/test_study.py",
    "tests/lab/test_capture_cost.py",
)
"""Files that take longest, the longest first; `--durations` tells."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return  # in one process the folders' order reads better
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


def missing() -> list[str]:
    """Names in the list that are no files."""
    return [name for name in SLOWEST if not (ROOT / name).is_file()]
