"""How well answers predict scores where a training saw the benchmark's kind of picture, and where it never did.

Reads the measured zoo and the settings of its trainings; left-out lineages, final checkpoints that were not broken on purpose,
counting benchmarks left out. Prints a Markdown table of mean absolute errors in points. Small models trained on drawn scenes.

    python benchmarks/taught_or_not.py reports/prediction/tables/development
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from lmms_visual_heads.prediction.catalogue import CHEAP, FREE  # noqa: E402
from lmms_visual_heads.prediction.methods import Budget, Test, Training  # noqa: E402
from lmms_visual_heads.prediction.methods_forest import Forest  # noqa: E402
from lmms_visual_heads.prediction.zoo_data import zoo_data  # noqa: E402
from lmms_visual_heads.scenes.zoo.settings import proof_settings_path, read_settings  # noqa: E402
from lmms_visual_heads.tables.zoo import read_zoo_tables  # noqa: E402

WAYS = {
    "answers + agreement": Forest("answers + agreement", FREE, agreement=True),
    "agreement": Forest("agreement", (), agreement=True),
    "own answers": Forest("own answers", ("own_answers",)),
    "own causal heads": Forest("own causal heads", ("own_causal",)),
    "own heads": Forest("own heads", ("own_heads",)),
    "probe heads": Forest("probe heads", ("probe_heads",)),
    "metadata, loss, probe accuracy": Forest("cheap", CHEAP),
}


def main(folder: str) -> None:
    """Print the table."""
    tables = read_zoo_tables(folder)
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
    main(sys.argv[1])
