"""What stands at the top of the package: names, their examples executed, and the earlier forms, which work and warn."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import lmms_visual_heads
from lmms_visual_heads import BenchmarkPredictor, VisualHeadsError, read_measurements, read_scores, write_report
from lmms_visual_heads.demo.measured import PROFILES_FILE, measured_folder
from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.features.profiles import read_profiles

FOLDER = measured_folder()


@pytest.fixture(scope="module")
def fitted() -> BenchmarkPredictor:
    return BenchmarkPredictor(methods=("probe_heads", "own_answers_free")).fit(
        FOLDER, FOLDER / "scores.csv", groups=FOLDER / "lineages.csv"
    )


@pytest.mark.parametrize("name", lmms_visual_heads.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(lmms_visual_heads, name)
    assert inspect.getdoc(value)
    assert name in dir(lmms_visual_heads)


@pytest.mark.parametrize("module", ["features.measurements", "prediction.predictor", "report.page"])
def test_examples_say_what_happens(module: str) -> None:
    found = doctest.testmod(
        importlib.import_module(f"lmms_visual_heads.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted > 0
    assert found.failed == 0


def test_a_folder_is_what_the_command_reads(fitted: BenchmarkPredictor) -> None:
    """Answers beside the heads come along: a path predicts what its measurements do, and not what heads alone say."""
    by_path = fitted.predict(FOLDER)
    pd.testing.assert_frame_equal(by_path, fitted.predict(read_measurements(FOLDER)))
    pd.testing.assert_frame_equal(by_path, fitted.predict([FOLDER / PROFILES_FILE, FOLDER / "own"]))
    heads_alone = fitted.predict(FOLDER / PROFILES_FILE)
    assert set(by_path["method"]) == {"own_answers_free"}
    assert set(heads_alone["method"]) <= {"probe_heads", "mean"}
    assert not by_path["predicted"].equals(heads_alone["predicted"])


def test_measurements_can_be_parted_and_joined() -> None:
    whole = read_measurements(FOLDER)
    parts = [whole.only([model]) for model in whole.models]
    again = Measurements.join(parts)
    assert again.models == whole.models
    assert set(again.prompts) == set(whole.prompts)
    pd.testing.assert_frame_equal(
        again.heads.frame.sort_values(list(again.heads.frame.columns[:4]), ignore_index=True),
        whole.heads.frame.sort_values(list(whole.heads.frame.columns[:4]), ignore_index=True),
    )
    assert repr(parts[0]) == "<Measurements of 1 model: heads (3 tasks), answers (5 tasks), knock-outs (5 tasks)>"
    with pytest.raises(VisualHeadsError, match="came twice"):
        Measurements.join([whole, parts[0]])


def test_earlier_forms_of_fit_and_predict_work_and_warn(fitted: BenchmarkPredictor) -> None:
    profiles = read_profiles([FOLDER / PROFILES_FILE])
    beside = read_measurements(FOLDER / "own")
    scores, groups = read_scores(FOLDER / "scores.csv"), FOLDER / "lineages.csv"
    with pytest.warns(DeprecationWarning, match=r"it is now fit\(measurements, scores"):
        old = BenchmarkPredictor(methods=fitted.methods).fit(profiles, scores, groups, beside)
    pd.testing.assert_frame_equal(old.evaluation_, fitted.evaluation_)
    known = scores[scores["benchmark"] == scores["benchmark"].iloc[0]]
    with pytest.warns(DeprecationWarning, match=r"it is now predict\(measurements"):
        said = old.predict(profiles, known=known, measured=beside)
    expected = fitted.predict(replace(beside, heads=profiles), known_scores=known)
    pd.testing.assert_frame_equal(said, expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'knwon'"):
        fitted.predict(profiles, knwon=known)


def test_earlier_readers_and_reports_work_and_warn(tmp_path: Path) -> None:
    from lmms_visual_heads.features import measured, measurements
    from lmms_visual_heads.report.page import make_report

    with pytest.warns(DeprecationWarning, match="is now"):
        read = measured.read_measured
    with pytest.warns(DeprecationWarning, match="read_measurements"):
        assert read([FOLDER]).heads is None
    with pytest.warns(DeprecationWarning, match="is now"):
        assert measured.Measured is measurements.Measurements
    profiles = read_profiles([FOLDER / PROFILES_FILE])
    with pytest.warns(DeprecationWarning, match="write_report"):
        old = make_report(tmp_path / "old", [profiles])
    new = write_report(tmp_path / "new", profiles)
    assert Path(old).read_bytes() == Path(new).read_bytes()


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((), "at least one declared method"),
        (("probe_haeds",), "Methods are .*'probe_haeds' came"),
        (("own_answers_free",), "no benchmark"),
    ],
)
def test_methods_that_cannot_be_used_are_named(methods: tuple[str, ...], words: str) -> None:
    with pytest.raises(VisualHeadsError, match=words):
        BenchmarkPredictor(methods=methods).fit(FOLDER / PROFILES_FILE, FOLDER / "scores.csv")


def test_a_model_without_evidence_gets_the_mean_with_its_own_interval() -> None:
    measurements = read_measurements(FOLDER)
    asked = measurements.models[0]
    others = measurements.only(measurements.models[1:])
    predictor = BenchmarkPredictor(methods="own_answers_free").fit(
        others, FOLDER / "scores.csv", groups=FOLDER / "lineages.csv"
    )
    rows = predictor.predict(measurements.heads.only([asked]))
    assert (rows["predicted"] == rows["baseline"]).all()
    assert set(rows["method"]) == {"mean"}
    assert rows["flags"].str.contains("missing").all()
    assert ((rows["high"] - rows["low"]) > 20).all()


def test_objects_say_what_they_are(fitted: BenchmarkPredictor) -> None:
    assert repr(fitted) == "<BenchmarkPredictor fitted on 22 models of 9 trainings for 5 benchmarks>"
    assert re.match(r"BenchmarkPredictor\(level=0\.8\)", repr(BenchmarkPredictor(level=0.8)))
