"""Runs through lmms-eval in this process: the same answers as a plain wrapper, the right rows in the right files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lmms_visual_heads import load_model
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.regions import region_of
from lmms_visual_heads.harness.evaluation import evaluate
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.schema import METADATA_KEY
from lmms_visual_heads.statistics.answers import answer_text
from lmms_visual_heads.tables import ANSWER_COLUMNS, HEAD_COLUMNS
from tests.builders.lmms_tasks import InlineTask, PlainWrapper, answers, choices_task, picture, questions, run
from tests.builders.original import original_checkpoint
from tests.checkpoints.test_original_adapters import adapter

Tiny = Callable[[str], Path]


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The one head table, the one answer table and the metadata of a finished run."""
    (heads,) = folder.glob("*.heads.parquet")
    (answer,) = folder.glob("*.answers.parquet")
    assert len(list(folder.iterdir())) == 2
    metadata = json.loads(pq.read_schema(heads).metadata[METADATA_KEY])
    return pd.read_parquet(heads), pd.read_parquet(answer), metadata


@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-mistral", "vipllava-llama"])
def test_answers_and_scores_are_those_of_a_plain_wrapper(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    def tasks() -> list[Any]:
        beams = {"max_new_tokens": 3, "num_beams": 2}
        return [
            InlineTask("one", questions(7)),
            InlineTask("two", questions(3, pictures=2)),
            InlineTask("none", questions(3, pictures=0)),
            InlineTask("beams", questions(3), generation_kwargs=beams),
            choices_task("choices", 4),
        ]

    checkpoint = str(tiny(kind))
    ours = run(VisualHeadsLlava(pretrained=checkpoint, batch_size=3, heads=str(tmp_path), capture_tasks="*"), tasks())
    plain = run(PlainWrapper(checkpoint), tasks())
    for task in ("one", "two", "none", "beams"):
        assert answers(ours, task) == answers(plain, task)
        assert ours["results"][task]["exact_match,none"] == plain["results"][task]["exact_match,none"]
    for mine, theirs in zip(answers(ours, "choices"), answers(plain, "choices"), strict=True):
        assert [greedy for [(_, greedy)] in mine] == [greedy for [(_, greedy)] in theirs]
        assert np.allclose([loss for [(loss, _)] in mine], [loss for [(loss, _)] in theirs], atol=1e-5)
    assert ours["results"]["choices"]["acc,none"] == plain["results"]["choices"]["acc,none"]
    heads, answer, metadata = tables(tmp_path)
    assert set(heads.task) == {"one", "beams", "choices"}
    assert answer.groupby("task").size().to_dict() == {"one": 7, "two": 3, "none": 3, "beams": 3, "choices": 4}
    for task in ("one", "two", "none", "beams"):
        said = answer[answer.task == task].sort_values("doc_id")["answer"].tolist()
        assert said == [answer_text(text) for [[text]] in answers(plain, task)]
        assert any(said)
    assert answer[answer.task == "choices"]["answer"].isna().all()
    assert metadata["tasks"]["two"]["n_several_images"] == 3
    assert metadata["tasks"]["none"]["n_without_image"] == 3


def test_capture_on_and_off_give_the_same_answers_and_answer_tables(tiny: Tiny, tmp_path: Path) -> None:
    found = {}
    for capture in ("vhead_super", "nothing"):
        model = VisualHeadsLlava(
            pretrained=str(tiny("llava-llama")), heads=str(tmp_path / capture), capture_tasks=capture, batch_size=4
        )
        found[capture] = answers(run(model, [InlineTask("vhead_super", questions(9))]), "vhead_super")
    assert found["vhead_super"] == found["nothing"]
    assert not list((tmp_path / "nothing").glob("*.heads.parquet"))
    (off,) = (tmp_path / "nothing").glob("*.answers.parquet")
    (on,) = (tmp_path / "vhead_super").glob("*.answers.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(on), pd.read_parquet(off))


@pytest.mark.parametrize("query", ["first_generated", "last_prompt"])
def test_the_table_holds_what_attention_rows_gives(tiny: Tiny, tmp_path: Path, query: str) -> None:
    """The fast way, in batches through lmms-eval, beside the slow one, document by document."""
    documents = [{**doc, "item_id": f"item-{i}", "pointed_box": [3, 5, 30, 41]} for i, doc in enumerate(questions(5))]
    model = VisualHeadsLlava(
        pretrained=str(tiny("llava-llama")), heads=str(tmp_path), query=query, batch_size=2, capture_tasks="t"
    )
    run(model, [InlineTask("t", documents)])
    heads, answer, metadata = tables(tmp_path)
    slow = load_model(str(tiny("llava-llama")), device="cpu", dtype="float32")
    assert [column.name for column in HEAD_COLUMNS] == list(heads.columns)
    assert [column.name for column in ANSWER_COLUMNS] == list(answer.columns)
    assert metadata["query"] == query
    assert (metadata["model"]["layers"], metadata["model"]["heads"]) == (slow.n_layers, slow.n_heads)
    for number, document in enumerate(documents):
        rows = slow.attention_rows(
            picture(10 * number), document["question"], query=query, boxes=[document["pointed_box"]], max_new_tokens=6
        )
        expected = rows.statistics()
        found = heads[heads.doc_id == number].sort_values(["layer", "head"]).reset_index(drop=True)
        assert set(found.item_id) == {f"item-{number}"}
        for column in expected.columns:
            np.testing.assert_allclose(found[column], expected[column], atol=1e-5, err_msg=column)
        (one,) = answer[answer.doc_id == number].to_dict("records")
        assert one["confidence"] == pytest.approx(rows.answer_statistics.confidence, abs=1e-5)
        assert one["n_answer_tokens"] == len(rows.answer_ids)


def test_batches_order_and_limits_do_not_change_a_number(tiny: Tiny, tmp_path: Path) -> None:
    frames, said = [], []
    for batch_size, n in ((1, 8), (3, 8), (8, 8)):
        folder = tmp_path / f"{batch_size}"
        model = VisualHeadsLlava(pretrained=str(tiny("llava-llama3")), heads=str(folder), batch_size=batch_size)
        logged = answers(run(model, [InlineTask("vhead_obj", questions(n))]), "vhead_obj")
        key = ["task", "doc_id", "layer", "head"]
        heads, answer, _ = tables(folder)
        frames.append(heads.sort_values(key).reset_index(drop=True))
        said.append(answer.sort_values("doc_id")["answer"].tolist())
        assert said[-1] == [answer_text(text) for [[text]] in logged]
    assert said[0] == said[1] == said[2]
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], other, atol=1e-5, rtol=1e-5)


