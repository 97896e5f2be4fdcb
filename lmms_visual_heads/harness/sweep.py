"""One lmms-eval after the other, a checkpoint each: what is done is passed over, what fails is named and does not stop the rest.

Every checkpoint has its own folders under those of the sweep, and a note `done.json` once its run has left its files. So a
sweep can be stopped and started again, and started on several machines that share a disk, each with its own share.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.evaluation import start_lmms_eval
from lmms_visual_heads.harness.plugin import MODEL_ID
from lmms_visual_heads.names import file_stem, model_name
from lmms_visual_heads.schema import ANSWERS_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables import read_results
from lmms_visual_heads.tables.files import write_bytes

DONE_FILE = "done.json"
TABLE_FILE = "sweep.csv"

Start = Callable[[Sequence[str], Path, dict[str, str]], int]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is run for every checkpoint.

    Attributes
    ----------
    tasks : str
        As for lmms-eval, joined by commas.
    heads, output : Path
        Folders; each checkpoint gets one of its own in both.
    batch_size : str
        As for lmms-eval.
    model : str
        `visual_heads_llava` or `visual_heads_hf`.
    model_args : str
        Further arguments of the model, joined by commas.
    limit : int or None
        Documents per task.
    """

    tasks: str
    heads: Path
    output: Path
    batch_size: str = "auto"
    model: str = MODEL_ID
    model_args: str = ""
    limit: int | None = None

    def folder(self, name: str) -> Path:
        """Where the results of the checkpoint `name` go."""
        return self.output / file_stem(name)

    def words(self, checkpoint: str, name: str) -> list[str]:
        """The words of one lmms-eval command."""
        model_args = f"pretrained={checkpoint},model_name={name},heads={self.heads / file_stem(name)}"
        model_args += f",{self.model_args}" if self.model_args else ""
        words = ["--model", self.model, "--model_args", model_args, "--tasks", self.tasks]
        words += ["--batch_size", self.batch_size, "--output_path", str(self.folder(name)), "--log_samples"]
        return words + (["--limit", str(self.limit)] if self.limit is not None else [])

    def facts(self) -> dict[str, Any]:
        """What a finished run must agree in to be passed over."""
        facts = {"tasks": self.tasks, "model": self.model, "model_args": self.model_args, "limit": self.limit}
        return json.loads(json.dumps(facts))

    def done(self, name: str) -> dict[str, Any] | None:
        """The note of a finished run of `name` with the same tasks whose files are still there, or None."""
        try:
            note = json.loads((self.folder(name) / DONE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        files = [note.get("results"), *note.get("tables", [])]
        complete = all(isinstance(path, str) and Path(path).is_file() for path in files)
        return note if complete and {key: note.get(key) for key in self.facts()} == self.facts() else None


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Model name -> checkpoint.

    Raises
    ------
    VisualHeadsError
        When two checkpoints would have the same name or the same folder.
    """
    checkpoint_of: dict[str, str] = {}
    for checkpoint in checkpoints:
        name = model_name(checkpoint, None)
        twice = next((other for other in checkpoint_of if file_stem(other) == file_stem(name)), None)
        if twice is not None:
            raise VisualHeadsError(
                f"Every checkpoint of a sweep needs a name of its own; {checkpoint_of[twice]} and {checkpoint} are both {name!r}. "
                "Put them into folders with different names, or sweep them into different folders."
            )
        checkpoint_of[name] = checkpoint
    return checkpoint_of


def share(names: Sequence[str], shard: str | None) -> list[str]:
    """The part of `names` that `shard` ("i/n", i from 1) stands for; all without one.

    Raises
    ------
    VisualHeadsError
        When `shard` is not of this form.
    """
    if shard is None:
        return list(names)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, of = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= of:
        raise VisualHeadsError(
            f"--shard must be i/n with i from 1 to n, such as 1/8; {shard!r} came. "
            "With a Slurm array: --array=1-8 and --shard $SLURM_ARRAY_TASK_ID/8."
        )
    return list(names)[number - 1 :: of]


def run(sweep: Sweep, checkpoints: dict[str, str], start: Start = start_lmms_eval) -> Iterator[tuple[str, str, str]]:
    """Run what is not done yet.

    Parameters
    ----------
    sweep : Sweep
    checkpoints : dict
        Model name -> checkpoint (`named`), of this share.
    start : callable
        Runs lmms-eval with (words, log, environment).

    Yields
    ------
    name, state, message : str
        "running" before and "done", "passed over" or "failed" after each checkpoint; the message says why or where.
    """
    for name, checkpoint in checkpoints.items():
        if sweep.done(name) is not None:
            yield name, "passed over", "done before"
            continue
        folder, heads = sweep.folder(name), sweep.heads / file_stem(name)
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.rglob("*_results.json"))
        tables_before = _tables(heads)
        yield name, "running", str(folder)
        started = time.monotonic()
        log = folder / "lmms-eval.log"
        status = start(sweep.words(checkpoint, name), log, dict(os.environ))
        results = sorted(set(folder.rglob("*_results.json")) - before)
        tables = sorted(_tables(heads) - tables_before)
        if not results or not tables:
            what = "results" if not results else "tables"
            yield (
                name,
                "failed",
                f"lmms-eval left no {what} (exit status {status}); the reason stands above and in {log}",
            )
            continue
        note = sweep.facts() | {
            "name": name,
            "checkpoint": checkpoint,
            "results": str(results[-1]),
            "tables": [str(path) for path in tables],
            "seconds": round(time.monotonic() - started, 1),
        }
        write_bytes(folder / DONE_FILE, json.dumps(note, indent=1).encode())
        yield name, "done", str(results[-1])


def _tables(folder: Path) -> set[Path]:
    return {path for suffix in (HEADS_SUFFIX, ANSWERS_SUFFIX) for path in folder.glob(f"*{suffix}")}


def table(sweep: Sweep, checkpoints: dict[str, str]) -> pd.DataFrame:
    """One row per checkpoint of the sweep, whichever machine ran it.

    Returns
    -------
    DataFrame
        model, checkpoint, state ("done" or "missing"), seconds, heads (the head table), and a column per benchmark with its
        score in the benchmark's own scale; missing where it was not measured.
    """
    rows: list[dict[str, Any]] = []
    for name, checkpoint in checkpoints.items():
        note = sweep.done(name)
        row: dict[str, Any] = {"model": name, "checkpoint": checkpoint, "state": "done" if note else "missing"}
        if note:
            heads = [path for path in note["tables"] if path.endswith(HEADS_SUFFIX)]
            row |= {"seconds": note["seconds"], "heads": heads[0] if heads else None}
            scores = read_results([note["results"]]).frame
            row |= dict(zip(scores["benchmark"], scores["score"], strict=True))
        rows.append(row)
    first = ["model", "checkpoint", "state", "seconds", "heads"]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*first, *(name for name in frame if name not in first)])


def write_table(sweep: Sweep, frame: pd.DataFrame) -> Path:
    """Write the table as `sweep.csv` in the output folder."""
    return write_bytes(sweep.output / TABLE_FILE, frame.to_csv(index=False).encode())
