"""The page: self-contained, escaped, no number that is not in a frame, missing shown as missing, honest when parts are missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.features.profiles import HeadProfiles, write_profiles
from lmms_visual_heads.prediction import BenchmarkPredictor
from lmms_visual_heads.prediction.flags import FLAG_WORDS
from lmms_visual_heads.report import figures, page
from lmms_visual_heads.report.inputs import PLAIN_TASKS, VISUAL_TASKS, report_models
from lmms_visual_heads.report.page import write_report
from lmms_visual_heads.report.svg import inline_svg
from lmms_visual_heads.tables import write_scores
from tests.builders import synthetic
from tests.builders.report import BENCHMARKS, FakePredictor, evaluation, predictions, profile, scores_of

PROBE = {task: {"fingerprint": "0123456789abcdef", "n_documents": 256} for task in PLAIN_TASKS}
NASTY = """bad/<script>alert("x")</script> & 'quotes' $x_1$ --> é"""


class Page(HTMLParser):
    """Tables by id as lists of cell texts, the visible text, every attribute that could fetch something, ids."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._table: list[list[str]] | None = None
        self._silent = self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self._silent = tag in ("script", "style")
        self.links += [
            str(values[name]) for name in ("href", "src", "xlink:href", "action", "srcset") if name in values
        ]
        self.ids += [str(values["id"])] if "id" in values else []
        if tag == "table":
            self._table = self.tables.setdefault(str(values.get("id", f"table{len(self.tables)}")), [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table:
            self._table[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._silent = False
        if tag == "table":
            self._table = None
        elif tag in ("td", "th") and self._table:
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        self.text.append(data)
        if self._table and self._in_cell:
            self._table[-1][-1] += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A page with everything: two scored models, two new ones of which one has a nasty name and missing heads."""
    new = ["new/one", NASTY]
    models = [
        profile("zoo/model-00", 3, 4, seed=1),
        profile("zoo/model-01", 5, 2, seed=2, lift=False),
        profile("new/one", 4, 6, seed=3, tasks=("vhead_general", "vhead_obj", "vhead_super", *VISUAL_TASKS)),
        profile(NASTY, 3, 4, seed=4, missing=True),
    ]
    made = predictions(new)
    made.loc[0, "flags"] = f"different_dtype;{NASTY}"
    scores = scores_of(made)
    scores = scores[~((scores["model"] == NASTY) & (scores["benchmark"] == BENCHMARKS[4]))]
    predictor = FakePredictor(
        evaluation(), {"models": ["zoo/model-00", NASTY], "level": 0.9, "nothing": None, "probe": PROBE}, made
    )
    out = tmp_path_factory.mktemp("full")
    report = write_report(out, models, scores, predictor, command=["visual-heads", "report", "--heads", "my heads"])
    html = report.path.read_text(encoding="utf-8")
    frames = page.build_frames(report_models(models), scores, predictor, made)
    return {
        "out": out, "html": html, "page": Page(html), "frames": frames, "models": models, "scores": scores,
        "predictor": predictor, "report": report,
    }  # fmt: skip


def shown(value: float, digits: int, signed: bool = False) -> str:
    if value is None or np.isnan(value):
        return "–"
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def test_nothing_on_the_page_comes_from_elsewhere(full):
    html = full["html"]
    without_pixels = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|ftp:|//[a-z0-9-]+\.[a-z]", without_pixels, re.IGNORECASE)
    assert "@import" not in html
    assert "url(h" not in html
    for link in full["page"].links:
        assert link.startswith(("#", "data:image/png;base64,")) or re.fullmatch(r"data/[a-z_]+\.csv", link), link
    assert not {"link", "iframe", "object", "embed", "img", "base"} & set(full["page"].tags)
    assert full["page"].tags.count("script") == 1
    for link in full["page"].links:
        if link.startswith("data/"):
            assert (full["out"] / link).is_file()


def test_names_are_data_never_markup(full):
    assert "<script>alert" not in full["html"]
    assert "<title>" in full["html"]
    text = "".join(full["page"].text)
    assert text.count(NASTY) >= 4
    assert any(NASTY in row[0] for row in full["page"].tables["table-models"])


def test_prediction_table_equals_its_frame(full):
    frame, table = full["frames"].predictions, full["page"].tables["table-predictions"]
    assert len(table) == len(frame) + 1
    for cells, row in zip(table[1:], frame.to_dict("records"), strict=True):
        assert cells[:2] == [row["model"], row["benchmark"]]
        assert cells[2:5] == [shown(row[name], 1) for name in ("predicted", "low", "high")]
        assert cells[5] == shown(row["level"], 2)
        assert cells[6:9] == [shown(row[name], 1) for name in ("baseline", "actual", "error")]
        assert cells[9] == row["flags_in_words"].strip()
    assert frame["flags_in_words"][0].startswith("measured in another dtype")


def test_a_flag_of_every_row_is_said_once(tmp_path):
    made = predictions(["a"], flags="few_lineages")
    made.loc[2, "flags"] = "few_lineages;outside_training_range"
    path = write_report(tmp_path, [profile("a")], None, FakePredictor(evaluation(), {}, made)).path
    text, cells = "".join(Page(path.read_text()).text), Page(path.read_text()).tables["table-predictions"]
    assert text.count("fitted on fewer than 15 separate trainings") == 1
    assert [row[9] for row in cells[1:]] == ["", "", FLAG_WORDS["outside_training_range"], "", ""]


def test_error_table_equals_its_frame(full):
    frame, table = full["frames"].errors, full["page"].tables["table-errors"]
    for cells, row in zip(table[1:-1], frame.to_dict("records"), strict=True):
        interval = f"({shown(row['difference_low'], 1, True)} to {shown(row['difference_high'], 1, True)})"
        assert cells == [
            row["benchmark"],
            shown(row["error"], 1),
            shown(row["baseline_error"], 1),
            f"{shown(row['difference'], 1, True)} {interval}",
            f"{row['covered']:.0f} of {row['n_intervals']}",
        ]
    assert table[-1][:3] == [
        "all",
        *(shown(full["report"].trust.numbers[name], 1) for name in ("error", "baseline_error")),
    ]


def test_model_and_head_tables_equal_their_frames(full):
    table = full["page"].tables["table-models"]
    for cells, row in zip(table[1:], full["frames"].models.to_dict("records"), strict=True):
        assert cells == [
            row["model"], shown(row["n_heads"], 0), shown(row["image_attention"], 3), shown(row["concentration"], 3),
            shown(row["focus"], 2), shown(row["largest_score"], 3), shown(row["top_layer"], 0),
            shown(row["visual_heads"], 0), shown(row["region_lift"], 2),
        ]  # fmt: skip
    tops = [rows for name, rows in full["page"].tables.items() if name.startswith("table") and rows[0][0] == "rank"]
    listed = [cells for rows in tops for cells in rows[1:]]
    for cells, row in zip(listed, full["frames"].top_heads.to_dict("records"), strict=True):
        assert cells[:9] == [
            shown(row["rank"], 0), shown(row["layer"], 0), shown(row["head"], 0), shown(row["image_attention"], 3),
            shown(row["concentration"], 3), shown(row["focus"], 2), shown(row["visual_head_score"], 3),
            shown(row["region_attention"], 3), shown(row["region_lift"], 2),
        ]  # fmt: skip
        assert cells[9] == ("visual head" if row["visual_head"] else "")


def test_frames_lie_beside_the_page_and_read_back(full):
    for name, frame in full["frames"].items():
        read = pd.read_csv(full["out"] / "data" / f"{name}.csv")
        assert list(read.columns) == list(frame.columns), name
        assert len(read) == len(frame)
        for column in frame.select_dtypes("float").columns:
            np.testing.assert_allclose(read[column], frame[column].to_numpy(float), rtol=1e-6)


def test_missing_is_a_dash_with_a_word_and_a_hatched_cell(full):
    text = "".join(full["page"].text)
    assert not re.search(r"\b(?:nan|NaN|None|NaT|inf|<NA>)\b", text)
    assert '<span class="missing" title="missing">–</span>' in full["html"]
    sections = re.split(r'<article class="model"', full["html"])[1:]
    hatched = ["<pattern" in section for section in sections]
    assert hatched == [False, False, False, True]
    assert "missing: not measured or not defined (1 head without W)" in re.sub(r"\s+", " ", text)


def test_hatch_stands_for_missing_only():
    limits = figures.Limits(0.0, 1.0)
    values = np.array([[0.0, 1.0], [0.5, np.nan]])
    assert "<pattern" in inline_svg(figures.map_figure(values, "focus", limits), "a", "t")
    assert "<pattern" not in inline_svg(figures.map_figure(np.nan_to_num(values), "focus", limits), "a", "t")


def test_ids_of_pictures_do_not_meet_and_references_resolve(full):
    ids = full["page"].ids
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"url\(#([^)]+)\)", full["html"])) | {
        h[1:] for h in full["page"].links if h.startswith("#")
    }
    assert references <= set(ids)


def test_pictures_follow_dark_mode(full):
    figure = re.search(r'<svg class="figure".*?</svg>', full["html"], re.DOTALL).group(0)
    assert "var(--" in figure
    assert "#1c2127" not in figure
    assert "prefers-color-scheme: dark" in full["html"]
    assert "@media print" in full["html"]


def test_the_words_visual_head_come_with_their_threshold(tmp_path):
    models = [profile("a", seed=1), profile("b", 4, 4, seed=2)]
    path = write_report(tmp_path, models, threshold=0.07).path
    text = re.sub(r"\s+", " ", "".join(Page(path.read_text()).text))
    assert "A visual head here is one whose mean S exceeds 0.07" in text
    assert text.count("visual heads (S > 0.07)") == 3


@pytest.mark.parametrize(
    ("description", "wanted"),
    [
        ({}, (True, None, False)),
        ({"chosen": {"a": "probe_heads", "b": "mean"}, "own_prompts": {"a": 64}}, (True, None, False)),
        ({"chosen": {"a": "own_answers_free", "b": "mean"}, "own_prompts": {"a": 64, "b": 32}}, (False, 48, False)),
        ({"chosen": {"a": "own_answers_heads"}, "own_prompts": {"a": 16}}, (True, 16, False)),
        ({"chosen": {"a": "own_answers_causal"}, "own_prompts": {"a": 16}}, (False, 16, True)),
        ({"chosen": {"a": "own_answers"}, "own_prompts": {"a": 16}}, (False, 16, True)),
        ({"chosen": {"a": "training"}, "own_prompts": {}}, (False, None, False)),
    ],
)
def test_only_what_the_chosen_methods_need_is_priced(description, wanted):
    assert page.needed(description) == wanted


def test_the_run_over_own_prompts_is_named_with_its_extra_passes():
    models = report_models([profile("a"), profile("b", seed=1)])
    answers = pd.DataFrame(
        [("a", PLAIN_TASKS[0], 256, 1.0, 1.0), ("a", "pope", 32, 0.5, None), ("a", "mmb", 32, 0.5, None), ("z", "vqa", 9, 1, 1)],
        columns=["model", "task", "n_prompts", "swap_kl", "blank_kl"],
    ).assign(confidence=0.5, entropy=0.5, information=0.1)  # fmt: skip
    causal = pd.DataFrame(
        [("a", "pope", -1, -1, 0.1), ("a", "pope", 2, 3, 0.1)], columns=["model", "task", "layer", "head", "kl"]
    )
    commands = page.words.remake_commands(models, None, True, Measurements(answers, causal=causal))
    assert commands[1] == (
        "lmms-eval --model visual_heads_llava --model_args pretrained=CKPT,heads=heads,control_tasks=mmb+pope,image_control=swap,"
        "knockout=all+heads --tasks mmb,pope --limit 32"
    )
    plain = page.words.remake_commands(models, None, True, Measurements(answers.assign(swap_kl=None, blank_kl=None)))
    assert plain[1].endswith("--model_args pretrained=CKPT,heads=heads --tasks mmb,pope --limit 32")
    assert len(page.words.remake_commands(models, None, True, Measurements())) == len(commands) - 1


def test_what_did_the_work_stands_on_the_page(full, tmp_path):
    made = predictions(["new/one"]).assign(method=["own_confidence", "own_agreement+items", "mean", "mean", "mean"])
    predictor = FakePredictor(evaluation(), {}, made)
    predictor.methods_ = pd.DataFrame(
        {
            "benchmark": BENCHMARKS,
            "method": ["own_confidence", "own_agreement", "probe_heads", "probe_heads", "probe_heads"],
            "error": [1.0, 2.0, 30.0, 31.0, 32.0],
            "baseline_error": 20.0,
            "chosen": [True, True, False, False, False],
        }
    )
    path = write_report(tmp_path, [profile("new/one")], None, predictor, made).path
    shown = Page(path.read_text())
    assert [row[1] for row in shown.tables["table-methods"][1:]] == ["1.0", "2.0", "31.0"]
    assert shown.tables["table-methods"][2][4] == BENCHMARKS[1]
    text = re.sub(r"\s+", " ", "".join(shown.text))
    assert (
        f"Predicted from the confidence on benchmark prompts ({BENCHMARKS[0]}); the answers on benchmark prompts and how often"
        in text
    )
    assert f"the mean of the fitted trainings ({', '.join(BENCHMARKS[2:])}); heads do not enter." in text
    with_heads = made.assign(method=["probe_heads", *made["method"][1:]])
    assert "heads do not enter" not in page.panels.sources(with_heads)
    assert "table-methods" not in full["html"]


def test_only_models_that_the_predictor_has_not_seen_are_predicted(full):
    assert full["predictor"].asked == ["new/one", NASTY]
    assert full["page"].tables["table-predictions"][1][0] == "new/one"


def test_the_first_words_rank_only_what_may_be_ranked(full):
    assert full["report"].trust.verdict == "better"
    assert "is predicted to do best of 2 models" in full["report"].headline
    assert full["html"].count("data-first>") == 1
    frames = full["frames"]
    close = predictions(["new/one", NASTY]).assign(low=0.0, high=100.0)
    tied = page.build_frames(report_models(full["models"]), None, full["predictor"], close)
    title = page.words.headline(report_models(full["models"]), frames.heads, tied.predictions, full["report"].trust)
    assert "too close to say which is best" in title[0]
    assert "their intervals overlap on every benchmark" in title[1]
    for noise, words in ((12.0, "not to be relied on"), (3.0, "illustration only")):
        predictor = FakePredictor(evaluation(8, 8 if noise > 5 else 3, noise=noise), {}, full["predictor"].predictions)
        made = page.build_frames(report_models(full["models"]), None, predictor, full["predictor"].predictions)
        title = page.words.headline(
            report_models(full["models"]), frames.heads, made.predictions, page.page_trust(made)
        )
        assert words in title[0]


def test_everything_again_gives_the_same_bytes(full, tmp_path):
    again = write_report(
        tmp_path,
        full["models"],
        full["scores"],
        full["predictor"],
        command=["visual-heads", "report", "--heads", "my heads"],
    )
    assert again.path.read_bytes() == full["report"].path.read_bytes()


def test_heads_alone_say_what_is_missing_and_which_command_adds_it(tmp_path):
    path = write_report(tmp_path, [profile("org/model", 3, 4)]).path
    text = "".join(Page(path.read_text()).text)
    assert "The attention heads of org/model spend" in text
    assert "No predictor was given, so no benchmark score is predicted." in text
    assert "visual-heads fit --heads PATH... --scores scores.csv" in text
    assert "visual-heads scores RESULTS... --out scores.csv" in text
    assert "No prediction was checked against a score here" in text
    assert (
        "Bi et al., “Unveiling Visual Perception in Language Models: An Attention Head Analysis Approach”, CVPR 2025."
        in text
    )
    assert "lmms-eval --model visual_heads_llava" in text
    assert "Choose a model" not in text
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "heads.csv", "models.csv", "profiles.csv", "question_types.csv", "runs.csv", "tasks.csv", "top_heads.csv", "versions.csv",
    ]  # fmt: skip


def test_scores_without_a_predictor_are_shown_as_they_are(tmp_path):
    scores = scores_of(predictions(["a"]))
    shown_page = Page(write_report(tmp_path, [profile("a")], scores).path.read_text())
    assert shown_page.tables["table-scores"][1] == ["a", *(f"{100 * score:.1f}" for score in scores["score"])]


def test_a_refusal_of_the_predictor_is_told_and_the_rest_goes_on(tmp_path):
    class Refusing(FakePredictor):
        def predict(self, head_profiles: Any, known: Any = None, force: bool = False) -> pd.DataFrame:
            raise VisualHeadsError("fitted on other data. Use --force.")

    report = write_report(tmp_path, [profile("a")], None, Refusing(evaluation()))
    assert report.notes == ("No score is predicted: fitted on other data. Use --force.",)
    shown_page = Page(report.path.read_text())
    assert "No score is predicted: fitted on other data. Use --force." in shown_page.text
    assert "table-errors" in shown_page.tables


def test_what_a_head_table_does_not_record_is_a_dash(tmp_path):
    full, bare = profile("a"), profile("b", seed=1)
    full.metadata["tasks"]["vhead_obj"]["fingerprint"] = "0123456789abcdef" * 4
    bare = type(bare)(bare.frame, {"model": {"name": "b"}})
    shown_page = Page(write_report(tmp_path, [full, bare]).path.read_text())
    assert shown_page.tables["table-runs"][2] == ["b", "–", "–", "3", "4", "–", "–", "–", "–"]
    assert shown_page.tables["table-tasks"][2][5] == "0123456789ab…"
    assert shown_page.tables["table-tasks"][4] == ["b", "vhead_general", "256", "–", "–", "–"]
    assert 'title="' + "0123456789abcdef" * 4 in (tmp_path / "index.html").read_text()


def test_names_that_do_not_meet_are_told(tmp_path):
    made = predictions(["a"])
    scores = scores_of(made).assign(model="another")
    report = write_report(tmp_path, [profile("a")], scores, FakePredictor(evaluation(), {}, made))
    assert "The score table has no score of the predicted models (a)" in report.notes[0]


def test_what_was_fitted_on_is_told_with_missing_entries_as_dashes(full):
    text = re.sub(r"\s+", " ", " ".join(full["page"].text))
    assert f"models zoo/model-00, {NASTY}" in text
    assert "probe vhead_obj 256 documents, fingerprint 0123456789ab" in text
    assert "nothing –" in text
    assert "visual-heads report --heads 'my heads'" in text


def test_twenty_large_models_stay_small_enough(tmp_path):
    models = [profile(f"m/{i:02d}", 40, 32, seed=i) for i in range(4)]
    size = write_report(tmp_path, models).path.stat().st_size
    assert size / 4 * 40 < 10e6


def test_a_folder_that_cannot_be_written_is_found_out_before_any_work(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")

    def heads():
        raise AssertionError("work began")
        yield

    with pytest.raises(VisualHeadsError, match=r"needs a folder that can be written; .*Choose another --out"):
        write_report(blocked / "report", heads())


def test_the_command_writes_the_page_and_says_what_it_says(tmp_path, monkeypatch):
    import typer

    from lmms_visual_heads.cli.report import report

    app = typer.Typer()
    app.command()(report)
    monkeypatch.chdir(tmp_path)
    models = [profile("a/one", seed=1), profile("b/two", seed=2)]
    frame = pd.concat([m.frame for m in models], ignore_index=True)
    frame = frame.astype({"n_documents": np.int32, **dict.fromkeys(frame.columns[4:12], np.float32)})
    write_profiles(
        HeadProfiles(frame, {m.metadata["model"]["name"]: m.metadata for m in models}), "all.profiles.parquet"
    )
    write_scores(scores_of(predictions(["a/one", "b/two"])), "scores.csv")
    result = CliRunner().invoke(
        app, ["--heads", "all.profiles.parquet", "--scores", "scores.csv", "--out", "r", "--threshold", "0.2"]
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == str(Path("r") / "index.html")
    assert "attention heads of 2 models spend" in lines[1]
    assert lines[3].startswith("2 models, ")
    assert len(lines) == 4
    html = Path("r/index.html").read_text()
    assert "visual-heads report --heads all.profiles.parquet --scores scores.csv --threshold 0.2 --out r" in html
    assert str(tmp_path) not in html
    Path("taken").write_text("")
    refused = CliRunner().invoke(app, ["--heads", "nowhere", "--out", "taken/r"])
    assert isinstance(refused.exception, VisualHeadsError)
    assert "needs a folder that can be written" in str(refused.exception)


def test_the_room_never_imports_torch():
    program = (
        "import sys; import lmms_visual_heads.report.page, lmms_visual_heads.report; "
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_real_predictor_and_real_head_tables_make_a_page(tmp_path):
    world = synthetic.world(lineages=7, per_lineage=2, noise=0.02)
    fitted_tables = [table for table in world.tables if world.lineages[table.model] != "lineage6"]
    predictor = BenchmarkPredictor().fit(fitted_tables, world.scores, world.lineages)
    report = write_report(tmp_path, world.tables, world.scores, predictor)
    errors = pd.read_csv(tmp_path / "data" / "errors.csv").set_index("benchmark")
    own = predictor.errors_.set_index("benchmark")
    for name in ("error", "baseline_error", "n_models", "n_lineages"):
        np.testing.assert_allclose(errors.loc[own.index, name], own[name])
    predicted = pd.read_csv(tmp_path / "data" / "predictions.csv")
    assert set(predicted["model"]) == {model for model, lineage in world.lineages.items() if lineage == "lineage6"}
    assert predicted["actual"].notna().all()
    assert report.trust.numbers["n_lineages"] == 6
    assert "small models trained on drawn scenes from 6 separate trainings" in report.trust.sentence
    text = "".join(Page(report.path.read_text()).text)
    assert "lineage0 (runs/lineage0-step0, runs/lineage0-step1)" in text
    assert text.count("fitted on fewer than 15 separate trainings") == 1
    assert not re.search(r"\b(?:nan|NaN|None)\b", text)


def test_heads_from_another_world_are_refused_on_the_page_and_flagged_when_forced(tmp_path):
    world = synthetic.world(lineages=5, per_lineage=1)
    predictor = BenchmarkPredictor().fit(world.tables, world.scores)
    large = profile("org/seven-billion", 3, 4, parameters=7_000_000_000, tasks=synthetic.TASKS)
    large.metadata["tasks"].update(world.tables[0].metadata["tasks"])
    report = write_report(tmp_path, [large], None, predictor)
    assert "org/seven-billion is from another world" in report.notes[0]
    assert not (tmp_path / "data" / "predictions.csv").exists()
    forced = write_report(tmp_path, [large], None, predictor, force=True)
    assert forced.notes == ()
    assert "forced for models unlike those fitted: not to be relied on" in forced.headline
    assert "5 small models trained on drawn scenes" in forced.trust.sentence
    assert "forced: the model is much smaller or larger" in forced.path.read_text()
