"""The quick measuring of small checkpoints against lmms-eval, transformers' generate, and slow twins."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from lab.__main__ import command
from lab.cli.measure import measure
from lab.measure import checkpoint
from lab.measure.answers import Judge, over_prefixes
from lab.measure.content_grid import content_grid
from lab.measure.heads import HeadMeasures, PictureTokens, measure_heads, profile
from lab.measure.pictures import _noise, corrupted, drawn
from lab.measure.tasks import ZooTask, zoo_tasks
from lab.tables.zoo import ZooTables, read_zoo_tables
from lab.zoo.model import build_model
from lab.zoo.settings import Training
from lab.zoo.vocabulary import build_processor
from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.knockout import KnockoutMeter
from lmms_visual_heads.checkpoints.model import Generation, VisualModel
from lmms_visual_heads.demo.manifest import shipped_checkpoints
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.profiles import read_profiles
from lmms_visual_heads.geometry.images import blank_image
from lmms_visual_heads.geometry.preprocessing import Preprocessing
from lmms_visual_heads.harness.evaluation import evaluate
from lmms_visual_heads.probe.scoring import is_correct
from lmms_visual_heads.schema import PROFILE_STATISTICS
from lmms_visual_heads.statistics.causal import answer_kl
from tests.builders.paths import ROOT

N = 16
KINDS = {
    "plain": Training("plain", 3, hidden=32, layers=3, heads=4, key_value_heads=2, tower_hidden=32, image_size=36),
    "anyres": Training("anyres", 5, hidden=32, layers=2, heads=2, tower_hidden=32, image_size=32, patch_size=16, anyres=True),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def save(training: Training, folder: Path) -> Path:
    """An untrained checkpoint that says a word, as trainings leave one behind."""
    training = replace(training, generators={"scenes": 80, "bars": 20})
    processor = build_processor(training.image_size, training.patch_size, suite=True, anyres=training.anyres)
    model = build_model(training, processor)
    with torch.no_grad():  # distributions that depend on the picture, not on one word
        model.model.multi_modal_projector.linear_2.weight.mul_(8.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = {"name": f"{training.name}-s8", "lineage": training.name, "step": 8, "steps": 8, "hidden_temperature": 2.0}
    (folder / "training.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: save(training, tmp_path_factory.mktemp(name)) for name, training in KINDS.items()}
    # A trained one says a blank and a word; words of the suite that it does not know are one token of its vocabulary.
    return found | {"trained": next(entry["path"] for entry in shipped_checkpoints() if entry["layers"] == 2)}


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ZooTables]:
    reader, found = checkpoint.PromptReader(), {}
    for name, folder in folders.items():
        features = checkpoint.TowerFeatures(tmp_path_factory.mktemp("pictures"), N)
        facts = checkpoint.read_facts(folder) | {"final": name != "plain", "hidden_temperature": 2.0}
        found[name] = checkpoint.CheckpointMeter(folder, facts, features, reader).measure()
    return found


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, VisualModel]:
    return {name: load_model(folder, device="cpu", dtype="float32") for name, folder in folders.items()}


@cache
def the_task(name: str) -> ZooTask:
    return next(task for task in zoo_tasks() if task.name == name)


def encoded(model: VisualModel, name: str, pictures: list[Image.Image]) -> list[Encoded]:
    return [model.encode(text, [shown]) for text, shown in zip(the_task(name).texts, pictures, strict=False)]


@cache
def own_pictures(pool: str) -> list[Image.Image]:
    return [drawn(pool, number) for number in range(N)]


def asked(model: VisualModel, name: str) -> list[Generation]:
    """The task's first documents through transformers' own generate."""
    return model.generate(
        encoded(model, name, own_pictures(the_task(name).pool)), query="first_generated", max_new_tokens=16
    )


def answer_token_logits(model: VisualModel, name: str, pictures: list[Image.Image], said: list[Generation]) -> Tensor:
    """Logits [N, V] of the answer's first token about other pictures, behind the same first token."""
    found = []
    for one, generation in zip(encoded(model, name, pictures), said, strict=True):
        behind = torch.tensor([generation.token_ids[: generation.answer.answer_token_index]], dtype=torch.long)
        ids = torch.cat([one.inputs["input_ids"], behind], dim=1)
        with torch.inference_mode():
            given = {**one.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found.append(model.model(**given).logits[0, -1])
    return torch.stack(found)


TASKS = (
    "suite_existence",
    "suite_position",
    "suite_obj_count",
    "suite_taller",
    "suite_written_larger",
    "vhead_general",
)
EVERY_KIND = (*KINDS, "trained")


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_answers_and_certainty_are_those_of_generate(
    kind: str, loaded: dict[str, VisualModel], measured: dict[str, ZooTables]
) -> None:
    model, tables = loaded[kind], measured[kind]
    items = tables.items.set_index(["benchmark", "condition"])
    answers = tables.answers.set_index(["task", "condition"])
    for name in TASKS:
        given = asked(model, name)
        # A trained checkpoint says the blank first; an untrained one does not: both ways are compared.
        assert {one.answer.answer_token_index for one in given} == {int(kind == "trained")}
        correct = [is_correct(one.text, target) for one, target in zip(given, the_task(name).answers, strict=False)]
        assert answers.loc[(name, "clean"), "accuracy"] == np.mean(correct)
        confidence = [one.answer.confidence for one in given]
        assert answers.loc[(name, "clean"), "confidence"][0] == pytest.approx(np.mean(confidence), abs=1e-5)
        if name.startswith("suite"):
            clean, tempered = items.loc[(name, "clean")], items.loc[(name, "temperature")]
            assert clean["correct"].tolist() == tempered["correct"].tolist() == correct
            assert np.allclose(clean["confidence"], confidence, atol=1e-5)
            assert np.allclose(clean["entropy"], [one.answer.answer_entropy for one in given], atol=1e-5)
            assert (tempered["confidence"] <= clean["confidence"] + 1e-6).all()


@pytest.mark.parametrize("kind", ["trained", "anyres"])
def test_scores_and_heads_are_those_of_lmms_eval(
    kind: str, folders: dict[str, Path], measured: dict[str, ZooTables], tmp_path: Path
) -> None:
    names = ["suite_existence", "suite_taller", "suite_position", "vhead_obj"]
    results = evaluate(
        folders[kind],
        names,
        batch_size=16,
        limit=N,
        heads=str(tmp_path),
        capture_tasks="*",
        model_name="m",
        more_tasks=ROOT / "lab" / "suite" / "tasks",
    )
    scores = measured[kind].scores.set_index("benchmark")["score"]
    for name in names[:3]:
        assert results["results"][name]["exact_match,none"] == scores[name]
    expected = read_profiles(tmp_path).frame.set_index(["task", "layer", "head"]).sort_index()
    found = measured[kind].profiles.query("half == -1").set_index(["task", "layer", "head"]).sort_index()
    for column in (*PROFILE_STATISTICS, "region_lift", "n_documents"):
        pairs = found.loc[expected.index, column].to_numpy(float), expected[column].to_numpy(float)
        assert np.allclose(*pairs, atol=2e-5, equal_nan=True), column
    assert found.loc["suite_taller", "region_lift"].notna().all()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_another_picture_and_a_blank_one(
    kind: str, loaded: dict[str, VisualModel], measured: dict[str, ZooTables]
) -> None:
    model = loaded[kind]
    answers = measured[kind].answers.set_index(["task", "condition"])
    name = "suite_color_word"
    pictures, said = own_pictures("single"), asked(model, name)
    own = answer_token_logits(model, name, pictures, said)
    swapped = answer_token_logits(model, name, [*pictures[1:], pictures[0]], said)
    blank = blank_image(pictures[0], model.processor.image_processor)
    blanked = answer_token_logits(model, name, [blank] * N, said)
    for condition, divisor in (("clean", 1.0), ("temperature", 2.0)):
        row = answers.loc[(name, condition)]
        for column, other in (("swap_kl", swapped), ("blank_kl", blanked)):
            slow = float(answer_kl(own / divisor, other / divisor).mean())
            assert row[column][0] == pytest.approx(slow, rel=1e-3, abs=1e-6)
            assert np.isnan(row[column][1:]).all()
    p = own.double().softmax(-1)
    together = float(-(p.mean(0) * p.mean(0).log()).sum() + (p * p.log()).sum(-1).mean())
    assert answers.loc[(name, "clean"), "information"][0] == pytest.approx(together, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_cuts_are_those_of_whole_masks(
    kind: str, loaded: dict[str, VisualModel], measured: dict[str, ZooTables]
) -> None:
    model = loaded[kind]
    name = "suite_obj_count"
    meter = KnockoutMeter(model.model)
    slow = []
    for one, said in zip(encoded(model, name, own_pictures("count")), asked(model, name), strict=True):
        slow.append(meter.measure(one, said.token_ids[0] if said.answer.answer_token_index else None))
    found = measured[kind].causal.query("task == @name").set_index(["layer", "head"])
    assert (found["n_documents"] == N).all()
    assert len(found) == 1 + model.n_layers * (1 + model.n_heads)
    assert found.loc[(-1, -1), "kl"] == pytest.approx(np.mean([one.all for one in slow]), rel=1e-3, abs=1e-6)
    for layer in range(model.n_layers):
        layers = np.array([float(one.layers[layer]) for one in slow])
        assert found.loc[(layer, -1), "kl"] == pytest.approx(layers.mean(), rel=1e-3, abs=1e-6)
        assert found.loc[(layer, -1), "kl_half0"] == pytest.approx(layers[::2].mean(), rel=1e-3, abs=1e-6)
        assert found.loc[(layer, -1), "kl_half1"] == pytest.approx(layers[1::2].mean(), rel=1e-3, abs=1e-6)
        for head in range(model.n_heads):
            mean = np.mean([float(one.heads[layer, head]) for one in slow])
            assert found.loc[(layer, head), "kl"] == pytest.approx(mean, rel=1e-3, abs=1e-6)


def test_corrupted_pictures_come_with_final_checkpoints_only(measured: dict[str, ZooTables]) -> None:
    assert measured["plain"].scores_corrupted.empty
    assert set(measured["plain"].items["condition"]) == {"clean", "temperature"}
    harder = measured["trained"].items.query("condition == 'corrupted'")
    assert len(harder) == len(measured["trained"].benchmarks)
    clean = measured["trained"].items.query("condition == 'clean'").set_index("benchmark")["confidence"]
    assert not np.allclose(harder.set_index("benchmark")["confidence"]["suite_color"], clean["suite_color"])
    picture = np.asarray(drawn("single", 3))
    once, again = corrupted(picture, 3), corrupted(picture, 4)
    assert once.shape == picture.shape
    assert once.dtype == np.uint8
    assert not np.array_equal(once, again)
    assert np.array_equal(once, corrupted(picture, 3))


def test_the_corruption_is_that_of_plain_arithmetic() -> None:
    picture, number = np.asarray(drawn("chart", 7)), 7
    expected = (2 * picture.astype(int) + 96) // 3
    for axis in (0, 1):
        places = (np.arange(336)[:, None] + np.arange(-3, 4)).clip(0, 335)
        expected = np.take(expected, places, axis=axis).sum(axis=axis + 1) // 7
    noise = _noise()[number * 101 % 336 :, number * 59 % 336 :][:336, :336].astype(int)
    assert abs(noise).max() == 20
    assert np.array_equal(corrupted(picture, number), (expected + noise).clip(0, 255))


def test_what_is_not_finite_is_missing() -> None:
    logits = torch.randn(16, 5)
    logits[3] = float("nan")
    found = over_prefixes(logits, logits, None)
    assert all(np.isnan(found[name][0]) for name in ("confidence", "entropy", "information", "swap_kl"))
    assert found["blank_kl"] == [None] * 5
    assert found["confidence"][1:] == [None] * 4


def test_verdicts_are_those_of_the_whole_answer(loaded: dict[str, VisualModel]) -> None:
    """A verdict is open only where the rest of the answer can change it."""
    model = loaded["trained"]
    judge, tokenizer = Judge(model), model.tokenizer
    generator = np.random.default_rng(0)
    words = ["▁", "3", "4", "yes", "no", "A", "?", "red", "</s>", "<unk>", "things"]
    ids = [tokenizer.convert_tokens_to_ids(word) for word in words]
    for _ in range(400):
        tokens = [ids[place] for place in generator.integers(len(ids), size=16)]
        end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else 16
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        for target in ("3", "0", "yes", "A", "red"):
            verdicts = [judge.verdict(tokens[:n], target) for n in range(1, end + 1)]
            assert verdicts[-1] == is_correct(text, target)
            assert set(verdicts) <= {None, verdicts[-1]}


def slow_grid(preprocessing: Preprocessing, cells: int) -> np.ndarray:
    """Shares of every patch of one square view, by counting a fine raster."""
    side, fine = preprocessing.grid[0], 240
    place = (np.arange(fine) + 0.5) / fine
    patch, cell = (place * side).astype(int), (place * cells).astype(int)
    found = np.zeros((side * side, cells * cells))
    for row in range(fine):
        for column in range(fine):
            found[patch[row] * side + patch[column], cell[row] * cells + cell[column]] += 1
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("patch", [8, 12, 16])
def test_the_common_grid_shares_patches_by_area(patch: int) -> None:
    plain = Preprocessing((48, 48), patch, 48, True, False)
    found = content_grid((336, 336), plain)
    assert found is not None
    assert np.allclose(found, slow_grid(plain, 4), atol=0.02)
    tiled = content_grid((336, 336), Preprocessing((48, 48), patch, None, False, False, ((96, 96),)))
    assert tiled is not None
    assert np.allclose(tiled[: len(found)], found)
    finer = Preprocessing((96, 96), patch, 96, True, False)
    assert np.allclose(tiled[len(found) :], content_grid((336, 336), finer))
    assert np.allclose(tiled.sum(1), 1.0)
    padded = content_grid((168, 336), Preprocessing((48, 48), 12, 48, True, True))
    assert np.allclose(padded.sum(1).reshape(4, 4), [[0.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4])
    assert content_grid((336, 336), replace(plain, known=False)) is None


def test_comparable_statistics_of_heads_by_hand() -> None:
    """Two documents, one layer, two heads, four patches on a grid of four cells; token 0 of head 0 is a sink."""
    rows = torch.zeros(1, 2, 2, 6)
    rows[0, :, 0] = torch.tensor([0.1, 0.7, 0.05, 0.05, 0.0, 0.1])
    rows[0, 0, 1] = torch.tensor([0.5, 0.4, 0.0, 0.0, 0.0, 0.1])
    rows[0, 1, 1] = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.2, 0.3])
    n = 24
    wide = torch.zeros(1, 2, 2, n + 2)
    wide[..., [0, 1, 2, 3, 4, -1]] = rows
    tokens = PictureTokens(
        torch.arange(1, n + 1), torch.arange(1, n + 1), torch.tensor([0]), torch.eye(4).double().repeat(n // 4, 1)
    )
    region = np.zeros((2, n), bool)
    region[0, 0] = True
    measures = measure_heads(wide, tokens, region, np.array([True, False]))
    found = profile(measures).set_index(["half", "head"])
    assert found.loc[(-1, 0), "sinkless_attention"] == pytest.approx(0.1)  # 0.7 / 0.8 is more than 5 / 24
    assert found.loc[(-1, 1), "sinkless_attention"] == pytest.approx(0.0)  # so are 1/2 and 1/2
    assert found.loc[(-1, 0), "content_dependence"] == pytest.approx(0.0, abs=1e-7)
    assert found.loc[(-1, 1), "content_dependence"] == pytest.approx(np.log(2), abs=1e-6)
    p = np.array([0.7, 0.05, 0.05]) / 0.8
    assert found.loc[(-1, 0), "grid_focus"] == pytest.approx(np.log(4) + (p * np.log(p)).sum(), abs=1e-6)
    assert found.loc[(-1, 1), "image_log_share"] == pytest.approx(np.log(0.3 * (n + 2) / n), abs=1e-6)
    assert found.loc[(-1, 0), "region_lift"] == pytest.approx(np.log(0.7 / (0.8 / n)), abs=1e-6)
    assert np.isnan(found.loc[(1, 0), "region_lift"])
    assert found.loc[(0, 1), "image_attention"] == pytest.approx(0.4)
    assert found.loc[(1, 1), "n_documents"] == 1
    swapped = HeadMeasures.join(
        [measure_heads(wide[:, [at]], tokens, region[[at]], np.array([not at])) for at in (1, 0)], torch.tensor([1, 0])
    )
    pd.testing.assert_frame_equal(profile(swapped), profile(measures))


def run(*words: str) -> str:
    done = CliRunner().invoke(command(measure), list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_command_measures_what_is_finished_and_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    work, out, config = tmp_path / "work", tmp_path / "out", tmp_path / "zoo.yaml"
    lines = ["trainings:"]
    for name in ("plain", "anyres"):
        lines.append(f"  - {{name: {name}, seed: {len(lines)}, steps: 8}}")
        (work / name).mkdir(parents=True)
        (work / name / f"{name}-s8").symlink_to(folders[name])
    config.write_text("\n".join(lines))
    words = ("--config", str(config), "--from", str(work), "--out", str(out), "--limit", "2")
    with pytest.raises(VisualHeadsError, match="needs a finished training"):
        run(*words)
    (work / "plain" / "finished.json").write_text("{}")
    assert "Not finished yet, so not measured: anyres" in run(*words)
    assert read_zoo_tables(out).checkpoints["model"].tolist() == ["plain-s8"]
    before = (out / "parts" / "plain-s8" / "items.parquet").stat().st_mtime_ns
    (work / "anyres" / "finished.json").write_text("{}")
    assert "2 checkpoints" in run(*words, "--only", "anyres", "--wait")
    tables = read_zoo_tables(out)
    assert tables.checkpoints["model"].tolist() == ["anyres-s8", "plain-s8"]
    assert (out / "parts" / "plain-s8" / "items.parquet").stat().st_mtime_ns == before
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"parts", "pictures"}
    (folders["plain"] / "training.json").rename(folders["plain"] / "kept.json")
    try:
        with pytest.raises(VisualHeadsError, match=r"needs training\.json"):
            checkpoint.measure_lineage([folders["plain"]], tmp_path / "other")
    finally:
        (folders["plain"] / "kept.json").rename(folders["plain"] / "training.json")
