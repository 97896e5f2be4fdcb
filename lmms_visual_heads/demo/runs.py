"""The demo's runs of lmms-eval, and those behind the shipped measurements: which tasks, how many prompts, which passes."""

from __future__ import annotations

PROBE = "vhead"
BENCHMARKS = "scenes"
BENCHMARK_PROMPTS = 64
"""Prompts of each benchmark that a checkpoint answers, labels unused: what others' answers are compared with."""
BENCHMARK_ARGUMENTS = {"control_tasks": "scenes_*", "image_control": "swap+blank", "knockout": "all+layers+heads"}
"""Arguments of that run: every prompt with another picture and with none, and with heads knocked out."""
