"""Scores, items and lineages out of files, and the names that join them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.names import file_stem, model_name
from lmms_visual_heads.tables import (
    SCORE_COLUMNS,
    check_scores,
    lineage_of,
    read_items,
    read_lineages,
    read_results,
    read_scores,
    write_scores,
)
from lmms_visual_heads.tables.scores.benchmarks import PRIMARY_METRICS, parse_choices, primary_metric
from tests.builders.paths import SAMPLES as ALL_SAMPLES

SAMPLES = ALL_SAMPLES / "lmms_eval"


def results_file(
    path: Path,
    results: dict[str, Any],
    model_args: Any = "pretrained=/data/runs/a",
    n: int | dict[str, Any] = 100,
    model: str = "visual_heads_llava",
    **more: Any,
) -> Path:
    """A results file with the layout of lmms-eval."""
    sizes = n if isinstance(n, dict) else {task: {"original": n, "effective": n} for task in results}
    document = {
        "results": results,
        "group_subtasks": {task: [] for task in results},
        "configs": {task: {"task": task} for task in results},
        "n-samples": sizes,
        "config": {"model": model, "model_args": model_args},
        "date": "20260101_000000",
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def one(path: Path, **options: Any) -> pd.Series:
    return read_results(path, **options).frame.iloc[0]


class TestNames:
    @pytest.mark.parametrize(
        ("pretrained", "name"),
        [
            ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
            ("/data/runs/seed3/step-2000", "seed3/step-2000"),
            ("/data/runs/seed3/step-2000/", "seed3/step-2000"),
            ("./ckpt", "ckpt"),
            ("ckpt", "ckpt"),
            ("C:\\models\\a\\b", "a/b"),
            ("/cache/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/abc123", "llava-hf/llava-1.5-7b-hf"),
            ("/a/../b/c", "b/c"),
        ],
    )
    def test_rule(self, pretrained: str, name: str) -> None:
        assert model_name(pretrained) == name
        assert model_name(pretrained, "own name") == "own name"

    def test_relative_folders_are_resolved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "x" / "y").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "x" / "y")
        assert model_name(".") == "x/y"
        assert model_name("../y") == "x/y"

    @given(st.text(alphabet="ab/.-_\\~ é", min_size=1, max_size=40).filter(str.strip))
    def test_any_path_gives_a_name_of_at_most_two_parts(self, text: str) -> None:
        assume(text.strip().strip("/\\.~ "))
        name = model_name(text)
        assert name
        assert name.count("/") <= 1
        assert "/" not in file_stem(name)

    def test_nothing_is_no_name(self) -> None:
        with pytest.raises(VisualHeadsError, match="Give pretrained=CHECKPOINT or model_name=NAME"):
            model_name("  ")


class TestResults:
    def test_a_real_file_of_lmms_eval(self) -> None:
        frame, notes = read_results(SAMPLES)
        assert list(frame.columns) == [c.name for c in SCORE_COLUMNS]
        row = frame.iloc[0]
        assert (row["model"], row["benchmark"], row["metric"]) == ("seed3/step-2000", "scenes_existence", "exact_match")
        assert (row["scale"], row["score"], row["n_items"]) == (1.0, pytest.approx(2 / 3), 6)
        (note,) = notes
        assert "'mystery_two'" in note
        assert "exact_match,none, other,none" in note
        assert "Choose with --metric mystery_two=METRIC" in note

    def test_the_user_chooses(self) -> None:
        frame, notes = read_results(SAMPLES, metrics=["mystery_two=other:100"])
        assert notes == ()
        row = frame.set_index("benchmark").loc["mystery_two"]
        assert (row["metric"], row["scale"]) == ("other", 100.0)

    @pytest.mark.parametrize(
        ("task", "values", "metric", "scale", "score"),
        [
            ("pope", {"pope_accuracy,none": 0.86, "pope_f1_score,none": 0.85}, "pope_accuracy", 1.0, 0.86),
            (
                "mme",
                {"mme_perception_score,none": 1510.5, "mme_cognition_score,none": 300.0},
                "mme_perception_score+mme_cognition_score",
                2800.0,
                1810.5,
            ),
            ("mmbench_en_dev", {"gpt_eval_score,none": 64.3, "submission,none": None}, "gpt_eval_score", 100.0, 64.3),
            ("ai2d", {"exact_match,flexible-extract": 0.5}, "exact_match", 1.0, 0.5),
            ("seedbench", {"seed_image,none": 0.66, "seed_all,none": 0.6}, "seed_image", 1.0, 0.66),
            ("mmstar", {"math,none": 0.2, "average,none": 0.3}, "average", 1.0, 0.3),
            ("vhead_super", {"exact_match,none": 0.4, "other,none": 3.0}, "exact_match", 1.0, 0.4),
            ("blink_counting", {"blink_acc,none": 0.4}, "blink_acc", 1.0, 0.4),
        ],
    )
    def test_primary_metrics(
        self, tmp_path: Path, task: str, values: dict[str, Any], metric: str, scale: float, score: float
    ) -> None:
        row = one(results_file(tmp_path / "x_results.json", {task: {"alias": task, **values}}))
        assert (row["metric"], row["scale"], row["score"]) == (metric, scale, score)

    def test_declared_metrics_stand_in_lmms_eval(self) -> None:
        """The names are those of the installed lmms-eval's YAML files."""
        lmms_eval = pytest.importorskip("importlib.util").find_spec("lmms_eval")
        folder = Path(lmms_eval.origin).parent / "tasks"
        texts: dict[str, str] = {}
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 20_000 and (path.suffix == ".yaml" or "template" in path.name):
                texts[path.name] = texts.get(path.name, "") + path.read_text(errors="replace")
        for task, metric in PRIMARY_METRICS.items():
            own = texts.get(f"{task}.yaml", "")
            included = [line.split(":", 1)[1].strip() for line in own.splitlines() if line.startswith("include:")]
            whole = own + "".join(texts.get(Path(name).name, "") for name in included)
            whole += "".join(
                texts.get(Path(line.split(":", 1)[1].strip()).name, "")
                for line in whole.splitlines()
                if line.startswith("include:")
            )
            assert own, task
            for name in metric.names:
                assert name in whole, (task, name)

    def test_a_task_may_declare_its_own_metric(self, tmp_path: Path) -> None:
        path = results_file(
            tmp_path / "x_results.json",
            {"mine": {"a,none": 0.1, "b,none": 7.0}},
            configs={"mine": {"metadata": {"primary_metric": "b", "scale": 10}}},
        )
        assert (one(path)["metric"], one(path)["scale"]) == ("b", 10.0)
        assert primary_metric("nowhere") is None

    def test_the_only_metric_of_an_unknown_task_is_taken(self, tmp_path: Path) -> None:
        values = {
            "acc,none": 0.25,
            "acc_stderr,none": 0.01,
            "acc_stderr_clt,none": 0.01,
            "acc_expected_accuracy,none": 0.3,
        }
        row = one(results_file(tmp_path / "x_results.json", {"mine": values}))
        assert (row["metric"], row["score"], row["scale"]) == ("acc", 0.25, 1.0)

    def test_several_filters_are_a_question(self, tmp_path: Path) -> None:
        path = results_file(
            tmp_path / "x_results.json",
            {"gsm": {"acc,strict": 0.1, "acc,flexible": 0.4}, "gqa": {"exact_match,none": 0.5}},
        )
        frame, notes = read_results(path)
        assert frame["benchmark"].tolist() == ["gqa"]
        assert "has the filters strict, flexible" in notes[0]
        chosen = read_results(path, metrics=["gsm=acc,flexible"]).frame.set_index("benchmark")
        assert chosen.loc["gsm", "score"] == 0.4
        assert chosen.loc["gsm", "metric"] == "acc,flexible"

    def test_groups_are_not_benchmarks(self, tmp_path: Path) -> None:
        results = {
            "scenes": {" ": " ", "alias": "scenes"},
            "mean_of_both": {"exact_match,none": 0.5},
            "scenes_color": {"exact_match,none": 0.5},
            "scenes_digit": {"exact_match,none": 0.25},
        }
        path = results_file(
            tmp_path / "x_results.json",
            results,
            group_subtasks={
                "scenes": ["scenes_color"],
                "mean_of_both": ["scenes_color", "scenes_digit"],
                "scenes_color": [],
            },
        )
        frame, notes = read_results(path)
        assert frame["benchmark"].tolist() == ["scenes_color", "scenes_digit"]
        assert notes == ()

    @pytest.mark.parametrize("newer_first", [True, False])
    def test_fewer_items_never_replace_more(self, tmp_path: Path, newer_first: bool) -> None:
        few, many = ("a", "b") if newer_first else ("b", "a")
        results_file(
            tmp_path / few / "1_results.json", {"gqa": {"exact_match,none": 0.9}}, n=10, date="20270101_000000"
        )
        results_file(
            tmp_path / many / "2_results.json", {"gqa": {"exact_match,none": 0.5}}, n=1000, date="20250101_000000"
        )
        frame, notes = read_results(tmp_path)
        assert frame["score"].tolist() == [0.5]
        assert frame["n_items"].tolist() == [1000]
        assert "two results of gqa" in notes[0]
        assert "more items" in notes[0]

    def test_of_equal_sizes_the_newer_stays(self, tmp_path: Path) -> None:
        results_file(tmp_path / "1_results.json", {"gqa": {"exact_match,none": 0.4}}, date="20260201_000000")
        results_file(tmp_path / "2_results.json", {"gqa": {"exact_match,none": 0.5}}, date="20260101_000000")
        assert one(tmp_path)["score"] == 0.4

    @pytest.mark.parametrize(
        ("sizes", "n"),
        [
            ({"original": 500, "effective": 64}, 64),
            ({"original": 500, "effective": -1}, 500),
            ({"original": 501, "effective": 0.1}, 51),
            ({"original": 500}, None),
        ],
    )
    def test_numbers_of_items(self, tmp_path: Path, sizes: dict[str, Any], n: int | None) -> None:
        row = one(results_file(tmp_path / "x_results.json", {"gqa": {"exact_match,none": 0.4}}, n={"gqa": sizes}))
        assert (pd.isna(row["n_items"]) and n is None) or row["n_items"] == n

    @pytest.mark.parametrize(
        ("model", "arguments", "name"),
        [
            ("visual_heads_llava", "pretrained=/ck/a/b,model_name=mine,heads=h", "mine"),
            ("visual_heads_llava", {"pretrained": "org/name"}, "org/name"),
            # lmms-eval's own llava takes model_name= for an architecture: it is not the checkpoint's name.
            (
                "llava",
                "pretrained=liuhaotian/llava-v1.5-7b,model_name=llava_qwen,conv_template=v1",
                "liuhaotian/llava-v1.5-7b",
            ),
            ("openai", "model_version=gpt-x", "gpt-x"),
            ("hf", "pretrained=org/name,dtype=float32", "org/name"),
        ],
    )
    def test_the_models_name(self, tmp_path: Path, model: str, arguments: Any, name: str) -> None:
        assert (
            one(results_file(tmp_path / "x_results.json", {"gqa": {"exact_match,none": 0.4}}, arguments, model=model))[
                "model"
            ]
            == name
        )

    def test_without_arguments_the_folder_names_the_model(self, tmp_path: Path) -> None:
        assert (
            one(results_file(tmp_path / "org__m" / "x_results.json", {"gqa": {"exact_match,none": 0.4}}, None))["model"]
            == "org/m"
        )

    def test_lm_eval_files(self, tmp_path: Path) -> None:
        path = results_file(
            tmp_path / "org__m" / "results_2026-01-01T00-00-00.json",
            {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.01}},
            "pretrained=org/m",
            model="hf",
            date=1767225600.0,
        )
        assert one(path.parent)["benchmark"] == "arc"

    def test_other_json_in_a_folder_is_passed_over_with_a_note_and_refused_by_name(self, tmp_path: Path) -> None:
        results_file(tmp_path / "x_results.json", {"gqa": {"exact_match,none": 0.4}})
        (tmp_path / "mmbench_results.json").write_text('{"overall_acc": 0.4}')
        (tmp_path / "broken_results.json").write_text("{")
        frame, notes = read_results(tmp_path)
        assert len(frame) == 1
        assert len(notes) == 2
        with pytest.raises(VisualHeadsError, match=r"mmbench_results\.json is none: it has no 'results'"):
            read_results(tmp_path / "mmbench_results.json")
        with pytest.raises(VisualHeadsError, match=r"broken_results\.json is none: it cannot be read as JSON"):
            read_results(tmp_path / "broken_results.json")

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(VisualHeadsError, match="No such file or folder"):
            read_results(tmp_path / "nowhere")
        with pytest.raises(VisualHeadsError, match="none was found"):
            read_results(tmp_path)
        results_file(tmp_path / "x_results.json", {"gqa": {"exact_match,none": "N/A"}})
        with pytest.raises(VisualHeadsError, match=r"No score could be read .*it has no number"):
            read_results(tmp_path)
        for choice in ("mme", "mme=", "=a", "mme=a:b", "mme=a:-1", "mme=a:inf"):
            with pytest.raises(VisualHeadsError, match="--metric"):
                parse_choices([choice])

    def test_two_scales_of_one_benchmark_are_caught_and_named(self, tmp_path: Path) -> None:
        results_file(tmp_path / "1_results.json", {"mine": {"acc,none": 0.61}}, "pretrained=a/a")
        results_file(tmp_path / "2_results.json", {"mine": {"acc,none": 64.0}}, "pretrained=b/b")
        results_file(tmp_path / "3_results.json", {"mine": {"acc,none": 60.0}}, "pretrained=c/c")
        with pytest.raises(
            VisualHeadsError, match=r"mine must be on one scale; .* 0\.61 for a/a .* beside .*fraction beside percent"
        ):
            read_results(tmp_path)

    def test_an_unknown_scale_is_asked_for(self, tmp_path: Path) -> None:
        results_file(tmp_path / "1_results.json", {"mine": {"points,none": 432.0}, "gqa": {"exact_match,none": 0.4}})
        frame, notes = read_results(tmp_path)
        assert frame["benchmark"].tolist() == ["gqa"]
        assert "Say --metric mine=points:SCALE" in notes[0]
        assert read_results(tmp_path, metrics=["mine=points:500"]).frame["scale"].tolist() == [1.0, 500.0]


