"""What the predictor is given: paths as the command reads them; heads alone and old arguments work, and warn where they stand."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from lmms_visual_heads import BenchmarkPredictor, VisualHeadsError, read_measurements
from lmms_visual_heads.cli import app
from lmms_visual_heads.demo.measured import measured_folder

FOLDER = measured_folder()
SCORES, LINEAGES = FOLDER / "scores.csv", FOLDER / "lineages.csv"


@pytest.fixture(scope="module")
def fitted() -> BenchmarkPredictor:
    return BenchmarkPredictor(methods=("probe_heads", "own_confidence")).fit(FOLDER, SCORES, groups=LINEAGES)


def test_a_folder_predicts_what_the_command_prints(fitted: BenchmarkPredictor, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "p.skops")
    typed = ["predict", str(path), "--heads", str(FOLDER), "--known", str(SCORES), "--format", "csv"]
    printed = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert printed.exit_code == 0
    frame = pd.read_csv(io.StringIO(printed.stdout), keep_default_na=False)
    pd.testing.assert_frame_equal(fitted.predict(FOLDER, known_scores=SCORES), frame)
    typed = typed[:4] + typed[-2:]
    frame = pd.read_csv(io.StringIO(CliRunner().invoke(app, typed).stdout), keep_default_na=False)
    assert (frame["method"] == "own_confidence").any(), "answers beside the heads are used"
    pd.testing.assert_frame_equal(fitted.predict(FOLDER), frame)


def test_heads_alone_and_old_arguments_warn_at_the_line_that_gives_them(fitted: BenchmarkPredictor) -> None:
    measurements = read_measurements(FOLDER)
    heads, beside = measurements.heads, measurements.without_heads()
    expected = fitted.predict(FOLDER)
    for call in (
        lambda: fitted.predict(heads, measured=beside),
        lambda: fitted.predict(heads, None, False, beside),
        lambda: BenchmarkPredictor(methods=fitted.methods).fit(heads, SCORES, LINEAGES, beside).predict(FOLDER),
    ):
        with pytest.warns(DeprecationWarning, match="earlier one") as warned:
            pd.testing.assert_frame_equal(call(), expected)
        assert {warning.filename for warning in warned} == {__file__}
    for call in (lambda: fitted.predict(heads), lambda: fitted.predict([heads]), lambda: fitted.beliefs(heads)):
        with pytest.warns(DeprecationWarning, match=r"Measurements\(heads=head_profiles\)") as warned:
            call()
        assert {warning.filename for warning in warned} == {__file__}
    with pytest.warns(DeprecationWarning, match=r"Measurements\(heads=head_profiles\)"):
        BenchmarkPredictor(methods=("probe_heads",)).fit(heads, SCORES, groups=LINEAGES)


def test_answers_alone_are_refused_in_a_sentence(fitted: BenchmarkPredictor) -> None:
    with pytest.raises(VisualHeadsError, match=r"Head tables are required; .* came without any"):
        fitted.predict(FOLDER / "own")
