"""Extra passes of a run: swapped and blank images, knock-outs; what they measure, and that they change nothing else."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.checkpoints import knockout
from lmms_visual_heads.checkpoints.knockout import KnockoutMeter
from lmms_visual_heads.checkpoints.passes import prefill_documents
from lmms_visual_heads.demo.manifest import checkpoints_folder
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.any_model import VisualHeadsHf
from lmms_visual_heads.harness.arguments import check, parse
from lmms_visual_heads.harness.control_plan import Candidate, evenly, partners, planned
from lmms_visual_heads.harness.costs import Ran
from lmms_visual_heads.harness.evaluation import evaluate
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.schema import METADATA_KEY
from lmms_visual_heads.tables import journal, read_answer_table, read_causal_table, read_head_table
from tests.builders.any_tiny import any_checkpoint
from tests.builders.lmms_tasks import InlineTask, PlainWrapper, answers, choices_task, picture, questions, run

Tiny = Callable[[str], Path]
EVERYTHING = {"image_control": "swap+blank", "knockout": "all+layers+heads"}
SIZES = ((56, 56), (90, 50), (56, 80))


def sized(doc: dict[str, Any]) -> list[Image.Image]:
    return [picture(number, SIZES[number // 10 % 3]) for number in doc["pictures"]]


def model(tiny: Tiny, folder: Path, kind: str = "llava-llama", **more: Any) -> VisualHeadsLlava:
    given = {"capture_tasks": "*", "batch_size": 3, "model_name": "m", **more}
    return VisualHeadsLlava(pretrained=str(tiny(kind)), heads=str(folder), **given)


def tasks() -> list[Any]:
    return [
        InlineTask("one", questions(5), doc_to_visual=sized),
        InlineTask("two", questions(2, pictures=2)),
        InlineTask("none", questions(2, pictures=0)),
        choices_task("choices", 2),
    ]


def frames(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.name.split(".")[1]: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def metadata(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.answers.parquet")
    return json.loads(pq.read_schema(path).metadata[METADATA_KEY])["tasks"]


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = frames(one), frames(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        pd.testing.assert_frame_equal(mine[name], theirs[name], atol=1e-5, rtol=1e-4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval collects garbage twice after every run, a second in a process that holds much."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk after every document."""
    monkeypatch.setattr(journal, "FLUSH_SECONDS", 0.0)


class Plain(PlainWrapper):
    """The answer's distribution of a separate forward pass, after the tokens `written`; nothing of this project."""

    @torch.inference_mode()
    def distribution(self, text: str, image: Image.Image, written: list[int]) -> torch.Tensor:
        inputs = self.processor(text=[self._prompt(text, 1)], images=[image], return_tensors="pt")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([written], dtype=torch.long)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return self.model(**inputs).logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("kind", ["llava-llama3", "llavanext-mistral", "vipllava-llama"])
