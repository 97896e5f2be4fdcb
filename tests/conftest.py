"""Shared fixtures. Offline; property tests draw the same examples on every machine and have no time limit of their own."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the suite in its background ignores Ctrl-C for it, and so would every process that the tests stop by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.builders.tiny", "tests.builders.slowest_first"]
