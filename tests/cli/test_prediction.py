"""`visual-heads scores`, `fit` and `predict`, as they are typed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lmms_visual_heads.cli.fit import fit
from lmms_visual_heads.cli.predict import predict
from lmms_visual_heads.cli.scores import scores
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import PREDICTION_COLUMNS
from lmms_visual_heads.tables import HeadTable, HeadTableWriter, read_scores, write_scores
from tests.builders import synthetic
from tests.builders.paths import SAMPLES as ALL_SAMPLES

SAMPLES = ALL_SAMPLES / "lmms_eval"

app = typer.Typer()
app.command()(scores)
app.command()(fit)
app.command()(predict)


def run(*arguments: str | Path) -> tuple[str, str]:
    """Standard output and error of a command that must not fail."""
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def save(table: HeadTable, folder: Path) -> Path:
    path = folder / f"{table.model.replace('/', '__')}.heads.parquet"
    with HeadTableWriter(path, table.metadata) as writer:
        writer.append(table.frame)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: heads of fitted models, heads of a new one, scores, lineages."""
    root = tmp_path_factory.mktemp("user")
    made = synthetic.world(6, 2)
    for table in made.tables:
        save(table, root / ("new" if "lineage5" in table.model else "heads"))
    write_scores(made.scores, root / "scores.csv")
    lines = ["model,lineage", *(f"{model},{lineage}" for model, lineage in made.lineages.items())]
    (root / "lineages.csv").write_text("\n".join(lines))
    run(
        "fit",
        "--heads",
        root / "heads",
        "--scores",
        root / "scores.csv",
        "--out",
        root / "predictor.skops",
        "--lineages",
        root / "lineages.csv",
    )
    return root


def test_scores(tmp_path: Path) -> None:
    out, err = run("scores", SAMPLES, "--out", tmp_path / "scores.csv")
    assert "1 scores (1 models, 1 benchmarks)" in out
    assert "Choose with --metric mystery_two=METRIC" in err
    assert read_scores(tmp_path / "scores.csv")["benchmark"].tolist() == ["scenes_existence"]
    run("scores", SAMPLES, "--metric", "mystery_two=other:100", "--out", tmp_path / "scores.csv")
    assert len(read_scores(tmp_path / "scores.csv")) == 2


def test_fit_shows_error_and_baseline_side_by_side(folder: Path, tmp_path: Path) -> None:
    out, err = run(
        "fit",
        "--heads",
        folder / "heads",
        "--scores",
        folder / "scores.csv",
        "--out",
        tmp_path / "p",
        "--lineages",
        folder / "lineages.csv",
    )
    assert "baseline" in out
    assert "scenes_digit" in out
    assert "5 separate trainings: below 15 no coverage of 90% can be certified" in out
    assert "models with scores but no heads: runs/lineage5-step0, runs/lineage5-step1" in err
    assert (tmp_path / "p").exists()


def test_predict_as_a_table(folder: Path) -> None:
    out, _ = run("predict", folder / "predictor.skops", "--heads", folder / "new")
    assert "runs/lineage5-step0" in out
    assert "90% interval" in out
    assert "baseline" in out
    assert "few_lineages: fitted on fewer than 15 separate trainings" in out
    assert "Fitted on 10 checkpoints of 5 trainings" in out


def test_predict_as_csv_and_json(folder: Path) -> None:
    heads = sorted((folder / "new").iterdir())
    arguments = ("predict", folder / "predictor.skops", "--heads", heads[0], "--heads", heads[1])
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv")[0])))
    records = json.loads(run(*arguments, "--format", "json")[0])
    assert list(rows[0]) == list(records[0]) == list(PREDICTION_COLUMNS)
    assert [float(row["predicted"]) for row in rows] == [record["predicted"] for record in records]
    assert len(records) == 6
    assert all(record["low"] <= record["predicted"] <= record["high"] for record in records)


def test_known_scores(folder: Path) -> None:
    arguments = ("predict", folder / "predictor.skops", "--heads", folder / "new", "--format", "json")
    records = json.loads(run(*arguments, "--known", folder / "scores.csv")[0])
    assert {record["flags"] for record in records} == {"known"}


def test_another_world_is_refused_unless_forced(folder: Path, tmp_path: Path) -> None:
    import numpy as np

    large = synthetic.metadata("big/model", parameters=7_000_000_000)
    path = save(HeadTable.from_frame(synthetic.head_rows(np.random.default_rng(0)), large), tmp_path)
    with pytest.raises(VisualHeadsError, match="big/model is from another world: its language model has 7,000,000,000"):
        run("predict", folder / "predictor.skops", "--heads", path)
    out, _ = run("predict", folder / "predictor.skops", "--heads", path, "--force")
    assert "forced:other_size" in out


def test_an_output_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VisualHeadsError, match="that can be written is required"):
        run("scores", SAMPLES, "--out", tmp_path / "file" / "scores.csv")
    with pytest.raises(VisualHeadsError, match="that can be written is required"):
        run("fit", "--heads", folder / "heads", "--scores", folder / "scores.csv", "--out", tmp_path / "file" / "p")