def test_swap_and_blank_are_those_of_plain_forward_passes(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    run(model(tiny, tmp_path, kind, **EVERYTHING), tasks())
    found = read_answer_table(tmp_path).frame
    one = found[found.task == "one"].set_index("doc_id")
    plain, documents = Plain(str(tiny(kind))), questions(5)
    grey = tuple(round(255 * part) for part in plain.processor.image_processor.image_mean)
    for number, document in enumerate(documents):
        image = sized(document)[0]
        own, written = plain.distribution(document["question"], image, []), []
        if one.loc[number, "answer_token_index"] == 1:
            written = [int(own.argmax())]
            assert not plain.processor.tokenizer.decode(written).strip()
            own = plain.distribution(document["question"], image, written)
        other = sized(documents[(number + 1) % 5])[0]
        for column, changed in (("swap_kl", other), ("blank_kl", Image.new("RGB", image.size, grey))):
            given = plain.distribution(document["question"], changed, written)
            expected = float((own * (own.log() - given.log())).sum())
            assert one.loc[number, column] == pytest.approx(expected, rel=1e-3, abs=1e-6)
            assert expected > 1e-4
    rest = found[found.task.isin(["two", "none"])]
    assert rest[["swap_kl", "blank_kl"]].isna().all(axis=None)
    assert found[found.task == "choices"].swap_kl.notna().all()
    slow = load_model(str(tiny(kind)), device="cpu")
    causal = read_causal_table(tmp_path).frame
    assert set(causal.task) == {"one", "choices"}
    for number, document in enumerate(documents):
        of_one = causal[(causal.task == "one") & (causal.doc_id == number)].set_index(["layer", "head"]).kl
        encoded = slow.encode(document["question"], sized(document))
        expected = KnockoutMeter(slow.model).measure(
            encoded, slow.generate([encoded], query=None, max_new_tokens=2)[0].blank
        )
        assert len(of_one) == 1 + slow.n_layers * (1 + slow.n_heads)
        assert of_one[-1, -1] == pytest.approx(expected.all, rel=1e-3, abs=1e-6)
        for layer in range(slow.n_layers):
            assert of_one[layer, -1] == pytest.approx(float(expected.layers[layer]), rel=1e-3, abs=1e-6)
            heads = [of_one[layer, head] for head in range(slow.n_heads)]
            np.testing.assert_allclose(heads, expected.heads[layer], rtol=1e-3, atol=1e-6)


def test_nothing_else_changes_and_the_cost_is_written(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for name, more in (("off", {}), ("on", EVERYTHING), ("one_by_one", {**EVERYTHING, "batch_size": 1})):
        results = run(model(tiny, tmp_path / name, "llavanext-mistral", **more), tasks())
        found[name] = ({task: answers(results, task) for task in ("one", "two", "none", "choices")}, results["results"])
    assert found["off"] == found["on"] == found["one_by_one"]
    assert_same(tmp_path / "on", tmp_path / "one_by_one")
    off, on = frames(tmp_path / "off"), frames(tmp_path / "on")
    assert set(off) == {"heads", "answers"}
    assert off["answers"][["swap_kl", "blank_kl"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(off["heads"], on["heads"])
    measured = ["swap_kl", "blank_kl"]
    pd.testing.assert_frame_equal(off["answers"].drop(columns=measured), on["answers"].drop(columns=measured))
    cost, table = metadata(tmp_path / "on"), on["answers"].set_index(["task", "doc_id"])
    assert (cost["one"]["n_image_control"], cost["one"]["n_knockout"]) == (5, 5)
    assert "n_knockout" not in cost["two"]
    ordinary = {name: facts["cost"]["ordinary"] for name, facts in cost.items()}
    assert ordinary == {name: facts["cost"]["ordinary"] for name, facts in metadata(tmp_path / "off").items()}
    assert [ordinary[name]["forward_passes"] for name in ("one", "two", "none")] == [5, 2, 2]
    one = table.loc["one"]
    assert ordinary["one"]["tokens"] == (one.n_prompt_tokens + one.n_answer_tokens - 1).sum()
    images, heads = cost["one"]["cost"]["image_control"], cost["one"]["cost"]["knockout"]
    n_knockouts = 1 + 3 * 5
    assert (images["forward_passes"], heads["forward_passes"]) == (15, 5 * (n_knockouts + 1))
    swapped = one.n_prompt_tokens - one.n_visual_tokens + np.roll(one.n_visual_tokens, -1)
    assert images["tokens"] == (2 * one.n_prompt_tokens + swapped).sum()
    assert ordinary["none"]["flops"] > 0
    assert images["flops"] > 2 * images["tokens"] * 1000
    said = " ".join(capsys.readouterr().err.split())
    total = sum(facts["cost"][kind][what] for facts in cost.values() for kind in ("image_control", "knockout")
                if kind in facts["cost"] for what in ("forward_passes",))  # fmt: skip
    assert "extra passes for image_control=swap+blank on 7 documents, knockout=all+layers+heads on 7 documents" in said
    assert f"about {total} forward passes of" in said
    assert "times the ordinary run" in said


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("where", ["images", "knockouts"])
def test_an_interrupted_run_goes_on_without_measuring_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls: list[int] = []

    def failing_at(one: VisualHeadsLlava, deadly: int) -> VisualHeadsLlava:
        whole = one.visual_model.answer_logits if where == "images" else prefill_documents

        def counted(*args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) == deadly:
                raise RuntimeError("the machine broke")
            return whole(*args, **more)

        if where == "images":
            monkeypatch.setattr(one.visual_model, "answer_logits", counted)
        else:
            monkeypatch.setattr(knockout, "prefill_documents", counted)
        return one

    asked = {**EVERYTHING, "batch_size": 1, "reuse_prefix": "false"}
    one_task = [InlineTask("t", questions(4))]
    with pytest.raises(RuntimeError, match="the machine broke"):
        run(failing_at(model(tiny, tmp_path / "a", **asked), 3), one_task)
    assert not list((tmp_path / "a").glob("*.parquet"))
    calls.clear()
    second = failing_at(model(tiny, tmp_path / "a", **asked), 0)
    monkeypatch.setattr(second.visual_model, "generate", None)  # answers are not asked for again either
    run(second, one_task)
    # of 4 documents: 3 prompts each, none was complete; one prefix each, two were
    assert len(calls) == {"images": 12, "knockouts": 2}[where]
    run(model(tiny, tmp_path / "b", **asked), one_task)
    assert_same(tmp_path / "a", tmp_path / "b")
    assert metadata(tmp_path / "a") == metadata(tmp_path / "b")
    assert not list((tmp_path / "a").glob("*.run"))


def test_batches_that_do_not_fit_are_halved_and_what_does_not_fit_alone_is_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [InlineTask("t", [{**document, "question": "How many?"} for document in questions(4)])]
    large = model(tiny, tmp_path / "a", batch_size=4, **EVERYTHING)
    whole, sizes = large.visual_model.answer_logits, []

    def limited(batch: Any, blanks: Any = None) -> Any:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, blanks)

    monkeypatch.setattr(large.visual_model, "answer_logits", limited)
    run(large, same)
    assert sizes[:3] == [4, 2, 1]
    run(model(tiny, tmp_path / "b", batch_size=1, **EVERYTHING), same)
    assert_same(tmp_path / "a", tmp_path / "b")

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("answer_logits", "prefill_documents"):
        small = model(tiny, tmp_path / name, batch_size=1, reuse_prefix="false", **EVERYTHING)
        owner = small.visual_model if name == "answer_logits" else knockout
        monkeypatch.setattr(owner, name, full)
        with pytest.raises(
            VisualHeadsError, match=r"extra passes of every document must fit .* document 0 of task t do not"
        ):
            run(small, same)


def test_what_is_not_finite_is_null_and_the_run_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = model(tiny, tmp_path, batch_size=1, **EVERYTHING)
    whole, forward, calls = broken.visual_model.answer_logits, broken.visual_model.model.forward, []

    def second_is_nan(batch: Any, blanks: Any = None) -> Any:
        calls.append(1)
        return whole(batch, blanks) * (float("nan") if len(calls) == 2 else 1)

    @functools.wraps(forward)
    def head_is_nan(*args: Any, **given: Any) -> Any:
        output = forward(*args, **given)
        if "visual_knockout" in given:
            output.logits[8] = float("nan")  # intact, all, layer 0, its 4 heads ... in the order of the knock-outs
        return output

    monkeypatch.setattr(broken.visual_model, "answer_logits", second_is_nan)
    monkeypatch.setattr(broken.visual_model.model, "forward", head_is_nan)
    run(broken, [InlineTask("t", questions(2))])
    table = read_answer_table(tmp_path).frame
    assert table.swap_kl.isna().sum() == 1
    assert table.blank_kl.notna().all()
    causal = read_causal_table(tmp_path).frame
    gone = causal[causal.kl.isna()]
    assert gone[["doc_id", "layer", "head"]].to_numpy().tolist() == [[0, 0, 3], [1, 0, 3]]


def test_the_same_image_everywhere_cannot_be_swapped(tiny: Tiny, tmp_path: Path) -> None:
    run(
        model(tiny, tmp_path, image_control="swap+blank"),
        [InlineTask("t", questions(3), doc_to_visual=lambda doc: [picture(1)])],
    )
    table = read_answer_table(tmp_path).frame
    assert table.swap_kl.isna().all()
    assert table.blank_kl.notna().all()
    assert not list(tmp_path.glob("*.causal.parquet"))
    assert metadata(tmp_path)["t"]["cost"]["image_control"]["forward_passes"] == 6


def test_which_documents_and_tasks(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {
        "capture_tasks": "a",
        "control_tasks": "b*",
        "control_limit": "2",
        "knockout": "all",
        "image_control": "swap",
    }
    both = [InlineTask("a", questions(4)), InlineTask("b1", questions(5)), InlineTask("b2", questions(2))]
    run(model(tiny, tmp_path / "1", **asked), both)
    causal = read_causal_table(tmp_path / "1").frame
    assert causal[["task", "doc_id", "layer", "head"]].to_numpy().tolist() == [
        ["b1", 0, -1, -1],
        ["b1", 2, -1, -1],
        ["b2", 0, -1, -1],
        ["b2", 1, -1, -1],
    ]
    table = read_answer_table(tmp_path / "1").frame
    assert (
        table[table.swap_kl.notna()][["task", "doc_id"]].to_numpy().tolist()
        == causal[["task", "doc_id"]].to_numpy().tolist()
    )
    assert set(read_head_table(tmp_path / "1").frame.task) == {"a"}
    capsys.readouterr()
    run(model(tiny, tmp_path / "2", **{**asked, "control_tasks": "c"}), both[:1])
    assert "no extra passes: no document of c has exactly one image" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "2").glob("*.causal.parquet"))


def test_own_prompts_of_a_benchmark_with_an_embedded_checkpoint(tmp_path: Path) -> None:
    """The checkpoint writes a blank before its answer: the distribution is that of the token after it."""
    checkpoint = checkpoints_folder() / "w64-d2-t16-s5000"
    results = evaluate(
        checkpoint, ["scenes_existence"], batch_size=8, limit=12, heads=str(tmp_path), capture_tasks="scenes_existence",
        model_name="w64", control_limit="6", **EVERYTHING,
    )  # fmt: skip
    assert results["results"]["scenes_existence"]["exact_match,none"] > 0.8
    table, causal = read_answer_table(tmp_path).frame, read_causal_table(tmp_path).frame
    measured = table[table.swap_kl.notna()]
    assert measured.doc_id.tolist() == [0, 2, 4, 6, 8, 10] == sorted(set(causal.doc_id))
    assert (table.answer_token_index == 1).all()
    assert measured.blank_kl.mean() > 0.1, "the answers of a trained checkpoint hang on the image"
    per_level = causal.assign(level=np.where(causal["layer"] < 0, "all", np.where(causal["head"] < 0, "layer", "head")))
    mean = per_level.groupby("level").kl.mean()
    assert mean["all"] > mean["layer"] > mean["head"] > 0
    model_ = load_model(str(checkpoint), device="cpu")
    assert model_._is_blank(
        model_.generate([model_.encode("Is there a dog?", [picture(1)])], query=None)[0].token_ids[0]
    )


def test_any_family_swaps_and_blanks_and_refuses_to_knock_out(tmp_path: Path) -> None:
    checkpoint = any_checkpoint("qwen2-vl", tmp_path / "qwen")
    given = {"pretrained": str(checkpoint), "capture_tasks": "*"}
    for size in (1, 3):
        run(
            VisualHeadsHf(
                **given, heads=str(tmp_path / str(size)), batch_size=size, image_control="swap+blank", model_name="m"
            ),
            [InlineTask("t", questions(4), doc_to_visual=sized)],
        )
    assert_same(tmp_path / "1", tmp_path / "3")
    table = read_answer_table(tmp_path / "1").frame
    assert (table[["swap_kl", "blank_kl"]] > 1e-6).all(axis=None)
    with pytest.raises(VisualHeadsError, match=r"visual_heads_hf loads any, and knockout=all came. Leave knockout out"):
        VisualHeadsHf(pretrained="nowhere", heads=str(tmp_path / "x"), knockout="all")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("image_control=swap+black", r"image_control takes swap, blank, joined by '\+'; 'black' came"),
        ("knockout=head", r"knockout takes all, layers, heads, joined by '\+'; 'head' came. Write knockout=all"),
        ("knockout=", "'' came"),
        ("control_tasks=pope", "control_tasks says where extra passes run, so it needs image_control= or knockout="),
        (
            "knockout=all,control_limit=0",
            "control_limit must be a number of documents per task, at least 1, or all; '0' came",
        ),
        ("knockout=all,control_limit=many", "'many' came. Write control_limit=64"),
        ("image_control=swap,answers=false,query=last_prompt", "so they need answers; answers=false came"),
    ],
)
def test_refused_arguments(given: str, words: str) -> None:
    with pytest.raises(VisualHeadsError, match=words):
        check(parse(f"pretrained=x,{given}"))


