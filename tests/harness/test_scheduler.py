"""The scheduler on questions and models made up here: who is answered with whom, what is run once, what happens without memory."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.scheduler import MOST_WAITING, Scheduler
from tests.builders.paths import ROOT

NONE = torch.tensor([], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class MadeUp:
    """A question with the prompt `ids`, whose visual tokens are those with the number 7."""

    label: str
    ids: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def encoded(self) -> Encoded:
        ids = torch.tensor(self.ids)
        visual = (ids == 7).nonzero()[:, 0]
        return Encoded({}, self.label, None, ids, int(len(visual) > 0), ((9, 9),), visual, visual, NONE, None)

    @property
    def batch(self) -> tuple[int, str]:
        return len(self.ids), str(self.settings)


@dataclass
class Branch:
    rows: tuple[int, ...]
    length: int


@dataclass
class MadeUpPrefix:
    starts: list[tuple[int, ...]]

    def branch(self, rows: Sequence[int]) -> Branch:
        return Branch(tuple(rows), len(self.starts[0]))


class MadeUpModel:
    """Reuses prefixes unless `beams` are set; a prefill of more than `prefixes` prompts does not fit into memory."""

    def __init__(self, prefixes: int = 99) -> None:
        self.prefixes = prefixes
        self.prefilled: list[list[tuple[int, ...]]] = []

    def reuses_prefix(self, **settings: Any) -> bool:
        return "beams" not in settings

    def prefill(self, batch: Sequence[Encoded], length: int) -> MadeUpPrefix:
        if len(batch) > self.prefixes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        starts = [tuple(encoded.input_ids[:length].tolist()) for encoded in batch]
        assert all(7 not in encoded.input_ids[length:] for encoded in batch), "a visual token behind the prefix"
        self.prefilled.append(starts)
        return MadeUpPrefix(starts)


class Answering:
    """Answers with the question's label; more than `fits` at once do not fit into memory. Keeps the batches that it was given."""

    def __init__(self, fits: int = 99) -> None:
        self.fits = fits
        self.batches: list[list[str]] = []

    def __call__(self, batch: Sequence[MadeUp], cache: Any) -> list[str]:
        assert len({question.batch for question in batch}) == 1, "questions that cannot be answered together"
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if cache is not None:
            assert all(len(question.ids) > cache.length for question in batch), "the prefix is longer than a prompt"
            assert len(cache.rows) == len(batch)
        self.batches.append([question.label for question in batch])
        return [question.label for question in batch]


def picture(number: int, *ends: tuple[int, ...], **settings: Any) -> list[MadeUp]:
    """A family: questions that end in `ends` about one picture."""
    return [MadeUp(f"{number}.{i}", (1, number, 7, 7, *end), settings) for i, end in enumerate(ends)]


def scheduled(
    families: Sequence[Sequence[MadeUp]], batch_size: int = 2, model: MadeUpModel | None = None, fits: int = 99
) -> tuple[list[str], Answering, Scheduler, list[str]]:
    """Labels in the order in which they were answered; who answered; the scheduler; what it told."""
    told: list[str] = []
    answering = Answering(fits)
    scheduler = Scheduler(model or MadeUpModel(), batch_size, told.append)
    order = []
    for question, result in scheduler.in_batches(families, answering):
        assert question.label == result
        order.append(result)
    return order, answering, scheduler, told


def test_prompts_of_equal_length_are_answered_together_and_others_not() -> None:
    families = [[MadeUp("a", (1, 7, 2))], [MadeUp("b", (1, 7, 2, 3))], [MadeUp("c", (1, 7, 3))], [MadeUp("d", (1, 7))]]
    order, answering, _, told = scheduled(families)
    assert answering.batches == [["a", "c"], ["b"], ["d"]]
    assert order == ["a", "c", "b", "d"]
    assert not told


def test_what_a_family_begins_with_is_run_once_for_several_families() -> None:
    model = MadeUpModel()
    families = [picture(number, (2,), (3,), (3, 4)) for number in range(4)]
    _, answering, _, _ = scheduled(families, batch_size=2, model=model)
    assert model.prefilled == [[(1, 0, 7, 7), (1, 1, 7, 7)], [(1, 2, 7, 7), (1, 3, 7, 7)]]
    assert sorted(label for batch in answering.batches for label in batch) == sorted(
        question.label for family in families for question in family
    )
    assert max(map(len, answering.batches)) == 2


@pytest.mark.parametrize(
    ("family", "why"),
    [
        (picture(0, (2,)), "alone"),
        (picture(0, (2,), (3,), beams=2), "the settings forbid it"),
        ([MadeUp("a", (1, 2, 7, 3)), MadeUp("b", (1, 3, 7, 3))], "they differ before the image"),
        ([MadeUp("a", (1, 2, 3, 4)), MadeUp("b", (1, 2, 3, 5))], "no image, nothing worth sharing"),
    ],
)
def test_nothing_is_shared_where_it_cannot_be(family: list[MadeUp], why: str) -> None:
    model = MadeUpModel()
    order, _, _, _ = scheduled([family], model=model)
    assert not model.prefilled, why
    assert sorted(order) == sorted(question.label for question in family)


