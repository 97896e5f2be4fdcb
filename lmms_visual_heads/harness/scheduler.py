"""Which questions are answered together: prompts of equal length in a batch, shared beginnings once, halves where memory ends.

Families of questions go in, pairs of (question, result) come out as they are answered. What answers a batch is handed in. No
prompt is padded, nothing that was answered is asked again, and what does not fit into memory alone ends the run in one sentence.
Knows nothing of lmms-eval, of tables, or of what an answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from transformers import Cache

from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.capture.prefix import Prefix, common_prefix
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.errors import VisualHeadsError

MOST_WAITING = 16
"""Batches' worth of questions that wait for others like them, before the fullest batch goes as it is."""


class Schedulable(Protocol):
    """What the scheduler reads of a question.

    Attributes
    ----------
    encoded : Encoded
    batch : hashable
        Questions that agree in it can be answered together; prompts of different lengths never do.
    settings : mapping
        Generation settings, which decide whether a shared beginning may be reused.
    label : str
        Names the question in a sentence, such as "document 3 of task pope".
    """

    @property
    def encoded(self) -> Encoded: ...
    @property
    def batch(self) -> Hashable: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def label(self) -> str: ...


class PrefixModel(Protocol):
    """What the scheduler needs of a model (`checkpoints.model.VisualModel` has it)."""

    def reuses_prefix(self, **generation_kwargs: Any) -> bool: ...
    def prefill(self, batch: Sequence[Encoded], length: int) -> Prefix: ...


AskedQuestion = TypeVar("AskedQuestion", bound=Schedulable)
Result = TypeVar("Result")


