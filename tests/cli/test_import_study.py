"""`visual-heads import-study`: the study's files become head profiles of another world; what cannot be used is named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lmms_visual_heads.checkpoints.published_heads import read_study
from lmms_visual_heads.cli import main
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles, read_profiles
from lmms_visual_heads.prediction import BenchmarkPredictor
from tests.builders import synthetic

LAYERS, HEADS, DOCUMENTS = 3, 4, 1500


def put(folder: Path, name: str, tensor: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensor, folder / name)
    return folder / name


def attention(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two models, two splits; the second model without regions and without concentration."""
    root = tmp_path / "visual-head"
    for seed, split in enumerate(("pope", "visual-general")):
        image = attention(seed, DOCUMENTS, LAYERS, HEADS)
        put(root / "one" / split, "imatt_sum.pt", image)
        put(root / "one" / split, "reatt_sum.pt", image / 2)
        put(root / "one" / split, "imatt_concen.pt", image * 7)
        put(root / "two" / split, "imatt_sum.pt", image.to(torch.bfloat16))
    return root


def run(*arguments: object) -> None:
    main(["import-study", *map(str, arguments)])


def test_means_are_those_of_the_files(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study.profiles.parquet"
    with pytest.raises(SystemExit) as ended:
        run(study, "--out", out)
    assert ended.value.code == 0
    profiles = read_profiles(out)
    assert profiles.models == ["one", "two"]
    assert len(profiles.frame) == 2 * 2 * LAYERS * HEADS
    own = profiles.frame.query("model == 'one' and task == 'study_pope'").sort_values(["layer", "head"])
    expected = attention(0, DOCUMENTS, LAYERS, HEADS).numpy().astype(float).mean(axis=0)
    np.testing.assert_allclose(own["image_attention"].to_numpy().reshape(LAYERS, HEADS), expected, rtol=1e-5)
    np.testing.assert_allclose(own["region_attention"].to_numpy().reshape(LAYERS, HEADS), expected / 2, rtol=1e-5)
    assert (own["n_documents"] == DOCUMENTS).all()
    theirs = pd.read_csv(tmp_path / "study.concentration.csv")
    assert set(theirs["model"]) == {"one"}
    first = theirs.query("split == 'pope'")["study_concentration"].to_numpy().reshape(LAYERS, HEADS)
    np.testing.assert_allclose(first, 7 * expected, rtol=1e-5)
    assert "2 models, 4 splits" in capsys.readouterr().out


def test_what_is_not_ours_stays_out_and_the_world_is_marked(study: Path, tmp_path: Path) -> None:
    profiles = imported(study, tmp_path)
    for column in ("concentration", "focus", "visual_head_score", "newline_attention", "sink_attention", "region_lift"):
        assert profiles.frame[column].isna().all()
    assert profiles.frame.query("model == 'two'")["region_attention"].isna().all()
    document = profiles.metadata_by_model["one"]
    assert document["world"] == "study"
    assert document["query"] == "first_generated"
    assert {task: entry["fingerprint"] for task, entry in document["tasks"].items()} == {
        "study_pope": "study:pope",
        "study_visual-general": "study:visual-general",
    }


def imported(study: Path, tmp_path: Path) -> HeadProfiles:
    out = tmp_path / "some.profiles.parquet"
    with pytest.raises(SystemExit) as ended:
        run(study, "--out", out)
    assert ended.value.code == 0
    return read_profiles(out)


@pytest.mark.parametrize("force", [False, True])
def test_a_predictor_of_the_probe_refuses_them(study: Path, tmp_path: Path, force: bool) -> None:
    made = synthetic.world(6, 2, seed=3)
    fitted = BenchmarkPredictor().fit(HeadProfiles.from_tables(made.tables), made.scores, made.lineages)
    with pytest.raises(VisualHeadsError, match=r"needs heads on .*; one has none on .*Run lmms-eval"):
        fitted.predict(imported(study, tmp_path), force=force)


def test_another_fingerprint_is_another_world(study: Path, tmp_path: Path) -> None:
    """Even under the names of the probe's tasks."""
    made = synthetic.world(6, 2, seed=3)
    fitted = BenchmarkPredictor().fit(HeadProfiles.from_tables(made.tables), made.scores, made.lineages)
    profiles = imported(study, tmp_path).only(["one"])
    task, *others = fitted.world_.fingerprints
    renamed = profiles.frame[profiles.frame["task"] == "study_pope"]
    frame = pd.concat([renamed.assign(task=name) for name in (task, *others)], ignore_index=True)
    document = dict(profiles.metadata_by_model["one"])
    document["tasks"] = {name: document["tasks"]["study_pope"] for name in (task, *others)}
    with pytest.raises(VisualHeadsError, match=r"one is from another world: its data of .* have another fingerprint"):
        fitted.predict(HeadProfiles(frame, {"one": document}))


def test_missing_values_are_counted_out_and_rounding_is_cut(tmp_path: Path) -> None:
    tensor = torch.full((4, LAYERS, HEADS), 0.5)
    tensor[0, 0, 0] = float("nan")
    tensor[:, 1, 1] = float("nan")
    tensor[:, 2, 2] = 1.004
    put(tmp_path / "m" / "mm", "imatt_sum.pt", tensor)
    (one,), notes = read_study(tmp_path)
    assert not notes
    assert one.n_documents[0, 0] == 3
    assert one.n_documents[1, 1] == 0
    assert one.image_attention[0, 0] == 0.5
    assert np.isnan(one.image_attention[1, 1])
    assert one.image_attention[2, 2] == 1.0


@pytest.mark.parametrize("part", [".", "one", "one/pope"])
def test_any_level_of_the_data_set_can_be_named(study: Path, part: str) -> None:
    found, _ = read_study(study / part)
    assert ("one", "pope") in {(split.model, split.split) for split in found}


def test_a_mean_alone_is_taken_as_one_document(tmp_path: Path) -> None:
    put(tmp_path / "m" / "mm", "imatt_sum.pt", attention(0, LAYERS, HEADS))
    (one,), _ = read_study(tmp_path)
    assert (one.n_documents == 1).all()


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo run > /dev/null",)


def whole(path: Path) -> bytes:
    return path.read_bytes()


def cut_old_format(path: Path) -> None:
    torch.save(torch.rand(5, LAYERS, HEADS), path, _use_new_zipfile_serialization=False)
    path.write_bytes(whole(path)[:-100])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: p.write_bytes(pickle.dumps(_Code(), protocol=2)), "wants to run code"),
        (lambda p: torch.save({"a": _Code()}, p), "wants to run code"),
        (lambda p: p.write_bytes(whole(p)[: len(whole(p)) // 2]), "truncated or damaged"),
        (lambda p: p.write_bytes(b"<html>not found</html>"), "truncated or damaged"),
        (lambda p: cut_old_format(p), "truncated or damaged"),
        (lambda p: p.write_bytes(b""), "truncated or damaged"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "only a Git LFS pointer"),
        (lambda p: torch.save(torch.rand(4), p), "layers x heads, are required; .* has 4"),
        (lambda p: torch.save(torch.rand(2, 5, LAYERS, HEADS), p), "are required; .* has 2 x 5 x 3 x 4"),
        (lambda p: torch.save(torch.rand(0, LAYERS, HEADS), p), "are required; .* has 0 x 3 x 4"),
        (lambda p: torch.save(torch.rand(5, LAYERS, HEADS) + 3, p), "a share from 0 to 1"),
        (lambda p: torch.save(torch.full((5, LAYERS, HEADS), float("inf")), p), "finite or missing"),
        (lambda p: torch.save({"a": torch.rand(3)}, p), "holds a dict"),
        (lambda p: torch.save(torch.ones(5, LAYERS, HEADS, dtype=torch.int64), p), "holds a tensor of torch.int64"),
    ],
)
def test_a_bad_file_is_named_and_the_rest_goes_on(study: Path, damage: object, sentence: str) -> None:
    damage(study / "two" / "pope" / "imatt_sum.pt")  # type: ignore[operator]
    found, notes = read_study(study)
    assert len(found) == 3
    assert len(notes) == 1
    with pytest.raises(VisualHeadsError, match=sentence):
        raise VisualHeadsError(notes[0])
    with pytest.raises(VisualHeadsError, match=sentence):  # alone, it is the error
        read_study(study / "two" / "pope")


def test_known_models_have_their_own_number_of_heads(tmp_path: Path) -> None:
    name = "llava-1.5-llama-3-8b"
    put(tmp_path / name / "mm", "imatt_sum.pt", attention(0, 2, 24, 32))
    with pytest.raises(VisualHeadsError, match=r"are 32 x 32 \(layers x heads\); .* has 2 x 24 x 32"):
        read_study(tmp_path)
    put(tmp_path / name / "mm", "imatt_sum.pt", attention(0, 2, 32, 32))
    assert read_study(tmp_path)[0][0].image_attention.shape == (32, 32)


def test_splits_of_a_model_agree_in_shape(study: Path) -> None:
    put(study / "one" / "seed", "imatt_sum.pt", attention(0, 2, LAYERS + 1, HEADS))
    found, notes = read_study(study)
    assert len(found) == 4
    assert "3 x 4 (layers x heads)" in notes[0]


def test_a_region_above_the_image_has_another_unit(study: Path) -> None:
    put(study / "one" / "pope", "reatt_sum.pt", torch.ones(DOCUMENTS, LAYERS, HEADS))
    found, notes = read_study(study)
    assert found[0].region_attention is None
    assert "must be part of the image's" in notes[0]


def test_nothing_there(study: Path, tmp_path: Path) -> None:
    with pytest.raises(VisualHeadsError, match=r"is not one\. Download the data set"):
        read_study(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VisualHeadsError, match=r"imatt_sum\.pt are required; .* has none"):
        read_study(tmp_path / "empty")
    (study / "two" / "pope" / "imatt_sum.pt").rename(study / "two" / "pope" / "reatt_sum.pt")
    assert "lacks imatt_sum.pt" in read_study(study)[1][0]
    put(tmp_path / "twice" / "a" / "m" / "mm", "imatt_sum.pt", attention(0, 2, 3, 4))
    put(tmp_path / "twice" / "b" / "m" / "mm", "imatt_sum.pt", attention(0, 2, 3, 4))
    with pytest.raises(VisualHeadsError, match="m/mm lies in"):
        read_study(tmp_path / "twice")


def test_errors_on_the_command_line_are_one_sentence(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(study, "--out", tmp_path / "study.parquet")
    assert ended.value.code == 1
    assert "ends in .profiles.parquet" in capsys.readouterr().err
    (study / "two" / "pope" / "imatt_sum.pt").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        run(study, "--out", tmp_path / "study.profiles.parquet")
    assert ended.value.code == 0
    assert "left out: The study's files must be whole" in capsys.readouterr().err