@pytest.mark.parametrize(("fits", "left"), [(4, 4), (3, 2), (1, 1)])
def test_a_batch_without_memory_is_halved_for_good(fits: int, left: int) -> None:
    families = [[MadeUp(str(number), (1, 7, number))] for number in range(20)]
    order, answering, scheduler, told = scheduled(families, batch_size=8, fits=fits)
    assert order == [str(number) for number in range(20)]
    assert scheduler.batch_size == left
    assert told[0] == "8 documents do not fit into memory; going on with batches of 4"
    assert told[-1].endswith(f"going on with batches of {left}")
    assert max(map(len, answering.batches)) == left
    assert len(answering.batches) == 20 // left


@pytest.mark.parametrize("fits", [1, 2, 3, 5])
@pytest.mark.parametrize("prefixes", [0, 1, 2, 99])
def test_families_without_memory_lose_nothing_and_ask_nothing_twice(fits: int, prefixes: int) -> None:
    families = [picture(number, (2,), (3,), (4,), (5, 6)) for number in range(5)]
    order, answering, scheduler, told = scheduled(families, batch_size=4, model=MadeUpModel(prefixes), fits=fits)
    assert sorted(order) == sorted(question.label for family in families for question in family)
    answered = [label for batch in answering.batches for label in batch]
    assert len(answered) == len(set(answered)) == 20
    assert bool(told) == (fits < 4 or prefixes < 4)
    assert scheduler.batch_size >= 1


def test_what_does_not_fit_alone_is_named_and_other_failures_stay_what_they_are() -> None:
    with pytest.raises(VisualHeadsError, match=r"fit into memory alone; 0\.0 does not\. Free the device"):
        scheduled([picture(0, (2,))], fits=0)
    with pytest.raises(VisualHeadsError, match=r"0\.0 does not"):
        scheduled([picture(0, (2,), (3,))], fits=0)

    def broken(batch: Sequence[MadeUp], cache: Any) -> list[str]:
        raise RuntimeError("the machine broke")

    with pytest.raises(RuntimeError, match="the machine broke"):
        list(Scheduler(MadeUpModel(), 2, print).in_batches([picture(0, (2,))], broken))


def test_answers_come_as_soon_as_they_are_there_and_questions_are_read_no_sooner() -> None:
    read: list[int] = []

    def families() -> Iterator[list[MadeUp]]:
        for number in range(100):
            read.append(number)
            yield [MadeUp(str(number), (1, 7, 2))]

    answers = Scheduler(MadeUpModel(), 4, print).in_batches(families(), Answering())
    assert next(answers)[1] == "0"
    assert read == [0, 1, 2, 3]


def test_no_more_than_some_batches_wait_for_others_like_them() -> None:
    read: list[int] = []

    def families() -> Iterator[list[MadeUp]]:
        for number in range(1, 200):
            read.append(number)
            yield [MadeUp(str(number), (7,) * number)]  # every prompt has a length of its own

    next(Scheduler(MadeUpModel(), 2, print).in_batches(families(), Answering()))
    assert len(read) == 2 * MOST_WAITING + 1


def test_continuations_go_on_from_their_familys_prefix_one_by_one() -> None:
    model, seen = MadeUpModel(), []

    def score(question: MadeUp, prefix: MadeUpPrefix | None) -> str:
        seen.append((question.label, None if prefix is None else prefix.starts[0]))
        return question.label

    families = [picture(0, (2,), (3,)), picture(1, (2,))]
    pairs = list(Scheduler(model, 1, print).one_by_one(families, score))
    assert [result for _, result in pairs] == ["0.0", "0.1", "1.0"]
    assert seen == [("0.0", (1, 0, 7, 7)), ("0.1", (1, 0, 7, 7)), ("1.0", None)]
    seen.clear()
    list(Scheduler(MadeUpModel(prefixes=0), 1, print).one_by_one(families, score))
    assert seen == [("0.0", None), ("0.1", None), ("1.0", None)], "without memory for the prefix each goes alone"

    def full(question: MadeUp, prefix: Any) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(VisualHeadsError, match=r"0\.0 does not"):
        list(Scheduler(model, 1, print).one_by_one(families, full))


@given(
    counts=st.lists(st.integers(1, 5), max_size=8),
    batch_size=st.integers(1, 5),
    fits=st.integers(1, 6),
    prefixes=st.integers(0, 6),
)
def test_every_question_is_answered_once_whatever_fits(
    counts: list[int], batch_size: int, fits: int, prefixes: int
) -> None:
    families = [picture(number, *((2,) * (1 + i % 3) + (i,) for i in range(n))) for number, n in enumerate(counts)]
    order, answering, _, _ = scheduled(families, batch_size, MadeUpModel(prefixes), fits)
    labels = sorted(question.label for family in families for question in family)
    assert sorted(order) == labels
    assert sorted(label for batch in answering.batches for label in batch) == labels


def imported(name: str, seen: set[str]) -> set[str]:
    """Every module that `name` imports, directly or through the package's own modules."""
    path = ROOT / (name.replace(".", "/") + ".py")
    for module in imports_of(path) if path.is_file() else ():
        if module not in seen:
            seen.add(module)
            imported(module, seen)
    return seen


def imports_of(path: Any) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_it_needs_neither_lmms_eval_nor_the_adapter() -> None:
    modules = imported("lmms_visual_heads.harness.scheduler", set())
    assert "lmms_visual_heads.checkpoints.encoding" in modules
    assert not {module for module in modules if module.startswith("lmms_eval")}
    assert not {module for module in modules if module.startswith("lmms_visual_heads.harness")}