class Scheduler:
    """Puts questions into batches and has them answered.

    Parameters
    ----------
    model : PrefixModel
    batch_size : int
        Questions of a batch, at most.
    tell : callable
        Gets a sentence whenever the batches become smaller.

    Attributes
    ----------
    batch_size : int
        Halved for good when a batch does not fit into memory.
    """

    def __init__(self, model: PrefixModel, batch_size: int, tell: Callable[[str], None]) -> None:
        self.batch_size = batch_size
        self._model = model
        self._tell = tell

    def in_batches(
        self,
        families: Iterable[Sequence[AskedQuestion]],
        answer: Callable[[Sequence[AskedQuestion], Cache | None], Sequence[Result]],
    ) -> Iterator[tuple[AskedQuestion, Result]]:
        """Have questions answered in batches.

        Parameters
        ----------
        families : iterable of sequence of questions
            Each about the same images. Taken one after the other, and no sooner than needed.
        answer : callable
            (questions of one batch, cache) -> a result for each. The cache is a branch of the prefix that these prompts begin
            with (to be used up), or None.

        Yields
        ------
        question, result
            Every question once, in the order in which they are answered.

        Raises
        ------
        VisualHeadsError
            When one question alone does not fit into memory.
        """
        alone: dict[Hashable, list[AskedQuestion]] = {}
        sharing: dict[int, list[Sequence[AskedQuestion]]] = {}
        for family in families:
            length = self._shared_length(family)
            if length:
                sharing.setdefault(length, []).append(family)
                if len(sharing[length]) >= self.batch_size:
                    yield from self._families(sharing.pop(length), length, answer)
            for question in [] if length else family:
                alone.setdefault(question.batch, []).append(question)
                if len(alone[question.batch]) >= self.batch_size:
                    yield from self._batch(alone.pop(question.batch), answer)
            if sum(map(len, alone.values())) + sum(map(len, sharing.values())) > MOST_WAITING * self.batch_size:
                if sharing:
                    fullest = max(sharing, key=lambda length: len(sharing[length]))
                    yield from self._families(sharing.pop(fullest), fullest, answer)
                else:
                    yield from self._batch(alone.pop(max(alone, key=lambda batch: len(alone[batch]))), answer)
        for length, waiting in sharing.items():
            yield from self._families(waiting, length, answer)
        for batch in alone.values():
            yield from self._batch(batch, answer)

    def one_by_one(
        self,
        families: Iterable[Sequence[AskedQuestion]],
        answer: Callable[[AskedQuestion, Prefix | None], Result],
    ) -> Iterator[tuple[AskedQuestion, Result]]:
        """Have questions answered one at a time; what the prompts of a family begin with is run once, where it fits into memory.

        Parameters
        ----------
        families : iterable of sequence of questions
            As for `in_batches`.
        answer : callable
            (question, prefix of its family or None) -> result.

        Yields
        ------
        question, result
            In the order of the families.

        Raises
        ------
        VisualHeadsError
            When a question does not fit into memory.
        """
        for family in families:
            length = self._shared_length(family)
            prefix = _if_it_fits(self._model.prefill, [family[0].encoded], length) if length else None
            for question in family:
                result = _if_it_fits(answer, question, prefix)
                if result is None:
                    raise _does_not_fit(question)
                yield question, result

    def _shared_length(self, family: Sequence[AskedQuestion]) -> int:
        """Tokens that a family's prompts share, all visual tokens among them; 0 where each is answered from its beginning."""
        if len(family) < 2:
            return 0
        length = common_prefix([question.encoded.input_ids for question in family])
        visual = family[0].encoded.visual_positions
        if not len(visual) or length <= int(visual[-1]):
            return 0
        settings = {question.batch: question.settings for question in family}
        return length if all(self._model.reuses_prefix(**one) for one in settings.values()) else 0

    def _batch(
        self,
        batch: Sequence[AskedQuestion],
        answer: Callable[[Sequence[AskedQuestion], Cache | None], Sequence[Result]],
    ) -> Iterator[tuple[AskedQuestion, Result]]:
        """One batch; where it does not fit into memory, its halves."""
        results = _if_it_fits(answer, batch, None)
        if results is not None:
            yield from zip(batch, results, strict=True)
            return
        if len(batch) == 1:
            raise _does_not_fit(batch[0])
        self._halve(len(batch))
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            yield from self._batch(part, answer)

    def _families(
        self,
        waiting: Sequence[Sequence[AskedQuestion]],
        length: int,
        answer: Callable[[Sequence[AskedQuestion], Cache | None], Sequence[Result]],
    ) -> Iterator[tuple[AskedQuestion, Result]]:
        """Families whose prompts share their first `length` tokens; where they do not fit into memory, fewer go together."""
        left = list(waiting)
        while left:
            part, left = left[: self.batch_size], left[self.batch_size :]
            answered: set[int] = set()
            fits = yield from self._part(part, length, answer, answered)
            if fits:
                continue
            unanswered = [[question for question in family if id(question) not in answered] for family in part]
            left = [family for family in unanswered if family] + left
            if self.batch_size > 1:
                self._halve(min(self.batch_size, max(len(part), *map(len, unanswered))))
            else:  # the cache of a prefix does not fit beside its question: one whole prompt may
                for question in left.pop(0):
                    yield from self._batch([question], answer)

    def _part(
        self,
        part: Sequence[Sequence[AskedQuestion]],
        length: int,
        answer: Callable[[Sequence[AskedQuestion], Cache | None], Sequence[Result]],
        answered: set[int],
    ) -> Generator[tuple[AskedQuestion, Result], None, bool]:
        """Families with one prefix each, all prefilled together; False at once where memory does not suffice."""
        groups: dict[Hashable, list[tuple[int, AskedQuestion]]] = {}
        for row, family in enumerate(part):
            for question in family:
                groups.setdefault(question.batch, []).append((row, question))
        prefix = _if_it_fits(self._model.prefill, [family[0].encoded for family in part], length)
        if prefix is None:
            return False
        branch = prefix.branch
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                rows, batch = zip(*members[start : start + self.batch_size], strict=True)
                results = _if_it_fits(lambda rows, batch: answer(batch, branch(rows)), rows, list(batch))
                if results is None:
                    return False
                answered.update(map(id, batch))
                yield from zip(batch, results, strict=True)
        return True

    def _halve(self, n_questions: int) -> None:
        self.batch_size = min(self.batch_size, max(1, n_questions // 2))
        self._tell(f"{n_questions} documents do not fit into memory; going on with batches of {self.batch_size}")


def _if_it_fits(call: Callable[..., Result], *arguments: Any) -> Result | None:
    """What the call gives; None where memory did not suffice, which is then free again."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return None


def _does_not_fit(question: Schedulable) -> VisualHeadsError:
    return VisualHeadsError(
        f"Every document must fit into memory alone; {question.label} does not. Free the device, or take a smaller dtype."
    )
