"""Head tables -> head profiles -> a short, declared row of features per checkpoint. Never imports torch."""

from __future__ import annotations

from lmms_visual_heads.features.declared import FEATURE_NAMES, FEATURES, Feature
from lmms_visual_heads.features.measurements import Measurements, as_measurements, read_measurements
from lmms_visual_heads.features.profiles import (
    PROFILES_SUFFIX,
    HeadProfiles,
    head_profile,
    read_profiles,
    write_profiles,
)
from lmms_visual_heads.features.rows import common_tasks, feature_row, feature_table

__all__ = [
    "FEATURES",
    "FEATURE_NAMES",
    "PROFILES_SUFFIX",
    "Feature",
    "HeadProfiles",
    "Measurements",
    "as_measurements",
    "common_tasks",
    "feature_row",
    "feature_table",
    "head_profile",
    "read_measurements",
    "read_profiles",
    "write_profiles",
]
