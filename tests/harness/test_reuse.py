"""Runs with shared prefixes give the tables and answers of runs without; heads alone can be had without answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.families import families, images_digest
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.schema import ANSWERS_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables import read_head_table
from tests.builders.lmms_tasks import COLOURS, InlineTask, answers, picture, run

Tiny = Callable[[str], Path]
Measured = tuple[Any, pd.DataFrame, pd.DataFrame]
"""Answers, head table and answer table of one run."""


def asked(n_pictures: int, words: tuple[str, ...]) -> list[dict[str, Any]]:
    """Documents that ask every question about every picture."""
    return [{"pictures": [number], "question": text, "answer": "red"} for number in range(n_pictures) for text in words]


def tasks() -> list[InlineTask]:
    words = ("How many of these are there?", "How many people are pictured? Look twice.")
    return [
        InlineTask("first", asked(4, words)),
        InlineTask("second", asked(5, ("What color is the circle?",))),
        InlineTask("long", asked(2, words), generation_kwargs={"max_new_tokens": 1, "temperature": 0}),
        InlineTask("beams", asked(2, words[:1]), generation_kwargs={"max_new_tokens": 3, "num_beams": 2}),
        InlineTask("text", [{"pictures": [], "question": "What is red?", "answer": "red"}]),
        InlineTask("pair", [{"pictures": [0, 1], "question": w, "answer": "red"} for w in words]),
        InlineTask(
            "choices",
            asked(3, words[:1]),
            output_type="multiple_choice",
            doc_to_choice=list(COLOURS),
            process_results=None,
            metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        ),
    ]


def measured(tiny: Tiny, folder: Path, kind: str = "llava-llama", **arguments: Any) -> Measured:
    given_ = {"pretrained": str(tiny(kind)), "heads": str(folder), "capture_tasks": "*", "model_name": "m", **arguments}
    results = run(VisualHeadsLlava(**given_), tasks())
    (heads,) = folder.glob(f"*{HEADS_SUFFIX}")
    (table,) = folder.glob(f"*{ANSWERS_SUFFIX}")
    found = {task.config.task: answers(results, task.config.task) for task in tasks()}
    return found, pd.read_parquet(heads), pd.read_parquet(table)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict | list | tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        pairs = [(one[key], other[key]) for key in one] if isinstance(one, dict) else zip(one, other, strict=True)
        for a, b in pairs:
            assert_same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other


@pytest.fixture(scope="module")
def apart_of(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """The run without reuse, one document at a time, of a kind of model."""

    @cache
    def apart(kind: str) -> Measured:
        return measured(tiny, tmp_path_factory.mktemp("apart"), kind, reuse_prefix="false", batch_size=1)

    return apart


@pytest.mark.parametrize("kind", ["llava-llama", "llavanext-mistral", "llava-mistral-window"])
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_reuse_changes_no_answer_and_no_number(
    tiny: Tiny, tmp_path: Path, apart_of: Callable[[str], Measured], kind: str, batch_size: Any
) -> None:
    apart = apart_of(kind)
    reused = measured(tiny, tmp_path / "reused", kind, batch_size=batch_size)
    assert_same(apart[0], reused[0])
    for one, other in zip(apart[1:], reused[1:], strict=True):
        keys = ["task", "doc_id", *(["layer", "head"] if "layer" in one else [])]
        one, other = (frame.sort_values(keys).reset_index(drop=True) for frame in (one, other))
        numbers = one.select_dtypes("number").columns
        assert len(numbers) > 4
        np.testing.assert_allclose(one[numbers], other[numbers], atol=2e-5, rtol=1e-4)
        if "answer" in one:
            pd.testing.assert_series_equal(one["answer"], other["answer"])
            assert one.groupby("task")["answer"].count().to_dict() == {**one.groupby("task").size(), "choices": 0}


def test_every_picture_goes_through_the_tower_once(tiny: Tiny, tmp_path: Path) -> None:
    words = ("How many of these are there?", "How many people are pictured? Look twice.", "What is red?")
    seen: dict[str, int] = {}
    for name, more in (("reused", {}), ("apart", {"reuse_prefix": "false"})):
        model = VisualHeadsLlava(
            pretrained=str(tiny("llava-llama")), heads=str(tmp_path / name), capture_tasks="*", batch_size=2, **more
        )
        images: list[int] = []
        tower = model.visual_model.model.model.vision_tower
        tower.register_forward_hook(
            lambda _, args, kwargs, out, images=images: images.append(len(out[0])), with_kwargs=True
        )
        run(model, [InlineTask("first", asked(5, words[:2])), InlineTask("second", asked(5, words[2:]))])
        seen[name] = sum(images)
    assert seen == {"reused": 5, "apart": 15}


@pytest.mark.parametrize(("fits", "wanted"), [(1, [1]), (2, [1, 2])])
def test_what_does_not_fit_together_is_halved_and_nothing_is_asked_twice(
    tiny: Tiny, tmp_path: Path, fits: int, wanted: list[int]
) -> None:
    words = ("How many of these are there?", "How many dogs are there here?", "What is red?")
    task = InlineTask("first", asked(4, words))
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path), capture_tasks="*", batch_size=4)
    generate, sizes = model.visual_model.generate, []

    def limited(batch: Any, **more: Any) -> Any:
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return generate(batch, **more)

    model.visual_model.generate = limited  # type: ignore[method-assign]
    results = run(model, [task])
    assert sum(sizes) == 12
    assert set(sizes) <= set(wanted)
    plain = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path / "plain"), reuse_prefix="false")
    assert answers(results, "first") == answers(run(plain, [task]), "first")


def test_a_prefix_that_does_not_fit_is_left_out(tiny: Tiny, tmp_path: Path) -> None:
    model = VisualHeadsLlava(pretrained=str(tiny("llava-llama")), heads=str(tmp_path), capture_tasks="*", batch_size=2)

    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.visual_model.prefill = never  # type: ignore[method-assign]
    results = run(model, [InlineTask("first", asked(2, ("How many?", "What is red?")))])
    assert len(answers(results, "first")) == 4


def test_heads_without_answers(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"pretrained": str(tiny("llava-llama")), "query": "last_prompt", "model_name": "m", "batch_size": 4}
    probe = ["vhead_super", "vhead_obj"]
    both = run(VisualHeadsLlava(**arguments, heads=str(tmp_path / "both")), probe, limit=6)
    heads = run(VisualHeadsLlava(**arguments, heads=str(tmp_path / "heads"), answers="false"), probe, limit=6)
    assert "exact_match,none" in both["results"]["vhead_super"]
    assert not [name for name in heads["results"]["vhead_super"] if name.startswith("exact_match")]
    assert not list((tmp_path / "heads").glob(f"*{ANSWERS_SUFFIX}"))
    one, other = (read_head_table(tmp_path / name).frame for name in ("both", "heads"))
    numbers = one.select_dtypes("number").columns
    np.testing.assert_allclose(one[numbers], other[numbers], atol=1e-5, rtol=1e-5)
    assert "no answers and no scores" in capsys.readouterr().err


def test_without_answers_other_tasks_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = VisualHeadsLlava(
        pretrained=str(tiny("llava-llama")), heads=str(tmp_path), query="last_prompt", answers="false"
    )
    with pytest.raises(VisualHeadsError, match=r"answers=false measures heads only.*pope"):
        run(model, [InlineTask("pope", asked(1, ("What is red?",)))])


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"answers": "false"}, "only query=last_prompt"),
        ({"answers": "no"}, "answers must be true or false; 'no' came"),
        ({"reuse_prefix": "2"}, "reuse_prefix must be true or false"),
    ],
)
def test_bad_switches_are_one_sentence(tmp_path: Path, given_: dict[str, str], said: str) -> None:
    with pytest.raises(VisualHeadsError, match=said):
        VisualHeadsLlava(pretrained="x", heads=str(tmp_path), **given_)


@given(
    st.lists(st.tuples(st.sampled_from([None, b"a", b"b", b"c"]), st.integers(0, 9)), max_size=30),
    st.integers(1, 5),
)
def test_families_hold_every_request_once(requests: list[tuple[bytes | None, int]], most: int) -> None:
    digests, lengths = [digest for digest, _ in requests], [length for _, length in requests]
    found = families(digests, lengths, most)
    assert sorted(place for family in found for place in family) == list(range(len(requests)))
    for family in found:
        assert family == sorted(family)
        assert len(family) <= most
        assert len({digests[place] for place in family}) == 1
        assert len(family) == 1 or digests[family[0]] is not None
    longest = [max(lengths[place] for place in family) for family in found]
    assert longest == sorted(longest, reverse=True)


def test_equal_pictures_have_equal_digests() -> None:
    assert images_digest([]) is None
    assert images_digest([picture(1)]) == images_digest([picture(1).copy()])
    assert images_digest([picture(1)]) != images_digest([picture(2)])
    assert images_digest([picture(1), picture(2)]) != images_digest([picture(2), picture(1)])
