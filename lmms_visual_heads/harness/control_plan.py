"""Which documents the extra passes run on, whose image each gets instead of its own, and what that will cost. No model here.

Every process makes the same plan from what all of them have answered, and takes its share of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lmms_visual_heads.harness.costs import Cost, Ran


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document with exactly one image that was answered in this run.

    Attributes
    ----------
    task, doc_id, split, context
        Where it stands, and the request's text.
    digest : str
        Of prompt and pixels, hexadecimal.
    image : bytes
        Digest of the image alone.
    ran : Ran
        What its first request ran.
    """

    task: str
    doc_id: int
    split: str
    context: str
    digest: str
    image: bytes
    ran: Ran

    @property
    def key(self) -> tuple[str, int]:
        return self.task, self.doc_id


@dataclass(frozen=True, slots=True)
class Planned:
    """One document's part of the plan; `partner` is None where every image of its task is the same."""

    candidate: Candidate
    partner: Candidate | None
    rank: int


def evenly(n: int, limit: int | None) -> list[int]:
    """At most `limit` of the places 0..n-1, spread evenly, the first among them."""
    if limit is None or limit >= n:
        return list(range(n))
    return [place * n // limit for place in range(limit)]


def partners(images: Sequence[bytes]) -> list[int | None]:
    """Per place the next one, cyclically, whose image differs; None where all are the same."""
    if len(set(images)) < 2:
        return [None] * len(images)
    n = len(images)
    following = [0] * (2 * n)
    after = next(place for place in range(n) if images[place] != images[n - 1])  # behind the doubled list's end
    for place in reversed(range(2 * n)):
        here, then = images[place % n], (place + 1) % n
        after = then if images[then] != here else after
        following[place] = after
    return list(following[:n])


def planned(by_rank: Sequence[Mapping[tuple[str, int], Candidate]], limit: int | None) -> dict[str, list[Planned]]:
    """Per task the documents that are measured, in order of doc_id, dealt out to the processes that know the task.

    Parameters
    ----------
    by_rank : sequence of mapping
        Every process's candidates.
    limit : int or None
        Documents per task.
    """
    every = {key: candidate for known in reversed(by_rank) for key, candidate in known.items()}
    plan: dict[str, list[Planned]] = {}
    for task in sorted({task for task, _ in every}):
        documents = sorted((c for c in every.values() if c.task == task), key=lambda c: c.doc_id)
        ranks = [rank for rank, known in enumerate(by_rank) if any(of == task for of, _ in known)]
        others = partners([c.image for c in documents])
        plan[task] = []
        for number, place in enumerate(evenly(len(documents), limit)):
            other = others[place]
            partner = None if other is None else documents[other]
            plan[task].append(Planned(documents[place], partner, ranks[number % len(ranks)]))
    return plan


def image_cost(one: Planned, kinds: Iterable[str], max_positions: int) -> Cost:
    """What the image controls of one document run: its own image again, and every changed one."""
    ran, blank = one.candidate.ran, one.candidate.ran.blank is not None
    intact = Cost(1, ran.n_prompt + blank, ran.tower_tokens)
    total = intact
    for kind in kinds:
        if kind == "blank":
            total += intact
        elif one.partner is not None and fits(one, max_positions):
            total += Cost(1, swapped_length(one) + blank, one.partner.ran.tower_tokens)
    return total


def swapped_length(one: Planned) -> int:
    """Tokens of the prompt with the partner's image in it."""
    if one.partner is None:
        raise ValueError("a document without a partner is not swapped")
    return one.candidate.ran.n_prompt - one.candidate.ran.n_visual + one.partner.ran.n_visual


def fits(one: Planned, max_positions: int) -> bool:
    """Whether the prompt with the partner's image leaves room for an answer."""
    return swapped_length(one) + 1 <= max_positions
