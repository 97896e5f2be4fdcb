"""What one run of `visual-heads data looktwice` did, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 10
"""So many names or sentences of a kind are printed; `dataset.json` has all of them."""


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(slots=True)
class Summary:
    """Numbers of one run.

    Attributes
    ----------
    folder, split, answers, types
        What was made: where, which split, short or options, which question types.
    n_records, n_chosen, n_scenes : int
        Records in the question files; those in the split and within the limit; those in the folder.
    kept, fetched, copied, repaired : int
        Images that were there already, came from the server, came from a local folder; of the latter two, those that
        replaced a damaged one.
    clipped : int
        Boxes of which the part outside the image was cut off.
    left_out : list of str
        One sentence for each record that cannot be used.
    not_there : list of str
        Images that the server does not have.
    not_fetched : dict
        Image -> why, for images that another run may bring.
    complete : bool
        Whether the tasks accept the folder.
    notes : list of str
        What else a user should know.
    """

    folder: Path
    split: str
    answers: str
    types: tuple[str, ...]
    n_records: int
    n_chosen: int = 0
    n_scenes: int = 0
    kept: int = 0
    fetched: int = 0
    copied: int = 0
    repaired: int = 0
    clipped: int = 0
    left_out: list[str] = field(default_factory=list)
    not_there: list[str] = field(default_factory=list)
    not_fetched: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    notes: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """The summary, one sentence a line."""
        answers = "a letter of four options" if self.answers == "options" else "a number"
        lines = [
            f"{self.folder}: {self.n_scenes} scenes of the {self.split} split, questions {', '.join(self.types)}, "
            f"each answered by {answers} ({self.n_records} records in the question file, {self.n_chosen} chosen).",
            f"Images: {self.fetched} fetched, {self.copied} from the local folder, {self.kept} there already"
            + (f"; {self.repaired} damaged ones replaced." if self.repaired else "."),
        ]
        if self.clipped:
            lines.append(f"{self.clipped} boxes reached over the edge of their image and were cut off there.")
        if self.left_out:
            lines.append(f"{len(self.left_out)} records cannot be used and were left out:")
            lines += [f"  {sentence}" for sentence in self.left_out[:SHOWN]]
            if len(self.left_out) > SHOWN:
                lines.append(f"  … and {len(self.left_out) - SHOWN} more, all in dataset.json.")
        if self.not_there:
            lines.append(
                f"{len(self.not_there)} images are not on the server (404), left out: {_names(self.not_there)}."
            )
        if self.not_fetched:
            lines.append(f"{len(self.not_fetched)} images could not be had: {_names(list(self.not_fetched))}.")
        return lines + self.notes