class TestScoreTable:
    def frame(self, *rows: tuple[Any, ...]) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=["model", "benchmark", "score"])

    def test_csv_round_trip(self, tmp_path: Path) -> None:
        frame = read_results(SAMPLES, metrics=["mystery_two=other:100"]).frame
        write_scores(frame, tmp_path / "scores.csv")
        pd.testing.assert_frame_equal(read_scores(tmp_path / "scores.csv"), frame)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_numbers_read_back_exactly(self, tmp_path: Path, values: list[float]) -> None:
        frame = check_scores(self.frame(*[(f"m{i}", "b", value) for i, value in enumerate(values)]))
        assert read_scores(write_scores(frame, tmp_path / "s.csv"))["score"].tolist() == frame["score"].tolist()

    def test_defaults(self) -> None:
        clean = check_scores(self.frame(("a", "x", 0.5), ("b", "x", 0.25), ("a", "y", 50.0), ("b", "y", 25)))
        assert clean["scale"].tolist() == [1.0, 1.0, 100.0, 100.0]
        assert clean["n_items"].isna().all()

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (
                [("a", "x", 0.5), ("a", "x", 0.6)],
                r"one score per benchmark; .* 0\.5 and 0\.6 for a on x\. Keep the row",
            ),
            ([("a", "x", 0.5), ("b", "x", 64.0), ("c", "x", 70.0)], "fraction beside percent"),
            ([("a", "x", 0.5), ("b", "x", np.nan)], "must be a finite number; .* for b on x"),
            ([("a", "x", np.inf)], "must be a finite number"),
            ([("a", "x", -3.0)], r"must lie in 0\.\.1"),
            ([("a", "x", 140.0)], r"must lie in 0\.\.100"),
            ([(None, "x", 0.5)], "needs a model"),
            ([("a", None, 0.5)], "needs a benchmark"),
            ([("a", "x", "high")], "must hold numbers"),
        ],
    )
    def test_refused(self, rows: list[tuple[Any, ...]], words: str) -> None:
        with pytest.raises(VisualHeadsError, match=words):
            check_scores(self.frame(*rows))

    def test_declared_scale_catches_a_stray_percentage(self) -> None:
        frame = self.frame(("a", "pope", 0.86), ("b", "pope", 87.1)).assign(
            scale=1.0, metric="pope_accuracy", source="s"
        )
        with pytest.raises(VisualHeadsError, match=r"pope must lie in 0\.\.1; .* 87\.1 for b .* beside 0\.86 for a"):
            check_scores(frame)

    @pytest.mark.parametrize(("name", "values"), [("scale", [1.0, 100.0]), ("metric", ["acc", "f1"])])
    def test_two_scales_or_metrics_of_a_benchmark(self, name: str, values: list[Any]) -> None:
        with pytest.raises(VisualHeadsError, match=rf"need one {name}; .* 0\.5 for a .* beside 0\.6 for b"):
            check_scores(self.frame(("a", "x", 0.5), ("b", "x", 0.6)).assign(**{name: values}))

    @pytest.mark.parametrize(
        ("n_large", "small", "taken"),
        [(20, [0.9], True), (19, [0.9], False), (20, [1.0], True), (39, [0.9, 1.0], False), (40, [0.9, 1.0], True)],
    )
    def test_one_small_score_among_twenty_large_ones_is_a_small_percentage(
        self, n_large: int, small: list[float], taken: bool
    ) -> None:
        """Of one model and source; other models did well on the benchmarks of its small scores."""
        rows = [("a", f"large {n}", 60.0) for n in range(n_large)] + [("a", f"small {s}", s) for s in small]
        rows += [(model, f"small {s}", 70.0) for model in "bc" for s in small]
        frame = self.frame(*rows).assign(scale=100.0, source="s", metric="acc")
        if taken:
            assert len(check_scores(frame)) == len(rows)
        else:
            with pytest.raises(VisualHeadsError, match="fraction beside percent"):
                check_scores(frame)

    def test_the_same_row_twice_is_one(self) -> None:
        assert len(check_scores(self.frame(("a", "x", 0.5), ("a", "x", 0.5)))) == 1

    def test_low_percentages_alone_are_no_fractions(self) -> None:
        frame = self.frame(("a", "x", 0.5), ("b", "x", 2.5), ("c", "x", 3.0)).assign(scale=100.0)
        assert len(check_scores(frame)) == 3

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(VisualHeadsError, match="No such score table"):
            read_scores(tmp_path / "no.csv")
        (tmp_path / "bad.csv").write_text("model,score\na,1\n")
        with pytest.raises(VisualHeadsError, match=r"bad\.csv is none: it lacks benchmark"):
            read_scores(tmp_path / "bad.csv")
        (tmp_path / "empty.csv").write_text("")
        with pytest.raises(VisualHeadsError, match=r"empty\.csv is none"):
            read_scores(tmp_path / "empty.csv")
        (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
        with pytest.raises(VisualHeadsError, match=r"binary\.csv"):
            read_scores(tmp_path / "binary.csv")


class TestItems:
    def test_real_samples_of_lmms_eval(self) -> None:
        frame, notes = read_items(SAMPLES)
        assert frame["model"].unique().tolist() == ["seed3/step-2000"]
        assert frame["benchmark"].unique().tolist() == ["scenes_existence"]
        assert frame["correct"].tolist() == [0, 1, 1, 0, 1, 1]
        assert "'mystery_two'" in notes[0]
        assert read_items(SAMPLES, metrics=["mystery_two=other"]).frame["correct"].tolist() == [0, 1, 1, 0, 1, 1] * 2

    def test_what_is_no_number_per_item_is_left_out_with_a_note(self, tmp_path: Path) -> None:
        lines = [{"doc_id": i, "seed_image": {"pred": "A", "answer": "B"}} for i in range(3)]
        (tmp_path / "20260101_000000_samples_seedbench.jsonl").write_text("\n".join(map(json.dumps, lines)))
        frame, notes = read_items(tmp_path)
        assert frame.empty
        assert "seed_image is not a number per item" in notes[0]

    def test_the_newer_run_wins(self, tmp_path: Path) -> None:
        for month in (3, 1, 12, 7, 2, 11):
            name = f"2026{month:02d}01_000000_samples_gqa.jsonl"
            (tmp_path / name).write_text(json.dumps({"doc_id": 0, "exact_match": month == 12}))
        assert read_items(tmp_path).frame["correct"].tolist() == [1.0]

    def test_items_belong_to_the_model_of_their_own_run(self, tmp_path: Path) -> None:
        for date, model in (("20260101_000000", "a"), ("20260201_000000", "b"), ("20260301_000000", "c")):
            results_file(
                tmp_path / f"{date}_results.json", {"gqa": {"exact_match,none": 0.5}}, f"pretrained=runs/{model}"
            )
            lines = [{"doc_id": i, "exact_match": float(model == "b")} for i in range(2)]
            (tmp_path / f"{date}_samples_gqa.jsonl").write_text("\n".join(map(json.dumps, lines)))
        frame = read_items(tmp_path).frame
        assert frame.groupby("model")["correct"].mean().to_dict() == {"runs/a": 0.0, "runs/b": 1.0, "runs/c": 0.0}

    def test_bad_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "20260101_000000_samples_gqa.jsonl"
        path.write_text('{"doc_id": 0}\n{')
        with pytest.raises(VisualHeadsError, match="line 2 is not"):
            read_items(path)
        path.write_text('{"exact_match": 0}')
        with pytest.raises(VisualHeadsError, match="line 1 has none"):
            read_items(path)
        (tmp_path / "sub").mkdir()
        with pytest.raises(VisualHeadsError, match="none was found"):
            read_items(tmp_path / "sub")


class TestLineages:
    def test_csv(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("model,lineage\na,run 1\nb,run 1\n")
        assert lineage_of(["a", "b", "c"], read_lineages(tmp_path / "l.csv")) == {"a": "run 1", "b": "run 1", "c": "c"}
        assert lineage_of(["a"], None) == {"a": "a"}

    def test_spaces_notes_and_numbers_are_read_as_people_write_them(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("# our runs\nmodel, lineage\na, 007\nb, 007\n")
        assert read_lineages(tmp_path / "l.csv") == {"a": "007", "b": "007"}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model,run\na,1\n", "columns model, lineage; .* is none: it lacks lineage"),
            ("model,lineage\na,1\na,2\n", "has a in lines 2 and 3"),
            ("model,lineage\na,\n", "empty cell"),
            ("", "is none"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(VisualHeadsError, match=words):
            read_lineages(tmp_path / "l.csv")
        with pytest.raises(VisualHeadsError, match="No such lineage table"):
            read_lineages(tmp_path / "none.csv")
