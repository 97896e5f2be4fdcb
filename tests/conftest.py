"""Shared fixtures. Offline; property tests draw the same examples on every machine and have no time limit of their own."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

pytest_plugins = ["tests.tiny"]