def test_the_probe_has_regions_and_pairs_its_scenes(tiny: Tiny, tmp_path: Path) -> None:
    results = evaluate(tiny("llava-llama"), ["vhead"], batch_size=8, limit=6, heads=str(tmp_path))
    assert set(results["results"]) >= {"vhead_general", "vhead_obj", "vhead_super"}
    heads, answer, metadata = tables(tmp_path)
    assert heads.region_attention.notna().all()
    assert (heads.region_share > 0).all()
    assert (heads.region_attention <= heads.image_attention + 1e-6).all()
    per_task = heads.groupby("task").item_id.unique().map(sorted).map(tuple)
    assert len(set(per_task)) == 1
    assert len(answer) == 18
    assert len({facts["fingerprint"] for facts in metadata["tasks"].values()}) == 3


def test_the_fingerprint_is_that_of_the_data(tiny: Tiny, tmp_path: Path) -> None:
    def fingerprint(name: str, documents: list[dict[str, Any]], **more: Any) -> str:
        folder = tmp_path / name
        run(
            VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(folder), **more),
            [InlineTask("vhead_obj", documents)],
        )
        return tables(folder)[2]["tasks"]["vhead_obj"]["fingerprint"]

    same = fingerprint("same", questions(4))
    assert same == fingerprint("batched", questions(4), batch_size=4)
    changed = questions(4)
    changed[3]["pictures"] = [999]
    assert same != fingerprint("pixels", changed)
    reworded = questions(4)
    reworded[0]["question"] += "!"
    assert same != fingerprint("words", reworded)


def test_videos_several_rounds_and_long_prompts_are_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    def model() -> VisualHeadsLlava:
        return VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path))

    with pytest.raises(VisualHeadsError, match="document 0 of task clips has a str"):
        run(model(), [InlineTask("clips", questions(1), doc_to_visual=lambda doc: ["film.mp4"])])
    with pytest.raises(VisualHeadsError, match=r"Task long, document 0: .*2048 positions.*never truncated"):
        run(model(), [InlineTask("long", [{"pictures": [1], "question": "why? " * 3000, "answer": ""}])])
    with pytest.raises(VisualHeadsError, match="task talk asks in several rounds"):
        run(model(), [InlineTask("talk", questions(1), output_type="generate_until_multi_round")])


