"""The one judge: every contestant is fitted on references, shown what was measured of others, and compared with their scores.

Of a checkpoint that it is asked about, a contestant gets no score, and no label beyond those that the trial buys: `shown`
makes what it gets, and nothing else reaches it. What is finished lies on disk under a digest of inputs, settings and code, and is
not made again. Units: points.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import Parallel, delayed

import lmms_visual_heads
from lab.study.contestants import Contestant
from lab.study.duplicates import merged_lineages
from lab.study.settings import OWN, Fit, Subjects, Trial, without_repeats
from lab.tables import as_product
from lab.tables.zoo import TABLES, ZooTables, put_together, read_zoo_tables
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.tables.files import write_bytes

JUDGED_COLUMNS = (
    "set", "setting", "prompts", "labels", "draw", "contestant", "model", "training", "stratum", "benchmark", "counting", "chance",
    "actual", "predicted", "low", "high", "method",
)  # fmt: skip
"""One row per prediction; `chance`, `actual`, `predicted`, `low` and `high` in points."""

_CODE = (
    "lab/study/judge.py",
    "lab/study/settings.py",
    "lab/tables",
    "lmms_visual_heads/prediction",
    "lmms_visual_heads/features",
)
"""What every prediction depends on, beside the code of the contestant itself."""


@dataclass(frozen=True)
class Sets:
    """The studied tables, and those of held-out sets by name. Folders, so that a process can read them for itself.

    Attributes
    ----------
    own : tuple of Path
        Judged as one, by leaving trainings out.
    held_out : tuple of (name, folder)
    """

    own: tuple[Path, ...]
    held_out: tuple[tuple[str, Path], ...] = ()

    def tables(self, name: str) -> ZooTables:
        """The tables of a set; repeats are left out of the studied one."""
        folders = self.own if name == OWN else (dict(self.held_out)[name],)
        return _tables(folders, name == OWN)

    def digest(self) -> str:
        """SHA-256 of all files."""
        digest = hashlib.sha256()
        for folder in (*self.own, *(folder for _, folder in self.held_out)):
            for table in TABLES.values():
                path = folder / table.file
                digest.update(path.read_bytes() if path.is_file() else b"-")
        return digest.hexdigest()


@lru_cache(maxsize=8)
def _tables(folders: tuple[Path, ...], whole: bool) -> ZooTables:
    tables = put_together([read_zoo_tables(folder) for folder in folders])
    return without_repeats(tables) if whole else tables


def trainings(sets: Sets) -> tuple[pd.Series, tuple[str, ...]]:
    """Training of every checkpoint of the studied set, copies of each other joined; and a sentence on each pair of copies.

    Raises
    ------
    VisualHeadsError
        When a held-out set shares a training with the studied one, by name or by copies.
    """
    own = sets.tables(OWN)
    everyone = put_together([own, *(sets.tables(name) for name, _ in sets.held_out)])
    models = everyone.checkpoints["model"].to_numpy(dtype=str)
    merged, notes = merged_lineages(everyone.checkpoints["lineage"].to_numpy(dtype=str), models, *_arrays(everyone))
    joined = pd.Series(merged, index=models)
    studied = joined[joined.index.isin(set(own.checkpoints["model"]))]
    for name, _ in sets.held_out:
        leaked = sorted(set(joined[list(sets.tables(name).checkpoints["model"])]) & set(studied))
        if leaked:
            raise VisualHeadsError(
                f"The trainings of a held-out set must be new; {', '.join(leaked)} of {name} hold copies of studied checkpoints. "
                + " ".join(notes)
            )
    return studied, notes


def shown(zoo: ZooTables, trial: Trial) -> tuple[Any, pd.DataFrame | None]:
    """What a contestant is given of the checkpoints of `zoo`: measurements, and the labels that the trial buys."""
    measurements = as_product.measurements(zoo, trial.condition, trial.prompts)
    return measurements, as_product.labels(zoo, trial.doc_ids, trial.condition) if trial.labels else None


class Shelf:
    """What one fit and its trials need, made once for all contestants. `tables` gives the tables of a set by its name."""

    def __init__(self, tables: Callable[[str], ZooTables]) -> None:
        self.tables = tables
        self._fit: Fit | None = None
        self._made: dict[Any, Any] = {}

    def references(self, fit: Fit) -> tuple[Any, pd.DataFrame]:
        """Measurements and scores of the references."""

        def make() -> tuple[Any, pd.DataFrame]:
            zoo = self.tables(OWN).only(fit.references)
            return as_product.measurements(zoo), zoo.scores

        made: tuple[Any, pd.DataFrame] = self._remember(fit, "references", make)
        return made

    def items(self, fit: Fit) -> pd.DataFrame:
        """The references' items."""
        made: pd.DataFrame = self._remember(
            fit, "items", lambda: as_product.labels(self.tables(OWN).only(fit.references))
        )
        return made

    def asked(self, fit: Fit, asked: Subjects, trial: Trial) -> tuple[pd.DataFrame, Any, pd.DataFrame | None]:
        """What is to be predicted, and what is `shown`."""

        def make() -> tuple[pd.DataFrame, Any, pd.DataFrame | None]:
            zoo = self.tables(asked.tables).only(asked.models)
            truth = actual(zoo, trial.condition)
            return truth, *(shown(zoo, trial) if len(truth) else (None, None))

        made: tuple[pd.DataFrame, Any, pd.DataFrame | None] = self._remember(fit, (asked.tables, trial), make)
        return made

    def _remember(self, fit: Fit, key: Any, make: Callable[[], Any]) -> Any:
        if fit is not self._fit and fit != self._fit:
            self._fit, self._made = fit, {}
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def judge(fit: Fit, contestant: Contestant, shelf: Shelf, groups: Mapping[str, str]) -> pd.DataFrame:
    """Fit a contestant once, and hold every trial that it takes part in; `groups` has the training of every reference.

    Returns
    -------
    DataFrame
        `JUDGED_COLUMNS`.
    """
    measurements, scores = shelf.references(fit)
    estimator = contestant.make()
    estimator.fit(
        measurements,
        scores,
        groups={model: groups[model] for model in fit.references},
        items=shelf.items(fit) if contestant.reference_items else None,
    )
    pieces = [pd.DataFrame(columns=list(JUDGED_COLUMNS))]
    for asked in fit.asked:
        for trial in filter(contestant.answers, asked.trials):
            truth, measurements, items = shelf.asked(fit, asked, trial)
            if truth.empty:
                continue
            predicted = estimator.predict(measurements, items=items)
            about = {name: getattr(trial, name) for name in ("setting", "prompts", "labels", "draw")}
            piece = truth.merge(predicted, on=["model", "benchmark"])
            pieces.append(piece.assign(set=asked.tables, contestant=contestant.name, **about)[list(JUDGED_COLUMNS)])
    return pd.concat(pieces[1:] or pieces, ignore_index=True)


