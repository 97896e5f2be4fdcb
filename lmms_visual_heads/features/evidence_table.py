"""Evidence of many checkpoints: per block an array [M, B, F], M models, B benchmarks, F declared numbers; NaN where missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features.evidence import (
    BLOCKS,
    PROBE_NAMES,
    AnswerMeans,
    CausalGrid,
    HeadGrid,
    average,
    evidence_row,
)

Array = npt.NDArray[np.float64]

_ANSWER_NAMES = ("confidence", "entropy", "information", "swap_kl", "blank_kl")
_EXTRA = {"": 0, "swap": 1, "blank": 1, "every": 1}
_GRID_NAMES = HeadGrid.__dataclass_fields__


@dataclass(frozen=True, slots=True)
class EvidenceTable:
    """Evidence of M models on B benchmarks.

    Attributes
    ----------
    models, benchmarks : tuple of str
    blocks : dict
        Name of a block in `BLOCKS` -> array [M, B, F]; a block that does not depend on the benchmark repeats itself over B.
    condition : str
        One of `schema.ZOO_CONDITIONS`.
    n_prompts : int
        Unlabelled prompts per task behind the answer statistics.
    heads : array [M, 2]
        Layers and heads per layer: what a cut of every layer or head costs.
    """

    models: tuple[str, ...]
    benchmarks: tuple[str, ...]
    blocks: Mapping[str, Array]
    condition: str
    n_prompts: int
    heads: Array

    def __post_init__(self) -> None:
        for name, block in self.blocks.items():
            shape = (len(self.models), len(self.benchmarks), len(BLOCKS[name]))
            if block.shape != shape:
                raise ValueError(f"block {name} must have shape {shape}; it has {block.shape}")
            if np.isinf(block).any():
                raise VisualHeadsError(
                    f"Features must be finite or missing; block {name} holds an infinite one. Measure that checkpoint again."
                )

    def stack(self, wanted: Iterable[str]) -> tuple[Array, tuple[str, ...]]:
        """Columns of several blocks side by side.

        Parameters
        ----------
        wanted : iterable of str
            "block" or "block.feature".

        Returns
        -------
        array [M, B, F], names of the F columns ("block.feature")
        """
        arrays, names = [], []
        for entry in wanted:
            block, _, feature = entry.partition(".")
            for position, item in enumerate(BLOCKS[block]):
                if not feature or item.name == feature:
                    arrays.append(self.blocks[block][:, :, position])
                    names.append(f"{block}.{item.name}")
        if not arrays:
            raise VisualHeadsError(f"At least one feature is required; {', '.join(wanted) or 'nothing'} names none.")
        return np.stack(arrays, axis=2), tuple(names)

    def passes_per_prompt(self, wanted: Iterable[str]) -> float:
        """Forward passes per own prompt that these columns need, the mean over models; 0 where no own prompt is needed."""
        kinds: set[str] = set()
        own = False
        for entry in wanted:
            block, _, feature = entry.partition(".")
            if block.startswith("own_"):
                own = True
                kinds |= {item.passes for item in BLOCKS[block] if not feature or item.name == feature}
        if not own:
            return 0.0
        layers, heads = self.heads[:, 0], self.heads[:, 1]
        cost = 1.0 + sum(_EXTRA.get(kind, 0) for kind in kinds)
        cost += float(np.nanmean(layers)) if "layers" in kinds else 0.0
        cost += float(np.nanmean(layers * heads)) if "heads" in kinds else 0.0
        return cost

    def only(self, models: Sequence[str]) -> EvidenceTable:
        """The rows of some models, in the order given."""
        at = {name: position for position, name in enumerate(self.models)}
        rows = [at[name] for name in models]
        blocks = {name: block[rows] for name, block in self.blocks.items()}
        return EvidenceTable(tuple(models), self.benchmarks, blocks, self.condition, self.n_prompts, self.heads[rows])


def evidence_of(
    checkpoints: pd.DataFrame,
    benchmarks: Sequence[str],
    answers: pd.DataFrame | None = None,
    profiles: pd.DataFrame | None = None,
    causal: pd.DataFrame | None = None,
    condition: str = "clean",
    n_prompts: int = 256,
) -> EvidenceTable:
    """Evidence of any checkpoints, of a zoo or of real runs.

    Parameters
    ----------
    checkpoints : DataFrame
        model, and whatever is known of the metadata in `schema.ZOO_CHECKPOINT_COLUMNS`.
    benchmarks : sequence of str
        Tasks whose own prompts count as such.
    answers : DataFrame or None
        model, task, and means over prompts: confidence, entropy, information, swap_kl, blank_kl, accuracy.
    profiles, causal : DataFrame or None
        `schema.PROFILE_COLUMNS` (columns of `schema.ZOO_PROFILE_COLUMNS` where there are some); `schema.ZOO_CAUSAL_COLUMNS`.
    """
    models = tuple(str(name) for name in checkpoints["model"])
    grids = _grids(profiles)
    cuts = _cuts(causal)
    said = {} if answers is None else {(r["model"], r["task"]): r for r in answers.to_dict("records")}
    blocks = {name: np.full((len(models), len(benchmarks), len(items)), np.nan) for name, items in BLOCKS.items()}
    for m, row in enumerate(checkpoints.to_dict("records")):
        model = row["model"]
        accuracies = {task: said[model, task].get("accuracy") for task in PROBE_NAMES if (model, task) in said}
        blocks["metadata"][m] = evidence_row("metadata", row)
        blocks["loss"][m] = evidence_row("loss", row)
        blocks["probe_accuracy"][m] = evidence_row("probe_accuracy", accuracies)
        for kind, source in (("heads", grids), ("causal", cuts)):
            found = [
                evidence_row(f"probe_{kind}", source[model, task]) for task in PROBE_NAMES if (model, task) in source
            ]
            if found:
                blocks[f"probe_{kind}"][m] = average(found)
            for b, task in enumerate(benchmarks):
                if (model, task) in source:
                    blocks[f"own_{kind}"][m, b] = evidence_row(f"own_{kind}", source[model, task])
        probe = [_answers(said[model, task]) for task in PROBE_NAMES if (model, task) in said]
        if probe:
            blocks["probe_answers"][m] = average([evidence_row("probe_answers", entry) for entry in probe])
        for b, task in enumerate(benchmarks):
            if (model, task) in said:
                blocks["own_answers"][m, b] = evidence_row("own_answers", _answers(said[model, task]))
    sizes = [[_number(row.get("layers")), _number(row.get("heads"))] for row in checkpoints.to_dict("records")]
    return EvidenceTable(
        models, tuple(benchmarks), blocks, condition, n_prompts, np.array(sizes, dtype=float).reshape(-1, 2)
    )


def _answers(row: Mapping[Any, Any]) -> AnswerMeans:
    return AnswerMeans(*(_number(row.get(name)) for name in _ANSWER_NAMES))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _grids(profiles: pd.DataFrame | None) -> dict[tuple[str, str], HeadGrid]:
    if profiles is None or profiles.empty:
        return {}
    there = [name for name in _GRID_NAMES if name in profiles.columns]
    found = {}
    for key, part in _by_task(profiles):
        layer, head = part["layer"].to_numpy(dtype=int), part["head"].to_numpy(dtype=int)
        spread = np.full((len(_GRID_NAMES), layer.max() + 1, head.max() + 1), np.nan)
        for number, name in enumerate(_GRID_NAMES):
            if name in there:
                spread[number, layer, head] = part[name].to_numpy(dtype=float, na_value=np.nan)
        found[key] = HeadGrid(*spread)
    return found


def _cuts(causal: pd.DataFrame | None) -> dict[tuple[str, str], CausalGrid]:
    if causal is None or causal.empty:
        return {}
    found = {}
    for key, part in _by_task(causal):
        layer, head = part["layer"].to_numpy(dtype=int), part["head"].to_numpy(dtype=int)
        kl = part["kl"].to_numpy(dtype=float, na_value=np.nan)
        n_layers, n_heads = max(layer.max() + 1, 1), max(head.max() + 1, 1)
        layers, heads = np.full(n_layers, np.nan), np.full((n_layers, n_heads), np.nan)
        whole, single, every = (layer >= 0) & (head < 0), (layer >= 0) & (head >= 0), layer < 0
        layers[layer[whole]] = kl[whole]
        heads[layer[single], head[single]] = kl[single]
        found[key] = CausalGrid(float(kl[every][0]) if every.any() else float("nan"), layers, heads)
    return found


def _by_task(frame: pd.DataFrame) -> Iterable[tuple[tuple[str, str], pd.DataFrame]]:
    for (model, task), part in frame.groupby(["model", "task"], sort=False):
        yield (str(model), str(task)), part