def test_a_nan_head_is_missing_and_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN in one head's row of one document: missing there, present elsewhere, named at the end."""
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path))
    whole = model.visual_model.head_statistics
    seen = []

    def broken(encoded: Any, rows: Any) -> Any:
        seen.append(len(seen))
        if len(seen) == 2:
            rows = rows.clone()
            rows[1, 2, 0] = float("nan")
        return whole(encoded, rows)

    model.visual_model.head_statistics = broken  # type: ignore[method-assign]
    run(model, [InlineTask("vhead_obj", [{**d, "question": "How many?"} for d in questions(3)])])
    heads, _, _ = tables(tmp_path)
    assert (heads.doc_id == 1).any()
    missing = heads[heads.image_attention.isna()]
    assert [tuple(row) for row in missing[["doc_id", "layer", "head"]].to_numpy()] == [(1, 1, 2)]
    assert missing.concentration.isna().all()
    assert "1 heads, layer 1 head 2 (1 documents)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("box", [[1, 2, 3], ["a", "b", "c", "d"]])
def test_a_box_that_is_none_is_refused_by_name(tiny: Tiny, tmp_path: Path, box: list[Any]) -> None:
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path))
    with pytest.raises(VisualHeadsError, match=r"pointed_box must be four numbers .* document 0 of task t has \["):
        run(model, [InlineTask("t", questions(1, pointed_box=box))])


def test_the_ways_of_loading_reach_load_model(tmp_path: Path) -> None:
    whole = tmp_path / "runs" / "checkpoint"
    original_checkpoint(whole)
    step = Path(shutil.copytree(whole, tmp_path / "runs" / "checkpoint-100"))
    for path in step.glob("tokenizer*"):
        path.unlink()
    adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": (64, 64)})
    given = {
        "image_aspect": "crop",
        "model_base": str(whole),
        "peft": str(tmp_path / "adapter"),
        "conversation": "llava_v0",
    }
    asked = ",".join(f"{name}={value}" for name, value in given.items())
    model = VisualHeadsLlava.create_from_arg_string(f"pretrained={step},heads={tmp_path / 'heads'},{asked}")
    wide = picture(0, (90, 50))
    found = answers(
        run(model, [InlineTask("vhead_super", questions(2), doc_to_visual=lambda doc: [wide])]), "vhead_super"
    )
    heads, _, metadata = tables(tmp_path / "heads")
    recorded = {name: metadata["model"][name] for name in ("image_aspect", "peft", "conversation")}
    assert recorded == {name: given[name] for name in recorded}
    assert metadata["model"]["peft_layers"] == 1
    slow = load_model(step, device="cpu", **given)
    rows = slow.attention_rows(wide, questions(1)[0]["question"], max_new_tokens=6)
    one = heads[heads.doc_id == 0].sort_values(["layer", "head"])
    np.testing.assert_allclose(one.image_attention, rows.statistics().image_attention, atol=1e-5)
    assert len(found) == 2
    with pytest.raises(VisualHeadsError, match="Run `visual-heads convert SRC DST` first"):
        VisualHeadsLlava(pretrained=str(whole), heads=str(tmp_path / "more"), quantization="4bit")


def test_a_documents_region_is_mapped_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is encoded: not again for its rows, and not at all where no heads are read."""
    from lmms_visual_heads.checkpoints import encoding

    mapped = []

    def counted(size: Any, boxes: Any, preprocessing: Any) -> Any:
        if boxes:
            mapped.append(boxes)
        return region_of(size, boxes, preprocessing)

    monkeypatch.setattr(encoding, "region_of", counted)
    documents = [{**d, "question": "How many?", "pointed_box": [4, 4, 30, 30]} for d in questions(3)]
    run(
        VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path)),
        [InlineTask("vhead_obj", documents), InlineTask("elsewhere", documents)],
    )
    assert mapped == [((4.0, 4.0, 30.0, 30.0),)] * 3
    heads, _, _ = tables(tmp_path)
    assert heads.region_attention.notna().all()
