"""`BenchmarkPredictor`: what was measured of a new checkpoint -> benchmark scores with intervals, baselines, flags and methods.

Units: points everywhere, 100 * score / the metric's best value. Never imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import feature_table
from lmms_visual_heads.features.measurements import Measurements, as_measurements
from lmms_visual_heads.prediction import flags, inputs, references
from lmms_visual_heads.prediction.compatibility import World
from lmms_visual_heads.prediction.evaluation import errors_of
from lmms_visual_heads.prediction.fitted import FittedPredictor
from lmms_visual_heads.prediction.gaussian_update import Belief
from lmms_visual_heads.prediction.methods import (
    AGREEMENT,
    METHOD_WORDS,
    METHODS,
    DeclaredMethod,
    method_named,
)
from lmms_visual_heads.prediction.model_selection import (
    Rows,
    fit_methods,
    method_data,
    methods_frame,
    nested_evaluation,
    reference_of,
    undominated,
)
from lmms_visual_heads.prediction.posterior import Cell, ModelEvidence, believe
from lmms_visual_heads.prediction.regressors.ridge import LineageRidge
from lmms_visual_heads.prediction.sources import (
    MeasurementSource,
    as_items,
    as_scores,
    heads_of,
    old_fit,
    old_predict,
)
from lmms_visual_heads.prediction.training_data import TrainingSet, training_set
from lmms_visual_heads.schema import PREDICTION_COLUMNS
from lmms_visual_heads.tables import check_scores


class BenchmarkPredictor(BaseEstimator):
    """Predicts benchmark scores of a checkpoint from its heads and from whatever else is known of it.

    Per benchmark several methods (`declared_methods.METHODS`) are fitted, each judged on trainings that it has not seen; the best
    one that a new checkpoint's evidence allows is used and named. Known scores and labelled items enter one joint Gaussian with it.

    Parameters
    ----------
    estimator : scikit-learn regressor or None
        None: each method's own; another one is used for every method.
    level : float
        Wanted coverage of the intervals, 0..1.
    features : sequence of str or None
        Declared features of the heads on the probe to use; None: all.
    tasks : sequence of str or None
        Tasks whose heads are used; None: the probe tasks that every model has.
    size_factor : float
        Language models more than this many times smaller or larger than the fitted ones are refused.
    methods : sequence of str or None
        Names of the declared methods to use; None: all, the best of them chosen per benchmark.

    Attributes
    ----------
    evaluation_ : DataFrame
        model, lineage, benchmark, actual, predicted, low, high, baseline, method: every model predicted with its lineage left out.
    errors_ : DataFrame
        benchmark, error, baseline_error (mean absolute, points), coverage, n_models, n_lineages.
    methods_ : DataFrame
        benchmark, method, error, baseline_error, n_models, n_lineages, chosen: all methods on left-out lineages.
    benchmarks_ : DataFrame
        benchmark, metric, scale of what is predicted; mean and spread between lineages (points); items of the whole benchmark.
    features_ : DataFrame [M, F]
        The fitted models' features of the heads on the probe.
    lineages_ : dict
        model -> lineage.
    world_ : World
        Query, probe data and sizes that new heads must share.
    maps_ : dict
        benchmark -> `ConfidenceMap`, where the fitted models' items came along.
    prompt_fingerprints_, prompt_counts_ : dict
        benchmark -> fingerprints of the own prompts by their number, and how many of them the fitted models answered.
    votes_ : dict
        benchmark -> `references.Votes`: what the fitted models answered, where their answer tables came along.
    notes_ : list of str
        What was left out, one sentence each.

    Examples
    --------
    >>> from lmms_visual_heads import BenchmarkPredictor, read_measurements, read_scores
    >>> from lmms_visual_heads.demo.measured import measured_folder
    >>> folder = measured_folder()  # 22 small checkpoints that come with the package
    >>> predictor = BenchmarkPredictor(methods=("own_answers_free",))
    >>> predictor.fit(read_measurements(folder), read_scores(folder / "scores.csv"), groups=folder / "lineages.csv")
    <BenchmarkPredictor fitted on 22 models of 9 trainings for 5 benchmarks>
    >>> predictor.predict(folder, known_scores=None)[["benchmark", "predicted", "method"]].shape
    (110, 3)
    """

    def __init__(
        self,
        estimator: Any = None,
        level: float = 0.9,
        features: Any = None,
        tasks: Any = None,
        size_factor: float = 3.0,
        methods: Any = None,
    ) -> None:
        self.estimator = estimator
        self.level = level
        self.features = features
        self.tasks = tasks
        self.size_factor = size_factor
        self.methods = methods

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        if not hasattr(self, "models_"):
            return str(super().__repr__(N_CHAR_MAX))
        counts = [len(self.features_), len(set(self.lineages_.values())), len(self.benchmarks_)]
        models, trainings, benchmarks = (
            f"{n} {name}{'' if n == 1 else 's'}"
            for n, name in zip(counts, ("model", "training", "benchmark"), strict=True)
        )
        return f"<BenchmarkPredictor fitted on {models} of {trainings} for {benchmarks}>"

    @old_fit
    def fit(
        self,
        measurements: MeasurementSource,
        scores: pd.DataFrame | Path | str,
        *,
        groups: Any = None,
        items: pd.DataFrame | Path | str | None = None,
    ) -> Self:
        """Fit on the checkpoints that have measurements and scores.

        Parameters
        ----------
        measurements : Measurements, path, or several paths
            What was measured of M checkpoints; a path is read with `read_measurements`.
        scores : DataFrame or path
            Score table (`tables.SCORE_COLUMNS`); a path is read with `read_scores`.
        groups : mapping, DataFrame, path or None
            model -> training: checkpoints of one training share one; a model that is not named is its own.
        items : DataFrame, path or None
            Item table (`tables.ITEM_COLUMNS`) of the same checkpoints: what a confidence is worth on each benchmark.

        Returns
        -------
        BenchmarkPredictor
            Itself.

        Raises
        ------
        VisualHeadsError
            Too few checkpoints, different queries or data, one model twice with different scores, mixed scales, a method that is
            not declared.
        """
        if not 0 < self.level < 1:
            raise VisualHeadsError(f"level must lie between 0 and 1; {self.level!r} came. 0.9 means nine of ten.")
        if not self.size_factor >= 1:
            raise VisualHeadsError(f"size_factor must be at least 1; {self.size_factor!r} came.")
        declared = self._declared_methods()
        measured, table = as_measurements(measurements), as_scores(scores)
        training = training_set(heads_of(measured), table, groups, self.tasks, self.features)
        self.world_ = World.of(training.profiles, training.tasks)
        self.features_ = training.features
        self.lineages_ = training.lineages
        self.notes_ = list(dict.fromkeys([*training.notes, *measured.notes]))
        models, names = list(self.features_.index), [benchmark.name for benchmark in training.benchmarks]
        self.prompt_fingerprints_ = inputs.prompt_fingerprints(measured, models, names)
        self._fit_methods(training, measured, check_scores(table), declared)
        counts = inputs.prompt_counts(measured, models, names)
        self.prompt_counts_ = {
            name: float(np.nanmedian(counts[:, b])) for b, name in enumerate(names) if np.isfinite(counts[:, b]).any()
        }
        self.maps_ = {}
        labels, notes = as_items(items)
        if labels is not None:
            checked, left_out = inputs.check_items(labels, models, names)
            self.maps_ = inputs.confidence_maps(checked, measured, self.lineages_, names)
            self.notes_ += [*notes, *left_out]
        return self

    @old_predict
    def predict(
        self,
        measurements: MeasurementSource,
        *,
        known_scores: pd.DataFrame | Path | str | None = None,
        items: pd.DataFrame | Path | str | None = None,
        force: bool = False,
    ) -> pd.DataFrame:
        """Predicted scores, one row per model and benchmark.

        Parameters
        ----------
        measurements : Measurements, path, or several paths
            A path is read with `read_measurements`: heads, and the answers and knock-outs beside them.
        known_scores : DataFrame, path or None
            Score table of scores that are measured already: they stand in the place of predictions, flagged `known`, and move the
            predictions of the other benchmarks.
        items : DataFrame, path or None
            Item table: labelled items of fitted benchmarks; they are blended with the prediction.
        force : bool
            Predict for incompatible heads, too; every such row is flagged.

        Returns
        -------
        DataFrame
            `schema.PREDICTION_COLUMNS`; predicted, low, high and baseline in points. A model that was fitted on gets the
            prediction of the regression that did not see its training, flagged `in_training`.

        Raises
        ------
        VisualHeadsError
            Incompatible heads or prompts without `force`; known scores in another metric or scale than the fitted ones;
            labels that do not belong to the answers.
        """
        table = []
        for model, (cells, _) in self._believed(measurements, known_scores, items, force).items():
            for benchmark, c in cells.items():
                said = flags.join_flags(list(c.flags))
                table.append((model, benchmark, c.center, c.low, c.high, self.level, c.baseline, said, c.method))
        return pd.DataFrame(table, columns=list(PREDICTION_COLUMNS))

    @old_predict
    def beliefs(
        self,
        measurements: MeasurementSource,
        *,
        known_scores: pd.DataFrame | Path | str | None = None,
        items: pd.DataFrame | Path | str | None = None,
        force: bool = False,
    ) -> dict[str, Belief]:
        """Per model the joint posterior behind `predict`: mean and covariance over the benchmarks, points. Same parameters."""
        posterior = self._believed(measurements, known_scores, items, force)
        return {model: belief for model, (_, belief) in posterior.items()}

    def describe(self) -> dict[str, Any]:
        """What the predictor was fitted on, and how well it did: plain values that JSON can hold."""
        check_is_fitted(self, "models_")
        merged = self.benchmarks_.merge(self.errors_, on="benchmark")
        records = [{k: None if v != v else v for k, v in row.items()} for row in merged.to_dict("records")]
        chosen = self.methods_[self.methods_["chosen"]].set_index("benchmark")["method"].to_dict()
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
            "methods": {name: METHOD_WORDS[name] for name in dict.fromkeys(self.methods_["method"])},
            "chosen": {str(name): str(method) for name, method in chosen.items()},
            "own_prompts": {name: int(count) for name, count in self.prompt_counts_.items()},
            "level": self.level,
            "unit": "points: 100 * score / best possible value",
            "benchmarks": records,
            "notes": list(self.notes_),
        }

    @property
    def fitted_(self) -> FittedPredictor:
        """What was fitted, as a frozen record."""
        names = (field.name for field in fields(FittedPredictor) if field.name != "level")
        return FittedPredictor(**{name: getattr(self, f"{name}_") for name in names}, level=self.level)

    @property
    def populations_(self) -> dict[str, int]:
        """benchmark -> items of the whole benchmark, where the fitted scores say it."""
        return self.fitted_.populations

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the predictor as one file without pickle.

        Raises
        ------
        VisualHeadsError
            When the file cannot be written, or the estimator's types are not among those that a file may hold.
        """
        check_is_fitted(self, "models_")
        from lmms_visual_heads.prediction.serialization import save_predictor

        return save_predictor(self.fitted_, self.get_params(deep=False), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BenchmarkPredictor:
        """Read a file written by `save`; nothing in it is executed.

        Raises
        ------
        VisualHeadsError
            No such file, a newer version, or a file that was changed.
        """
        from lmms_visual_heads.prediction.serialization import load_predictor

        record, parameters = load_predictor(path)
        predictor = cls(**parameters)
        for field in fields(FittedPredictor):
            if field.name != "level":
                setattr(predictor, f"{field.name}_", getattr(record, field.name))
        return predictor

    def _declared_methods(self) -> tuple[DeclaredMethod, ...]:
        """The methods to fit, in their declared order."""
        if self.methods is None:
            return METHODS
        names = [self.methods] if isinstance(self.methods, str) else list(self.methods)
        if not names:
            raise VisualHeadsError("methods must name at least one declared method, or be None for all; none came.")
        wanted = {method_named(name).name for name in names}
        return tuple(method for method in METHODS if method.name in wanted)

    def _fit_methods(
        self,
        training: TrainingSet,
        measured: Measurements,
        scores: pd.DataFrame,
        declared: tuple[DeclaredMethod, ...],
    ) -> None:
        models, names = [str(model) for model in training.features.index], [b.name for b in training.benchmarks]
        points, items = np.full((2, len(models), len(names)), np.nan)
        counts = scores.set_index(["model", "benchmark"])["n_items"].astype(float)
        for b, benchmark in enumerate(training.benchmarks):
            at = [models.index(model) for model in benchmark.models]
            points[at, b] = benchmark.points
            items[at, b] = [counts.to_dict()[model, benchmark.name] for model in benchmark.models]
        groups = np.array([self.lineages_[model] for model in models], dtype=np.str_)

        def data_without(fold: Sequence[str]) -> dict[str, dict[str, Rows]]:
            """Rows with nothing of some lineages in the others': they do not vote."""
            if not self.votes_:
                return data
            voting = np.where(np.isin(groups, fold)[:, None], np.nan, points)
            votes = references.votes_of(measured, models, names, voting, items)
            agreed = references.agreement_of(votes, measured, models, names, self.lineages_)[:, :, None]
            again = {}
            for method in agreeing:
                values, header = columns[method.name]
                again[method.name] = np.concatenate([values[:, :, :-1], agreed], axis=2), header  # agreement comes last
            return method_data({**columns, **again}, models, names, points, items, self.lineages_)

        agreeing = tuple(method for method in declared if AGREEMENT in method.columns)
        self.votes_ = references.votes_of(measured, models, names, points, items) if agreeing else {}
        agreed = references.agreement_of(self.votes_, measured, models, names, self.lineages_)
        columns = inputs.method_columns(training.profiles, training.features, measured, names, declared, agreed)
        data = method_data(columns, models, names, points, items, self.lineages_)
        everyone = {
            name: Rows(tuple(models), points[:, [b]], points[:, b], groups, items[:, b]).take(np.isfinite(points[:, b]))
            for b, name in enumerate(names)
        }
        fitted = fit_methods(data, self.estimator)
        speechless = [name for name in names if name not in fitted]
        if len(speechless) == len(names):
            raise VisualHeadsError(
                f"A fit needs what its methods predict from; {', '.join(method.name for method in declared)} found it for no "
                "benchmark. Measure it (answers lie beside the head tables), or fit with other methods."
            )
        if speechless:
            self.notes_.append(
                f"Left out {', '.join(speechless)}: too few models have what the chosen methods predict from."
            )
            everyone = {name: rows for name, rows in everyone.items() if name in fitted}
        self.methods_ = methods_frame(fitted)
        self.models_ = undominated(fitted, {name: header for name, (_, header) in columns.items()})
        self.evaluation_ = self._evaluated(data_without, everyone)
        self.errors_ = errors_of(self.evaluation_)
        self.benchmarks_ = pd.DataFrame(
            [
                (b.name, b.metric, b.scale, *reference_of(everyone[b.name]))
                for b in training.benchmarks
                if b.name in everyone
            ],
            columns=["benchmark", "metric", "scale", "mean", "between", "n_items"],
        )

    def _evaluated(
        self, data_without: Callable[[Sequence[str]], dict[str, dict[str, Rows]]], scored: dict[str, Rows]
    ) -> pd.DataFrame:
        """`evaluation_`: most of a fit's time; no prediction of a model that was not fitted depends on it."""
        evaluation, used = nested_evaluation(data_without, scored, self.level, self.estimator)
        keys = zip(evaluation["model"], evaluation["benchmark"], strict=True)
        return evaluation.assign(method=[used[key] for key in keys])

    def _template(self) -> Any:
        return LineageRidge() if self.estimator is None else self.estimator

    def _believed(
        self,
        measurements: MeasurementSource,
        known_scores: pd.DataFrame | Path | str | None,
        items: pd.DataFrame | Path | str | None,
        force: bool,
    ) -> dict[str, tuple[dict[str, Cell], Belief]]:
        check_is_fitted(self, "models_")
        beside = as_measurements(measurements)
        profiles = heads_of(beside)
        flags_of = {name: self.world_.check(profiles, name, self.size_factor, force) for name in profiles.models}
        rows = feature_table(profiles, self.world_.fingerprints)[list(self.features_.columns)]
        models, names = [str(model) for model in rows.index], [str(name) for name in self.benchmarks_["benchmark"]]
        for model in models:
            flags_of[model] += self._other_prompts(beside, model, names, force)
        methods = [method_named(name) for name in dict.fromkeys(self.methods_["method"])]
        scores = None if known_scores is None else check_scores(as_scores(known_scores), "the table of known scores")
        agreed = references.agreement_of(self.votes_, beside, models, names, self.lineages_)
        columns = inputs.method_columns(profiles, rows, beside, names, methods, agreed)
        counts = inputs.prompt_counts(beside, models, names)
        given = self._known(scores)
        labelled: Mapping[str, Any] = {}
        labels, _ = as_items(items)
        if labels is not None:
            labelled = inputs.labelled_items(inputs.check_items(labels, models, names)[0], beside)
        record = self.fitted_
        believed = {}
        correlations: dict[tuple[str, ...], Any] = {}
        for m, model in enumerate(models):
            evidence = ModelEvidence(
                model,
                {name: (values[m], header) for name, (values, header) in columns.items()},
                tuple(flags_of[model]),
                dict(zip(names, counts[m], strict=True)),
                {
                    b: float(p.std())
                    for b in names
                    if (p := beside.prompts.get((model, b))) is not None and p.notna().sum() > 3
                },
                {b: score for (own, b), score in given.items() if own == model},
                labelled.get(model, {}),
            )
            believed[model] = believe(record, evidence, correlations)
        return believed

    def _other_prompts(self, measured: Measurements, model: str, names: list[str], force: bool) -> list[str]:
        """Benchmark prompts must be those of the fitted models.

        Raises
        ------
        VisualHeadsError
            Other data under the same task's name, without `force`.
        """
        for name in names:
            fingerprint, number = measured.fingerprints.get((model, name), ("", -1))
            if self.prompt_fingerprints_.get(name, {}).get(number, fingerprint) != fingerprint:
                if force:
                    return [flags.FORCED_PROBE]
                raise VisualHeadsError(
                    "Benchmark prompts must be those of the fitted models; "
                    f"{model} answered other data of {name} (another fingerprint). "
                    "Run the same data, leave its answer table out, or use --force (every row is then flagged)."
                )
        return []

    def _known(self, scores: pd.DataFrame | None) -> dict[tuple[str, str], tuple[float, int | None]]:
        """(model, benchmark) -> (points, n_items) of the scores that are given."""
        if scores is None:
            return {}
        fitted = self.benchmarks_.set_index("benchmark")
        given: dict[tuple[str, str], tuple[float, int | None]] = {}
        for row in scores.to_dict("records"):
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


__all__ = ["BenchmarkPredictor"]