def test_arguments_in_any_order() -> None:
    asked = check(parse("pretrained=x,knockout=heads+all,image_control=blank+swap,control_limit=all,capture_tasks=a*"))
    assert asked.knockouts == ("all", "heads")
    assert asked.image_controls == ("swap", "blank")
    assert asked.limit(5) is None
    assert asked.controls("ab")
    assert not asked.controls("b")
    assert not check({"pretrained": "x"}).controls("vhead_obj")


def test_documents_are_spread_evenly_and_partners_differ() -> None:
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 4) == [0, 1, 2] == evenly(3, None)
    assert partners([b"a", b"a", b"b", b"c"]) == [2, 2, 3, 0]
    assert partners([b"a", b"a"]) == [None, None]
    assert partners([]) == []


def test_several_processes_make_one_plan_and_share_it() -> None:
    ran = Ran(1, 9, 4, 9, 4, 3, None)
    every = {("t", n): Candidate("t", n, "test", "?", "00", bytes([n // 2]), ran) for n in range(6)}
    halves = [{key: one for key, one in every.items() if key[1] % 2 == rank} for rank in (0, 1)]
    together, alone = planned(halves, 3)["t"], planned([every, {}], 3)["t"]
    assert [(one.candidate, one.partner) for one in together] == [(one.candidate, one.partner) for one in alone]
    assert [one.candidate.doc_id for one in together] == [0, 2, 4]
    assert [one.rank for one in together] == [0, 1, 0]
    assert [one.partner.doc_id for one in together if one.partner] == [2, 4, 0]
    assert {one.rank for one in alone} == {0}
