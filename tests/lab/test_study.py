"""The study's report, remade from tables by one command; the lock-box opens with the committed list only."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from lab.__main__ import main
from lab.study.cross_validation import Protocol
from lab.study.head_reliability import depths, head_maps, repeats, split_half, stability
from lab.study.methods import label_correction, labelled, registry
from lab.study.methods.forest import TwoViews
from lab.study.run import check_frozen, freeze, open_lock_box, write_study
from lab.tables.zoo import write_zoo_tables
from lmms_visual_heads.errors import VisualHeadsError
from tests.builders.zoo import make_zoo

SMALL = {"benchmarks": 3, "items": 64}


@pytest.fixture(scope="session")  # the worker may run other modules' tests in between
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    write_zoo_tables(make_zoo(lineages=9, repeats=1, **SMALL), root / "zoo")
    write_zoo_tables(make_zoo(lineages=3, seed=7, prefix="locked", **SMALL), root / "locked")
    seen: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:  # one forest is enough here
        patch.setattr(registry, "FORESTS", (TwoViews(registry.BEST_LABEL_FREE, registry.FREE, (64,)),))
        for module in (labelled, label_correction):
            patch.setattr(module, "PASSES", (16.0, 32.0))
        freeze(root / "features.json")
        write_study(
            [root / "zoo"], root / "out", root / "locked", root / "features.json", Protocol(n_folds=3, draws=1),
            lambda *told: seen.append(told),
        )  # fmt: skip
    assert ("lock-box", 1, 1) in seen
    assert seen[-1] == ("folds of the zoo", 3, 3)
    return root


def test_the_page_says_what_the_tables_say(world: Path) -> None:
    page = (world / "out" / "README.md").read_text()
    table = pd.read_csv(world / "out" / "settings.csv")
    row = table[(table["setting"] == "new_lineage") & (table["method"] == "own answers")].sort_values("passes").iloc[-1]
    assert f"{row['error']:.1f} [{row['error_low']:.1f}, {row['error_high']:.1f}]" in page
    assert "small models trained on drawn scenes" in page
    assert "9 lineages cannot certify" in page
    assert page.count("small models trained on drawn scenes") >= page.split("## In words")[1].split("## Targets")[
        0
    ].count("\n- ")
    for name in ("passes.svg", "heads.svg"):
        assert name in page
        assert (world / "out" / name).read_text().lstrip().startswith("<?xml")


def test_the_lock_box_number_comes_first(world: Path) -> None:
    page = (world / "out" / "README.md").read_text()
    box = pd.read_csv(world / "out" / "lock_box.csv")
    assert box["n_lineages"].max() == 3
    first = page.index("**Lock-box**")
    assert first < page.index("## In words")
    error = box[box["method"] == registry.BEST_LABEL_FREE]["error"].iloc[-1]
    assert f"{error:.2f} points" in page[first : first + 400]


def test_every_table_of_the_issue_is_there(world: Path) -> None:
    names = {path.stem for path in (world / "out").glob("*.csv")}
    assert {
        "settings", "counting", "strata", "benchmarks", "do_heads_matter", "labels", "targets", "repeats", "lock_box",
        "which_heads_depths", "which_heads_features", "which_heads_split_half", "which_heads_stability",
    } <= names  # fmt: skip
    heads = pd.read_csv(world / "out" / "do_heads_matter.csv")
    assert {"own heads", "own causal heads", "own answers", "own answers + own heads"} <= set(heads["method"])
    assert (heads["low"] <= heads["difference"] + 1e-6).all()


def test_every_lock_box_row_stands_beside_its_cross_validated_one(world: Path) -> None:
    box = pd.read_csv(world / "out" / "lock_box.csv")
    assert box["cross_validated"].notna().all()
    table = pd.read_csv(world / "out" / "settings.csv")
    table = table[table["setting"] == "new_lineage"]
    for row in box.to_dict("records"):
        own = table[table["method"] == row["method"]].sort_values("passes")
        place = sorted(box["passes"][box["method"] == row["method"]]).index(row["passes"])
        assert own["error"].iloc[place] == row["cross_validated"]


def test_the_page_has_constants_to_beat(world: Path) -> None:
    page = (world / "out" / "README.md").read_text()
    table = pd.read_csv(world / "out" / "settings.csv")
    row = table[(table["setting"] == "new_lineage") & (table["method"] == "median of points")].iloc[0]
    shown = f"| median of points | 0 | {row['error']:.1f} [{row['error_low']:.1f}, {row['error_high']:.1f}] |"
    assert shown in page


def test_another_list_does_not_open_the_lock_box(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VisualHeadsError, match=r"there is no .*--freeze"):
        check_frozen(tmp_path / "none.json")
    changed = json.loads((world / "features.json").read_text())
    changed["hash"] = "0" * 64
    (tmp_path / "features.json").write_text(json.dumps(changed))
    with pytest.raises(VisualHeadsError, match="committed list only"):
        check_frozen(tmp_path / "features.json")
    monkeypatch.setattr(registry, "LABEL_FREE", registry.LABEL_FREE[:-1])
    with pytest.raises(VisualHeadsError, match="differs from what would be used now in methods"):
        write_study([world / "zoo"], tmp_path / "out", world / "locked", world / "features.json")
    assert not (tmp_path / "out").exists()


def test_a_lock_box_with_a_known_lineage_stays_shut() -> None:
    zoo = make_zoo(lineages=4, **SMALL)
    with pytest.raises(VisualHeadsError, match="lineages of their own; run-00"):
        open_lock_box(zoo, make_zoo(lineages=2, seed=3, **SMALL), Protocol(draws=1))
    copies = make_zoo(lineages=4, prefix="other", **SMALL)
    with pytest.raises(VisualHeadsError, match="hold copies of checkpoints of the zoo"):
        open_lock_box(zoo, copies, Protocol(draws=1))
    fewer = make_zoo(lineages=2, seed=5, prefix="x", benchmarks=2, items=64)
    with pytest.raises(VisualHeadsError, match="need the same benchmarks"):
        open_lock_box(zoo, fewer, Protocol(draws=1))


def test_the_command_writes_the_list_and_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["study", *arguments])
        return int(ended.value.code or 0)

    assert run("--freeze", "--frozen", str(tmp_path / "features.json")) == 0
    assert check_frozen(tmp_path / "features.json") == []
    assert run() == 1
    assert "needs the folder of a measured zoo" in capsys.readouterr().err
    assert run(str(tmp_path)) == 1
    assert "lacks checkpoints.csv" in capsys.readouterr().err


def test_which_heads_on_a_world_whose_truth_is_known() -> None:
    zoo = make_zoo(lineages=5, repeats=1, layers=3, heads=4, **SMALL)
    maps = head_maps(zoo)
    reliability = split_half(maps).set_index(["statistic", "prompts"])["reliability"]
    assert reliability["kl", "own"] > 0.9
    assert reliability["image_attention", "own"] > reliability["content_dependence", "own"] + 0.3
    stable = stability(maps, zoo.checkpoints).set_index(["statistic", "between"])["correlation"]
    assert stable["image_attention", "last two checkpoints of a training"] > 0.8
    assert abs(stable["kl", "benchmarks"]) < 0.3
    where = depths(maps, zoo.checkpoints)
    thirds = where[["first third", "middle third", "last third"]]
    assert thirds.sum(axis=1).round(6).eq(1).all()
    again = repeats(zoo)
    assert set(again["lineage"]) == {"run-00"}
    assert len(again) == SMALL["benchmarks"]
    assert again["moved"].mean() < 15
