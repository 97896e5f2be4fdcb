"""`BenchmarkPredictor`: heads of a new checkpoint -> benchmark scores with intervals, baselines and flags.

Units: points everywhere, 100 * score / the metric's best value. Never imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles, feature_table
from lmms_visual_heads.prediction import flags
from lmms_visual_heads.prediction.intervals import CERTIFIED_LINEAGES, sampling_interval
from lmms_visual_heads.prediction.protocol import BenchmarkModel, errors_of, evaluate
from lmms_visual_heads.prediction.ridge import LineageRidge
from lmms_visual_heads.prediction.training import Heads, TrainingSet, as_profiles, training_set
from lmms_visual_heads.prediction.world import World
from lmms_visual_heads.schema import PREDICTION_COLUMNS
from lmms_visual_heads.tables import check_scores


class BenchmarkPredictor(BaseEstimator):
    """Predicts benchmark scores of a checkpoint from its head profile.

    Per benchmark one regression on the declared features (`features.FEATURES`), judged on trainings that it has not seen.

    Parameters
    ----------
    estimator : scikit-learn regressor or None
        None: `LineageRidge()`.
    level : float
        Wanted coverage of the intervals, 0..1.
    features : sequence of str or None
        Declared features to use; None: all.
    tasks : sequence of str or None
        Tasks whose heads are used; None: the probe tasks that every model has.
    size_factor : float
        Language models more than this many times smaller or larger than the fitted ones are refused.

    Attributes
    ----------
    evaluation_ : DataFrame
        model, lineage, benchmark, actual, predicted, low, high, baseline: every model predicted with its lineage left out.
    errors_ : DataFrame
        benchmark, error, baseline_error (mean absolute, points), coverage, n_models, n_lineages.
    benchmarks_ : DataFrame
        benchmark, metric, scale of what is predicted.
    features_ : DataFrame [M, F]
        The fitted models' features.
    lineages_ : dict
        model -> lineage.
    world_ : World
        Query, probe data and sizes that new heads must share.
    notes_ : list of str
        What was left out, one sentence each.

    Examples
    --------
    >>> predictor = BenchmarkPredictor().fit(read_profiles("heads"), read_scores("scores.csv"))  # doctest: +SKIP
    >>> predictor.predict(read_profiles("new.heads.parquet"))  # doctest: +SKIP
    """

    def __init__(
        self,
        estimator: Any = None,
        level: float = 0.9,
        features: Any = None,
        tasks: Any = None,
        size_factor: float = 3.0,
    ) -> None:
        self.estimator = estimator
        self.level = level
        self.features = features
        self.tasks = tasks
        self.size_factor = size_factor

    def fit(self, head_profiles: Heads, score_table: pd.DataFrame, lineages: Any = None) -> Self:
        """Fit on the checkpoints that have heads and scores.

        Parameters
        ----------
        head_profiles : HeadProfiles, HeadTable, or several of them
        score_table : DataFrame
            `schema.SCORE_COLUMNS`.
        lineages : mapping, DataFrame or None
            Checkpoints of one training share a lineage; a model that is not named is its own.

        Raises
        ------
        VisualHeadsError
            Too few checkpoints, different queries or data, one model twice with different scores, mixed scales.
        """
        if not 0 < self.level < 1:
            raise VisualHeadsError(f"level must lie between 0 and 1; {self.level!r} came. 0.9 means nine of ten.")
        if not self.size_factor >= 1:
            raise VisualHeadsError(f"size_factor must be at least 1; {self.size_factor!r} came.")
        training = training_set(head_profiles, score_table, lineages, self.tasks, self.features)
        self.world_ = World.of(training.profiles, training.tasks)
        self.features_ = training.features
        self.lineages_ = training.lineages
        self.notes_ = training.notes
        self.benchmarks_ = pd.DataFrame(
            [(b.name, b.metric, b.scale) for b in training.benchmarks], columns=["benchmark", "metric", "scale"]
        )
        self._fit_models(training)
        return self

    def predict(self, head_profiles: Heads, known: pd.DataFrame | None = None, force: bool = False) -> pd.DataFrame:
        """Predicted scores, one row per model and benchmark.

        Parameters
        ----------
        head_profiles : HeadProfiles, HeadTable, or several of them
        known : DataFrame or None
            Score table of scores that are measured already: they stand in the place of predictions, flagged `known`.
        force : bool
            Predict for heads from another world, too; every such row is flagged.

        Returns
        -------
        DataFrame
            `schema.PREDICTION_COLUMNS`; predicted, low, high and baseline in points. A model that was fitted on gets the
            prediction of the regression that did not see its lineage, flagged `in_training`.

        Raises
        ------
        VisualHeadsError
            Heads from another world without `force`; known scores in another metric or scale than the fitted ones.
        """
        check_is_fitted(self, "models_")
        profiles = as_profiles(head_profiles)
        flags_of = {name: self.world_.check(profiles, name, self.size_factor, force) for name in profiles.models}
        rows = feature_table(profiles, self.world_.fingerprints)[list(self.features_.columns)]
        overshoot = self._overshoot(rows)
        measured = self._known(known)
        table = []
        for position, model in enumerate(rows.index):
            own = list(flags_of[model])
            if rows.iloc[position].isna()[self.features_.notna().any()].any():
                own.append(flags.MISSING)
            if overshoot[position] > 0:
                own.append(flags.OUTSIDE)
            for benchmark in self.benchmarks_["benchmark"]:
                if (model, benchmark) in measured:
                    numbers = self._measured(benchmark, *measured[model, benchmark])
                    cell = [flags.KNOWN]
                else:
                    numbers, extra = self._predicted(benchmark, str(model), rows.iloc[[position]], overshoot[position])
                    cell = own + extra
                table.append((model, benchmark, *numbers[:3], self.level, numbers[3], flags.join_flags(cell)))
        return pd.DataFrame(table, columns=list(PREDICTION_COLUMNS))

    def describe(self) -> dict[str, Any]:
        """What the predictor was fitted on, and how well it did: plain values that JSON can hold."""
        check_is_fitted(self, "models_")
        merged = self.benchmarks_.merge(self.errors_, on="benchmark")
        return {
            "models": list(self.features_.index),
            "n_models": len(self.features_),
            "n_lineages": len(set(self.lineages_.values())),
            "lineages": dict(self.lineages_),
            "query": self.world_.query,
            "probe": {
                task: {"fingerprint": fingerprint, "n_documents": self.world_.n_documents[task]}
                for task, fingerprint in self.world_.fingerprints.items()
            },
            "language_model_parameters": None if self.world_.parameters is None else list(self.world_.parameters),
            "dtypes": list(self.world_.dtypes),
            "image_processors": list(self.world_.image_processors),
            "features": list(self.features_.columns),
            "method": type(self._template()).__name__,
            "level": self.level,
            "unit": "points: 100 * score / best possible value",
            "benchmarks": merged.to_dict("records"),
            "notes": list(self.notes_),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the predictor as one file without pickle; see `prediction.storage`."""
        from lmms_visual_heads.prediction.storage import save_predictor

        return save_predictor(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BenchmarkPredictor:
        """Read a file written by `save`; nothing in it is executed.

        Raises
        ------
        VisualHeadsError
            No such file, a newer version, or a file that was changed.
        """
        from lmms_visual_heads.prediction.storage import load_predictor

        return load_predictor(path)

    def _fit_models(self, training: TrainingSet) -> None:
        self.models_: dict[str, BenchmarkModel] = {}
        evaluations = []
        for benchmark in training.benchmarks:
            X = training.features.loc[list(benchmark.models)].to_numpy(dtype=np.float64)
            lineages = np.array([training.lineages[model] for model in benchmark.models])
            self.models_[benchmark.name] = BenchmarkModel.fit(self._template(), X, benchmark.points, lineages)
            evaluations.append(
                evaluate(
                    self._template(), X, benchmark.points, list(benchmark.models), lineages, benchmark.name, self.level
                )
            )
        self.evaluation_ = pd.concat(evaluations, ignore_index=True)
        self.errors_ = errors_of(self.evaluation_)

    def _template(self) -> Any:
        return LineageRidge() if self.estimator is None else self.estimator

    def _overshoot(self, rows: pd.DataFrame) -> np.ndarray:
        """How far each model lies outside the fitted ranges: 0 up to half a range beyond, then in ranges, at most 10."""
        low = self.features_.min().to_numpy(dtype=np.float64)
        high = self.features_.max().to_numpy(dtype=np.float64)
        values = rows.to_numpy(dtype=np.float64)
        beyond = np.maximum(low - values, values - high)
        varied = high > low
        ranges = np.divide(beyond, high - low, out=np.zeros_like(beyond), where=varied & np.isfinite(beyond))
        largest = np.maximum(ranges.max(axis=1), 0.0)
        return np.where(largest > 0.5, np.minimum(largest, 10.0), 0.0)

    def _predicted(
        self, benchmark: str, model: str, row: pd.DataFrame, overshoot: float
    ) -> tuple[tuple[float, ...], list[str]]:
        """(predicted, low, high, baseline) and the benchmark's flags."""
        fitted = self.models_[benchmark]
        errors = self.errors_.set_index("benchmark").loc[benchmark]
        extra = [flags.FEW_LINEAGES] if errors["n_lineages"] < CERTIFIED_LINEAGES else []
        if errors["error"] >= errors["baseline_error"]:
            extra.append(flags.NO_BETTER)
        left_out = self.evaluation_[(self.evaluation_["benchmark"] == benchmark) & (self.evaluation_["model"] == model)]
        if len(left_out):
            seen = left_out.iloc[0]
            return tuple(float(seen[name]) for name in ("predicted", "low", "high", "baseline")), [
                *extra,
                flags.IN_TRAINING,
            ]
        X = row.to_numpy(dtype=np.float64)
        low, high = fitted.intervals(X, self.level, np.array([1.0 + overshoot]))[0]
        return (float(fitted.predict(X)[0]), float(low), float(high), fitted.baseline), extra

    def _known(self, known: pd.DataFrame | None) -> dict[tuple[str, str], tuple[float, int | None]]:
        """(model, benchmark) -> (points, n_items) of the scores that are given."""
        if known is None:
            return {}
        fitted = self.benchmarks_.set_index("benchmark")
        given: dict[tuple[str, str], tuple[float, int | None]] = {}
        for row in check_scores(known, "the table of known scores").to_dict("records"):
            model, benchmark = str(row["model"]), str(row["benchmark"])
            if benchmark not in fitted.index:
                continue
            for name in ("metric", "scale"):
                came, wanted = row[name], fitted[name].to_dict()[benchmark]
                if came != wanted:
                    raise VisualHeadsError(
                        f"Known scores must be in the fitted {name}; {benchmark} of {model} has {came} and the predictor "
                        f"{wanted}. Write both tables with visual-heads scores."
                    )
            n_items = None if pd.isna(row["n_items"]) else int(row["n_items"])
            given[model, benchmark] = (100.0 * float(row["score"]) / float(row["scale"]), n_items)
        return given

    def _measured(self, benchmark: str, points: float, n_items: int | None) -> tuple[float, ...]:
        low, high = sampling_interval(points, n_items, self.level)
        return points, low, high, self.models_[benchmark].baseline


__all__ = ["BenchmarkPredictor", "HeadProfiles"]
