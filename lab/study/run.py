"""The study of a measured zoo from tables to reports: trials, frames, pictures, page; and the lock-box.

The lock-box is opened with the committed list of features and methods only; the list's hash is checked first.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lab.study import figures, head_reliability, metrics, page
from lab.study import tables as study_tables
from lab.study.cross_validation import SETTINGS, Protocol, run_trials
from lab.study.dataset import ZooData, zoo_data
from lab.study.methods import registry
from lab.study.summary import differences, primary, summary
from lab.tables.zoo import ZooTables, put_together, read_zoo_tables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.evidence import BLOCKS, evidence_hash
from lmms_visual_heads.tables.files import write_bytes

FEATURES_FILE = "features.json"

STRATA_METHODS = (
    "median of points", "training loss", "raw confidence", "own causal heads", "own answers, forest", "raw agreement",
    registry.BEST_LABEL_FREE, "direct scoring, shrunk", registry.BEST_LABELLED,
)  # fmt: skip

METHOD_MODULES = (
    "agreement.py", "intervals.py", "item_response.py", "leaks.py", "methods*.py", "pooled*.py", "standardising.py",
    "trials.py", "zoo_data.py",
)  # fmt: skip
"""Modules of `prediction` that decide what a method predicts."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Study:
    """What a study wrote.

    Attributes
    ----------
    folder : Path
    sentences : list of str
        The page's sentences.
    """

    folder: Path
    sentences: list[str]


def declared_list() -> dict[str, Any]:
    """What is fixed before a lock-box is opened: features, methods, and their hash."""
    methods = {setting: [repr(method) for method in registry.methods_of(setting)] for setting in SETTINGS}
    content = {
        "features": {name: [item.name for item in block] for name, block in BLOCKS.items()},
        "features_hash": evidence_hash(),
        "methods": methods,
        "primary": [registry.BEST_LABEL_FREE, registry.BEST_LABELLED],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "hash": digest, "code": code_digest()}


def code_digest() -> dict[str, str]:
    """SHA-256 over the code that methods are made of, without comments and docstrings; by Python's version, whose trees differ."""
    folder = Path(registry.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for name in METHOD_MODULES for path in folder.glob(name)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]  # type: ignore[attr-defined]
        digest.update(path.name.encode() + ast.dump(tree).encode())
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "hash": digest.hexdigest()}


def freeze(path: str | os.PathLike[str]) -> Path:
    """Write the declared list, to be committed before the lock-box lineages are trained."""
    return write_bytes(Path(path), (json.dumps(declared_list(), indent=1, sort_keys=True) + "\n").encode())


