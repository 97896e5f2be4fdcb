"""Where things lie: the checkout, the samples in the tests, and ../shared, which may be missing."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "samples"
SHARED = ROOT.parent / "shared"
ORACLE = SHARED / "oracle"
