"""How well answers predict scores where a training saw the benchmark's kind of picture, and where it never did.

Reads the measured zoo and the settings of its trainings; left-out lineages, final checkpoints that were not broken on purpose,
counting benchmarks left out. Prints a Markdown table of mean absolute errors in points. Small models trained on drawn scenes.

    python -m lab taught-or-not reports/prediction/tables/development
"""

from __future__ import annotations

import sys

import numpy as np

from lab.study.dataset import zoo_data
from lab.study.methods.base import Budget, Test, Training
from lab.study.methods.forest import Forest
from lab.study.methods.registry import CHEAP, FREE
from lab.tables.zoo import read_zoo_tables
from lab.zoo.settings import proof_settings_path, read_settings
from lmms_visual_heads.errors import VisualHeadsError

WAYS = {
    "answers + agreement": Forest("answers + agreement", FREE, agreement=True),
    "agreement": Forest("agreement", (), agreement=True),
    "own answers": Forest("own answers", ("own_answers",)),
    "own causal heads": Forest("own causal heads", ("own_causal",)),
    "own heads": Forest("own heads", ("own_heads",)),
    "probe heads": Forest("probe heads", ("probe_heads",)),
    "metadata, loss, probe accuracy": Forest("cheap", CHEAP),
}


def main() -> None:
    """Print the table."""
    if len(sys.argv) != 2:
        raise VisualHeadsError(f"taught-or-not needs the folder of a measured zoo; {len(sys.argv) - 1} arguments came.")
    tables = read_zoo_tables(sys.argv[1])
    data = zoo_data(tables)
    taught_of = {training.name: training.generators for training in read_settings(proof_settings_path())}
    generators = tables.benchmarks.set_index("benchmark")["generator"]
    lineages = tables.checkpoints.set_index("model")["lineage"]
    taught = np.array(
        [[taught_of[lineages[model]].get(generators[b], 0) > 0 for b in data.benchmarks] for model in data.models]
    )
    points = data.points["clean"]
    cells = data.primary[:, None] & ~data.counting[None, :]
    confidence = 100 / (1 + np.exp(-data.evidence(256).stack(("own_answers.confidence",))[0][:, :, 0]))
    found = {"raw confidence, nothing fitted": confidence}
    groups = np.array(data.groups)
    folds = np.random.default_rng(0).permutation(len(groups)) % 8
    everything, every = np.ones(len(data.benchmarks), dtype=bool), np.arange(len(data.benchmarks))
    for fold in range(8):
        here = np.isin(data.lineages, groups[folds == fold])
        training, test = Training(data, np.flatnonzero(~here), everything), Test(np.flatnonzero(here), every)
        for name, forest in WAYS.items():
            view = forest.view(training, test, Budget(forest.budgets(data)[-1], []))
            if view is not None:
                found.setdefault(name, np.full_like(points, np.nan))[here] = view.mean
    print(
        f"| error in points | taught ({(cells & taught).sum()} cells) | never taught ({(cells & ~taught).sum()} cells) |"
    )
    print("|---|---|---|")
    for name, predicted in found.items():
        error = np.abs(predicted - points)
        print(f"| {name} | {error[cells & taught].mean():.1f} | {error[cells & ~taught].mean():.1f} |")


if __name__ == "__main__":
    main()
