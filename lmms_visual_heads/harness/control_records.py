"""What a run's extra passes measured, and what every request cost: into the journal, and back out of an interrupted run's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lmms_visual_heads.harness.costs import ORDINARY, Cost, CostBook, Ran
from lmms_visual_heads.tables.journal import RunJournal

Key = tuple[str, int]


class ControlRecords:
    """The extra passes of one process.

    Parameters
    ----------
    journal : RunJournal
        Records go there as they come; it is flushed when it is due.
    recalled : mapping of (task, doc_id, request) to record
        What the journal of an interrupted run holds.

    Attributes
    ----------
    costs : CostBook
        Of this process, extra passes and ordinary requests.
    image_kl : dict of (task, doc_id) to mapping
        `swap_kl`, `blank_kl` of the answer table; None where missing.
    knocked_out : set of (task, doc_id)
        Documents whose heads were knocked out.
    """

    def __init__(self, journal: RunJournal, recalled: Mapping[tuple[str, int, str], Mapping[str, Any]]) -> None:
        self.costs = CostBook()
        self.image_kl: dict[Key, dict[str, float | None]] = {}
        self.knocked_out: set[Key] = set()
        self._journal = journal
        self._recalled = recalled
        self._ran: dict[Key, tuple[str, Ran]] = {}

    def note(self, task: str, doc_id: int, request: str, ran: Ran, *, controlled: bool) -> None:
        """Count an ordinary request; of the first one about a document of the extra passes keep what they need to know."""
        self.costs.add(task, ORDINARY, ran.cost)
        key = (task, doc_id)
        if controlled and (key not in self._ran or request < self._ran[key][0]):
            self._ran[key] = (request, ran)

    def ran(self, task: str, doc_id: int) -> Ran | None:
        """What the first request about a document ran; None where it was not answered here."""
        first = self._ran.get((task, doc_id))
        return None if first is None else first[1]

    def has(self, task: str, doc_id: int, control: str) -> bool:
        """Whether an interrupted run measured this, in any of its processes."""
        return (task, doc_id, control) in self._recalled

    def recall(self, task: str, doc_id: int, digest: str, control: str) -> bool:
        """Whether an interrupted run measured this, as `add` was given it; it then counts as measured by this run."""
        record = self._recalled.get((task, doc_id, control))
        if record is None or record["digest"] != digest:
            return False
        self._count(record)
        return True

    def add(
        self,
        task: str,
        doc_id: int,
        digest: str,
        control: str,
        *,
        kind: str,
        cost: Cost,
        image_kl: Mapping[str, float | None] | None = None,
        causal: Mapping[str, Any] | None = None,
    ) -> None:
        """Record what extra passes measured on one document.

        Parameters
        ----------
        task, doc_id, digest
            The document, and the digest of its prompt and pixels.
        control : str
            Tells controls of one document apart.
        kind : str
            `costs.IMAGE_CONTROL` or `costs.KNOCKOUT`.
        cost : Cost
        image_kl : mapping or None
            `swap_kl`, `blank_kl` of the answer table; None where missing.
        causal : mapping or None
            Arguments of `CausalTableWriter.add`.
        """
        if causal is not None:
            self._journal.add_causal(task, doc_id, **causal)
        record = {
            "task": task,
            "doc_id": doc_id,
            "request": control,
            "digest": digest,
            "has_rows": False,
            "response": {"kind": kind, "cost": asdict(cost), "image_kl": None if image_kl is None else dict(image_kl)},
        }
        self._journal.add_response(record)
        self._count(record)
        self._journal.flush_if_due()

    def _count(self, record: Mapping[str, Any]) -> None:
        key, response = (record["task"], record["doc_id"]), record["response"]
        self.costs.add(key[0], response["kind"], Cost(**response["cost"]))
        if response["image_kl"] is None:
            self.knocked_out.add(key)
        else:
            self.image_kl[key] = response["image_kl"]