def actual(zoo: ZooTables, condition: str = "clean") -> pd.DataFrame:
    """Scores in points with what tables are split by: model, benchmark, actual, training, stratum, counting, chance."""
    scores = zoo.scores_corrupted if condition == "corrupted" else zoo.scores
    points = scores.assign(actual=100.0 * scores["score"] / scores["scale"])[["model", "benchmark", "actual"]]
    facts = zoo.checkpoints.rename(columns={"lineage": "training"})[["model", "training", "stratum"]]
    benchmarks = zoo.benchmarks.assign(chance=100.0 * zoo.benchmarks["chance"])[["benchmark", "counting", "chance"]]
    return points.merge(facts, on="model").merge(benchmarks, on="benchmark")


def judge_all(
    sets: Sets,
    fits: Sequence[Fit],
    everyone: Sequence[Contestant],
    groups: Mapping[str, str],
    work: Path,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Every contestant after every fit, in that order.

    Parameters
    ----------
    work : Path
        Folder of what is finished, one file for each fit of a contestant; what lies there under the same digest is taken over.
    jobs : int
        Processes side by side; the result does not depend on it.
    progress : callable or None
        Called with (done, in all).
    """
    pairs = [(fit, contestant) for fit in fits for contestant in everyone if _asked(fit, contestant)]
    data = sets.digest()
    code = {contestant.name: code_digest(contestant) for contestant in everyone}
    files = [work / f"{_digest([data, code[c.name]], fit, c, groups)}.parquet" for fit, c in pairs]
    missing = [(pair, file) for pair, file in zip(pairs, files, strict=True) if not file.is_file()]
    done = len(pairs) - len(missing)
    if progress is not None:
        progress(done, len(pairs))
    calls = (delayed(_finish)(sets, fit, contestant, groups, file) for (fit, contestant), file in missing)
    for _ in Parallel(n_jobs=jobs, return_as="generator_unordered")(calls):
        done += 1
        if progress is not None:
            progress(done, len(pairs))
    return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)


def code_digest(contestant: Contestant) -> str:
    """SHA-256 of the code that decides what a contestant predicts."""
    root = Path(lmms_visual_heads.__file__).parents[1]
    files: set[Path] = set()
    for place in _CODE:
        files.update([root / place] if place.endswith(".py") else list((root / place).rglob("*.py")))
    for kind in type(contestant.make()).__mro__:
        module = sys.modules[kind.__module__]
        near = [module.__name__, *(str(getattr(value, "__module__", "")) for value in vars(module).values())]
        files |= {
            Path(str(sys.modules[name].__file__))
            for name in near
            if name.startswith("lab.study.") and name in sys.modules
        }
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _asked(fit: Fit, contestant: Contestant) -> bool:
    trials = (trial for asked in fit.asked for trial in asked.trials)
    return (fit.alone or not contestant.alone) and any(contestant.answers(trial) for trial in trials)


@lru_cache(maxsize=1)
def _shelf(sets: Sets) -> Shelf:
    return Shelf(sets.tables)


def _finish(sets: Sets, fit: Fit, contestant: Contestant, groups: Mapping[str, str], file: Path) -> None:
    frame = judge(fit, contestant, _shelf(sets), groups)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    write_bytes(file, sink.getvalue().to_pybytes())


def _digest(ground: list[str], fit: Fit, contestant: Contestant, groups: Mapping[str, str]) -> str:
    told = [*ground, asdict(fit), contestant.name, {model: groups[model] for model in fit.references}]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _arrays(zoo: ZooTables) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]] | None]:
    """Points [M, B], and per benchmark (correct, confidence, entropy), each [M, n]: what copies are known by."""
    models, names = list(zoo.checkpoints["model"]), list(zoo.benchmarks["benchmark"])
    wide = zoo.scores.assign(points=100 * zoo.scores["score"] / zoo.scores["scale"])
    points = wide.pivot(index="model", columns="benchmark", values="points").reindex(index=models, columns=names)
    items = zoo.items[zoo.items["condition"] == "clean"].set_index(["benchmark", "model"])
    if items.empty:
        return points.to_numpy(dtype=float), None
    return points.to_numpy(dtype=float), list(_by_benchmark(items, models, names))


def _by_benchmark(items: pd.DataFrame, models: list[str], names: list[str]) -> Iterator[tuple[np.ndarray, ...]]:
    for name in names:
        rows = items.loc[name].reindex(models)
        yield tuple(
            np.stack(rows[column].to_list()).astype(np.float32) for column in ("correct", "confidence", "entropy")
        )


__all__ = ["JUDGED_COLUMNS", "Sets", "Shelf", "actual", "code_digest", "judge", "judge_all", "shown", "trainings"]
