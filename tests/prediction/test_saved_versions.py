"""Files of earlier versions: every method in them predicts what the version that wrote it predicted, and a newer file is named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.serialization import PREDICTOR_VERSION
from tests.builders.paths import SAMPLES


def test_every_method_of_a_file_of_version_2_predicts_what_it_did() -> None:
    """Beyond the chosen method: ridge, pooled ridge, Gaussian process and trees, at two rows inside their fitted ranges."""
    predictor = BenchmarkPredictor.load(SAMPLES / "predictor_2.skops")
    expected = pd.read_csv(SAMPLES / "predictor_2_methods.csv")
    rows = []
    for benchmark, method, share in expected[["benchmark", "method", "share"]].itertuples(index=False):
        fitted = predictor.models_[benchmark][method]
        low, high = np.nan_to_num(fitted.low), np.nan_to_num(fitted.high)
        row = (low + share * (high - low))[None]
        rows.append((fitted.model.predict(row)[0], *fitted.model.intervals(row, 0.9)[0]))
    np.testing.assert_allclose(rows, expected[["predicted", "low", "high"]], rtol=1e-9)
    estimators = {
        type(fitted.model.estimator).__name__ for methods in predictor.models_.values() for fitted in methods.values()
    }
    assert estimators == {"LineageRidge", "LineageProcess", "OneBenchmark", "TreesOfBenchmark"}


def test_a_file_says_its_version_and_a_newer_one_is_refused_by_it(tmp_path: Path) -> None:
    predictor = BenchmarkPredictor.load(SAMPLES / "predictor_2.skops")
    path = predictor.save(tmp_path / "now.skops")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(content["manifest.json"])
    assert manifest["schema_version"] == PREDICTOR_VERSION == 3
    manifest["schema_version"] = PREDICTOR_VERSION + 1
    content["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(tmp_path / "newer.skops", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(VisualHeadsError, match=r"version 3 or older are required; .* has version 4\. Upgrade with"):
        BenchmarkPredictor.load(tmp_path / "newer.skops")
