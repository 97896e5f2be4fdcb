"""Fit on what was measured of 20 embedded checkpoints, and predict two checkpoints of a training that was left out.

    python examples/predict.py

The measurements ship with the package. With your own: `read_measurements("heads")`, see docs/quickstart.md.
"""

from __future__ import annotations

from lmms_visual_heads import BenchmarkPredictor, read_lineages, read_measurements, read_scores
from lmms_visual_heads.demo.measured import LINEAGES_FILE, SCORES_FILE, measured_folder

LEFT_OUT = "w80-d3-t16"


def main() -> None:
    """Print errors on left-out trainings, then predictions beside what was really scored."""
    folder = measured_folder()
    measurements = read_measurements(folder)
    scores, lineages = read_scores(folder / SCORES_FILE), read_lineages(folder / LINEAGES_FILE)
    fitted = [model for model, lineage in lineages.items() if lineage != LEFT_OUT]
    new = [model for model in lineages if model not in fitted]

    predictor = BenchmarkPredictor().fit(
        measurements.only(fitted), scores[scores["model"].isin(fitted)], groups=lineages
    )
    print(predictor.errors_[["benchmark", "n_lineages", "error", "baseline_error"]].round(1).to_string(index=False))

    predictions = predictor.predict(measurements.only(new))
    points = scores.assign(actual=100 * scores["score"] / scores["scale"])[["model", "benchmark", "actual"]]
    shown = predictions.merge(points, how="left")[
        ["model", "benchmark", "predicted", "low", "high", "baseline", "actual"]
    ]
    print(shown.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