def check_frozen(path: str | os.PathLike[str]) -> list[str]:
    """What a reader of the lock-box should know: nothing, or that the methods' code changed since the list was committed.

    Raises
    ------
    VisualHeadsError
        No such file, a damaged one, or another list: a lock-box is not opened then.
    """
    target = Path(path)
    how = "Write it with: python -m lab study --freeze, and commit it before the lock-box is trained."
    if not target.is_file():
        raise VisualHeadsError(f"A lock-box needs the committed list of features; there is no {target}. {how}")
    try:
        committed = json.loads(target.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise VisualHeadsError(
            f"The committed list of features must be JSON; {target} is not ({error}). {how}"
        ) from error
    now = declared_list()
    if not isinstance(committed, dict) or committed.get("hash") != now["hash"]:
        changed = [key for key in ("features_hash", "methods", "primary") if committed.get(key) != now[key]]
        raise VisualHeadsError(
            f"A lock-box is opened with the committed list only; {target} differs from what would be used now in "
            f"{', '.join(changed) or 'its hash'}. Go back to the committed version."
        )
    code, new = committed.get("code"), now["code"]
    if not isinstance(code, dict) or code.get("python") != new["python"]:
        return [
            "Whether the methods' code is that of the committed list could not be compared: it was hashed by another Python."
        ]
    if code.get("hash") != new["hash"]:
        return [
            "Features and settings are those of the committed list; the methods' code was changed since it was committed."
        ]
    return []


def write_study(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    lockbox: str | os.PathLike[str] | None = None,
    frozen: str | os.PathLike[str] | None = None,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
    jobs: int = 1,
) -> Study:
    """Everything from the tables of a zoo to its report.

    Parameters
    ----------
    folders : sequence of path
        Measured zoos, judged as one.
    out : path
        Gets README.md, CSV tables and SVG pictures.
    lockbox : path or None
        Tables of further lineages: predicted once, from all lineages of `folders`, with the committed list.
    frozen : path or None
        The committed list; needed with `lockbox`.
    protocol : Protocol or None
    progress : callable or None
        Called with (what, done, in all).
    jobs : int
        Folds that are judged at once, each in a process of its own.

    Raises
    ------
    VisualHeadsError
        As the readers; zoos that share a lineage, or another list than the committed one.
    """
    protocol = protocol or Protocol()
    target = Path(out)
    locked, since = None, list[str]()
    if lockbox is not None:
        since = check_frozen(FEATURES_FILE if frozen is None else frozen)
        locked = read_zoo_tables(lockbox)
    tables = put_together([read_zoo_tables(folder) for folder in folders])
    locked_trials, lock_notes = (None, ()) if locked is None else open_lock_box(tables, locked, protocol, progress)
    data = zoo_data(tables)
    lock_notes = (*lock_notes, *since)
    trials = run_trials(data, registry.judged_in, protocol, _reporting(progress, "folds of the zoo"), jobs=jobs)
    frames = study_frames(tables, data, trials, locked_trials, lock_notes)
    _write(frames, target)
    usual = Protocol()
    given = {
        "lockbox": None if lockbox is None else Path(lockbox).as_posix(),
        "folds": None if protocol.n_folds == usual.n_folds else protocol.n_folds,
        "draws": None if protocol.draws == usual.draws else protocol.draws,
        "seed": None if protocol.seed == usual.seed else protocol.seed,
    }
    extra = "".join(f" --{name} {value}" for name, value in given.items() if value is not None)
    zoos = " ".join(Path(folder).as_posix() for folder in folders)
    text = page.page(frames, f"python -m lab study {zoos} --out {target.as_posix()}{extra}")
    write_bytes(target / "README.md", text.encode())
    return Study(target, page.sentences(frames))


def study_frames(
    tables: ZooTables,
    data: ZooData,
    trials: pd.DataFrame,
    locked: pd.DataFrame | None = None,
    notes: tuple[str, ...] = (),
) -> page.StudyFrames:
    """The frames that the page is made of."""
    good = primary(trials)
    table = summary(good)
    maps = head_reliability.head_maps(data.tables)
    settings = tuple(s for s in SETTINGS if (table["setting"] == s).any())
    chosen = data.points["clean"][data.primary][:, ~data.counting]
    few = (
        []
        if len(data.groups) >= 15
        else [f"{len(data.groups)} lineages cannot certify a coverage of 90 %: at least 15 are needed."]
    )
    return page.StudyFrames(
        facts={
            "lineages": len(data.groups),
            "checkpoints": len(data.models),
            "benchmarks": len(data.benchmarks),
            "items": int(np.median(data.n_items)),
            "primary": int(data.primary.sum()),
            "floor": metrics.noise_floor(chosen, data.n_items[~data.counting]),
        },
        table=table,
        counting=study_tables.counting_table(trials),
        strata=study_tables.strata_table(trials[~trials["counting"]], STRATA_METHODS),
        benchmarks=study_tables.benchmark_table(trials, STRATA_METHODS),
        heads=differences(good, study_tables.HEAD_PAIRS, settings),
        labels=differences(good, study_tables.label_pairs(), settings),
        targets=study_tables.targets_table(good, table),
        which={
            "split_half": head_reliability.split_half(maps),
            "stability": head_reliability.stability(maps, data.tables.checkpoints),
            "depths": head_reliability.depths(maps, data.tables.checkpoints),
            "features": head_reliability.feature_reliability(data),
            "repeats": head_reliability.repeats(tables),
        },
        lock_box=None if locked is None else study_tables.lock_box_table(table, summary(primary(locked))),
        notes=(*data.notes, *notes, *few),
    )


def open_lock_box(
    tables: ZooTables, locked: ZooTables, protocol: Protocol, progress: Progress | None = None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Trials in which the lock-box lineages are predicted once, from all others.

    Returns
    -------
    trials, notes
        Settings are named `lock_box`, `lock_box_temperature`, `lock_box_corrupted`.

    Raises
    ------
    VisualHeadsError
        When both zoos share a lineage, by name or by copies, or were asked other benchmarks.
    """
    data = zoo_data(put_together([tables, locked]))
    new = set(locked.checkpoints["model"])
    names = sorted({str(lineage) for model, lineage in zip(data.models, data.lineages, strict=True) if model in new})
    leaked = sorted({str(x) for m, x in zip(data.models, data.lineages, strict=True) if m not in new and x in names})
    if leaked:
        raise VisualHeadsError(
            f"Lock-box lineages must be new; {', '.join(leaked)} hold copies of checkpoints of the zoo. "
            + " ".join(data.notes)
        )
    settings = ("new_lineage", "shift_temperature", "shift_corrupted")
    chosen = Protocol(settings, protocol.n_folds, protocol.draws, protocol.seed)
    trials = run_trials(data, registry.judged_in, chosen, _reporting(progress, "lock-box"), folds=[names])
    renamed = {
        "new_lineage": "lock_box",
        "shift_temperature": "lock_box_temperature",
        "shift_corrupted": "lock_box_corrupted",
    }
    return trials.assign(setting=trials["setting"].map(renamed)), data.notes


def _reporting(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, of: progress(what, done, of)


def _write(frames: page.StudyFrames, target: Path) -> None:
    tables = {
        "settings": frames.table,
        "counting": frames.counting,
        "strata": frames.strata,
        "benchmarks": frames.benchmarks.reset_index(),
        "do_heads_matter": frames.heads,
        "labels": frames.labels,
        "targets": frames.targets,
        **{f"which_heads_{name}" if name != "repeats" else name: frame for name, frame in frames.which.items()},
    }
    if frames.lock_box is not None:
        tables["lock_box"] = frames.lock_box
    for name, frame in tables.items():
        write_bytes(target / f"{name}.csv", frame.round(4).to_csv(index=False, lineterminator="\n").encode())
    floor = float(frames.facts["floor"])
    figures.save(figures.passes_figure(frames.table, floor, SETTINGS), target / "passes.svg")
    figures.save(
        figures.heads_figure(frames.heads, ("new_lineage", "known_training", "new_benchmark")),
        target / "heads.svg",
    )
