"""A joint model of all benchmark scores: known scores of a new model -> mean and covariance of the others.

A mixture of Gaussians over score columns. One component is fitted on all models, one on every family; means and
covariances are pulled towards the common ones, correlations towards their mean within and between benchmarks.
Missing scores are missing: expectation maximisation. Units: points, 0..100. M models, D score columns, C components, K known.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.gaussian_mixture import Components, complete, components, condition, mean_correlations

Array = npt.NDArray[np.float64]

KNOWN_COUNTS = (0, 1, 2, 3, 5, 10, 20)
"""Numbers of known scores at which settings are chosen and intervals are calibrated."""

SETTINGS = tuple((shrinkage, pull) for shrinkage in (0.1, 0.2, 0.35) for pull in (5.0, 20.0, np.inf))
"""(shrinkage, family_pull) to choose from; an infinite pull is one Gaussian without families."""

_EM_SHRINKAGE = 0.2
_SMALLEST = 3


class JointPrediction(NamedTuple):
    """What is expected of the scores of n models, points.

    Attributes
    ----------
    mean, std : array [n, D]
        Known scores keep their value and, without noise, a spread of 0.
    low, high : array [n, D]
        Interval at the estimator's level, calibrated on models (or families) that were left out.
    """

    mean: Array
    std: Array
    low: Array
    high: Array


class JointScores(BaseEstimator):
    """Predicts the missing scores of a model from those that are known, and says how sure it is.

    Parameters
    ----------
    shrinkage : float or None
        Share of every correlation that is replaced by a mean correlation, 0..1; None: chosen inside `fit`.
    family_pull : float or None
        Models' worth of weight that the common covariance has in a family's; infinity: no families. None: chosen.
    block_share : float
        0: correlations are shrunk towards 0; 1: towards their means within and between blocks.
    family_shrinkage : float
        Models' worth of weight that the common mean has in a family's mean.
    left_out : "model" or "family"
        What a new model is like: a further model of known families, or the first of a family. Settings are chosen and
        intervals calibrated by leaving out models or whole families.
    level : float
        Wanted coverage of the intervals, 0..1.
    n_folds : int
        Folds of the choice and the calibration.
    random_state : int
        Which scores count as known there.
    bounds : (float, float)
        Possible scores, points.

    Attributes
    ----------
    settings_ : (float, float)
        shrinkage and family_pull.
    components_ : Components
        The mixture.
    selection_ : dict
        Settings -> mean absolute error on what was left out, points; empty where nothing was to be chosen.
    inflation_ : array [2, len(KNOWN_COUNTS)]
        Factor on standard deviations; row 0 for columns with a known sibling, row 1 for those without.
    duplicates_ : list of (int, int)
        Rows that are equal in all scores; they are left out together.
    """

    def __init__(
        self,
        shrinkage: float | None = None,
        family_pull: float | None = None,
        block_share: float = 0.5,
        family_shrinkage: float = 0.5,
        left_out: str = "model",
        level: float = 0.9,
        n_folds: int = 5,
        random_state: int = 0,
        bounds: tuple[float, float] = (0.0, 100.0),
    ) -> None:
        self.shrinkage = shrinkage
        self.family_pull = family_pull
        self.block_share = block_share
        self.family_shrinkage = family_shrinkage
        self.left_out = left_out
        self.level = level
        self.n_folds = n_folds
        self.random_state = random_state
        self.bounds = bounds

    def fit(self, X: Any, families: Any = None, blocks: Any = None) -> Self:
        """Fit on the scores of M models.

        Parameters
        ----------
        X : array [M, D]
            Points; NaN where a score is not known.
        families : sequence of M, or None
            Models of one family share it; None: every model for itself.
        blocks : sequence of D, or None
            Benchmark that a column is a sub-task of; None: every column for itself.

        Raises
        ------
        VisualHeadsError
            Fewer than three models, an infinite score, a column with fewer than two scores, a model with none.
        """
        scores = self._checked(X)
        n_models, n_columns = scores.shape
        self.n_features_in_ = n_columns
        self.families_ = _labels(families, n_models, "families", "model")
        self.blocks_ = _labels(blocks, n_columns, "blocks", "score column")
        self.duplicates_ = _duplicates(scores)
        folds = self._folds()
        candidates = list(
            dict.fromkeys(
                (
                    shrinkage if self.shrinkage is None else float(self.shrinkage),
                    pull if self.family_pull is None else float(self.family_pull),
                )
                for shrinkage, pull in SETTINGS
            )
        )
        left_out = self._left_out(scores, folds, candidates)
        self.selection_ = {c: float(np.mean([np.abs(r.error).mean() for r in rs])) for c, rs in left_out.items()}
        self.settings_ = min(self.selection_, key=lambda candidate: self.selection_[candidate])
        self.inflation_ = _inflation(left_out[self.settings_], self.level)
        return self._mix(scores)

    def refit(self, X: Any, families: Any = None) -> Self:
        """Fit the mixture on other models, settings and calibration as they were chosen; the columns stay."""
        check_is_fitted(self, "components_")
        scores = self._checked(X)
        if scores.shape[1] != self.n_features_in_:
            raise VisualHeadsError(f"{self.n_features_in_} score columns were fitted; {scores.shape[1]} came.")
        self.families_ = _labels(families, len(scores), "families", "model")
        return self._mix(scores)

    def _mix(self, scores: Array) -> Self:
        filled, spread = complete(scores, self.blocks_, _EM_SHRINKAGE, self.block_share)
        self.components_ = self._components(filled, spread, self.families_, self.settings_)
        return self

    def predict(self, known: Any, families: Any = None, noise: Any = None) -> JointPrediction:
        """Scores of n models of which some scores are known.

        Parameters
        ----------
        known : array [n, D]
            Points; NaN where nothing is known.
        families : sequence of n, or None
            Family of every model where it is known (None otherwise): one that was fitted is taken as the component.
        noise : array [n, D] or None
            Variance of the known scores, points squared: 10^4 p (1 - p) / n for n items.
        """
        check_is_fitted(self, "components_")
        rows, variance, names = self._checked_known(known, families, noise)
        mean, std, inflation = np.empty_like(rows), np.empty_like(rows), np.empty_like(rows)
        for chosen, indices in _patterns(rows, variance, names).items():
            a = np.flatnonzero(np.frombuffer(chosen[0], dtype=bool))
            mixture = self.components_.only(chosen[2])
            mean[indices], std[indices] = condition(mixture, rows[indices], a, variance[indices[0]])
            inflation[indices] = self._inflation_at(a)
        mean = np.clip(mean, *self.bounds)
        half = stats.norm.ppf((1 + self.level) / 2) * std * inflation
        return JointPrediction(mean, std * inflation, *(np.clip(mean + s * half, *self.bounds) for s in (-1, 1)))

    def covariance(self, known: Any, family: Any = None, noise: Any = None) -> tuple[Array, Array]:
        """Mean [D] and covariance [D, D] of one model's scores given what is known of it (the mixture's moments)."""
        check_is_fitted(self, "components_")
        rows, variance, names = self._checked_known([known], [family], None if noise is None else [noise])
        a = np.flatnonzero(np.isfinite(rows[0]))
        mean, matrix = condition(self.components_.only(names[0]), rows, a, variance[0], full=True)
        scale = self._inflation_at(a)
        return np.clip(mean[0], *self.bounds), matrix[0] * scale * scale[:, None]

    def _checked(self, X: Any) -> Array:
        scores = np.array(X, dtype=np.float64, ndmin=2)
        if self.left_out not in ("model", "family"):
            raise VisualHeadsError(f"left_out must be 'model' or 'family'; {self.left_out!r} came.")
        if not 0 < self.level < 1:
            raise VisualHeadsError(f"level must lie between 0 and 1; {self.level!r} came. 0.9 means nine of ten.")
        if self.shrinkage is not None and not 0 < self.shrinkage <= 1:
            raise VisualHeadsError(f"shrinkage must lie above 0 and at most at 1; {self.shrinkage!r} came.")
        if len(scores) < _SMALLEST:
            raise VisualHeadsError(
                f"A joint model needs the scores of at least {_SMALLEST} models; {len(scores)} came. Add models."
            )
        if np.isinf(scores).any():
            raise VisualHeadsError("Scores must be finite or missing; an infinite one came. Mend it or leave it out.")
        few = np.flatnonzero(np.isfinite(scores).sum(axis=0) < 2)
        if len(few):
            raise VisualHeadsError(
                f"Every benchmark needs the scores of two models at least; column {few[0]} has fewer. Leave it out."
            )
        empty = np.flatnonzero(~np.isfinite(scores).any(axis=1))
        if len(empty):
            raise VisualHeadsError(f"Every model needs a score; row {empty[0]} has none. Leave it out.")
        return scores

    def _checked_known(self, known: Any, families: Any, noise: Any) -> tuple[Array, Array, list[Any]]:
        rows = np.array(known, dtype=np.float64, ndmin=2)
        if rows.shape[1] != self.n_features_in_:
            raise VisualHeadsError(
                f"Known scores must have the {self.n_features_in_} columns that were fitted; {rows.shape[1]} came."
            )
        if np.isinf(rows).any():
            raise VisualHeadsError("Known scores must be finite or missing; an infinite one came.")
        variance = np.zeros_like(rows) if noise is None else np.array(noise, dtype=np.float64, ndmin=2)
        if variance.shape != rows.shape or not (variance[np.isfinite(rows)] >= 0).all():
            raise VisualHeadsError("Every known score needs a variance of at least 0, points squared.")
        names = [None] * len(rows) if families is None else list(families)
        return rows, np.where(np.isfinite(rows), variance, 0.0), names

    def _folds(self) -> list[npt.NDArray[np.int64]]:
        """Positions that are left out together: models, or whole families; equal rows never apart."""
        units = (
            np.arange(len(self.families_))
            if self.left_out == "model"
            else np.unique(self.families_, return_inverse=True)[1]
        )
        for first, second in self.duplicates_:
            units = np.where(units == units[second], units[first], units)
        names, sizes = np.unique(units, return_counts=True)
        order = np.random.default_rng(self.random_state).permutation(len(names))
        order = order[np.argsort(-sizes[order], kind="stable")]
        n_folds = min(self.n_folds, len(names))
        filled = np.zeros(n_folds)
        fold_of = {}
        for position in order:
            fold_of[names[position]] = int(np.argmin(filled))
            filled[fold_of[names[position]]] += sizes[position]
        of_row = np.array([fold_of[unit] for unit in units])
        return [np.flatnonzero(of_row == fold) for fold in range(n_folds)]

    def _components(
        self, filled: Array, spread: Array | None, families: npt.NDArray[Any], settings: tuple[float, float]
    ) -> Components:
        return components(
            filled, spread, families, self.blocks_, settings[0], settings[1], self.block_share, self.family_shrinkage
        )

    def _left_out(
        self, scores: Array, folds: list[npt.NDArray[np.int64]], candidates: list[tuple[float, float]]
    ) -> dict[tuple[float, float], list[_LeftOut]]:
        """For every candidate the errors on models of the folds, at each number of known scores, with and without siblings."""
        results: dict[tuple[float, float], list[_LeftOut]] = {candidate: [] for candidate in candidates}
        random = np.random.default_rng(self.random_state)
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(scores)), fold)
            seen = np.isfinite(scores[rest]).sum(axis=0) >= 2
            if len(rest) < 2 or not seen.all():
                continue
            filled, spread = complete(scores[rest], self.blocks_, _EM_SHRINKAGE, self.block_share)
            questions = self._questions(random)
            for candidate in candidates:
                mixture = self._components(filled, spread, self.families_[rest], candidate)
                results[candidate] += [_asked(mixture, scores[fold], question, self.bounds) for question in questions]
        if not any(results.values()):
            raise VisualHeadsError(
                "Nothing can be left out: without some fold a benchmark has fewer than two scores. Add models, or "
                "leave out benchmarks that few models have."
            )
        return results

    def _questions(self, random: np.random.Generator) -> list[_Question]:
        """Which columns are known and which are asked for: any others, and one whole block."""
        n_columns = self.n_features_in_
        questions = []
        for _ in range(3):
            order = random.permutation(n_columns)
            for position, count in enumerate(KNOWN_COUNTS):
                if count < n_columns:
                    known, rest = order[:count], order[count:]
                    with_sibling = np.isin(self.blocks_[rest], self.blocks_[known])
                    questions += [
                        _Question(known, rest[part], kind, position)
                        for kind, part in ((0, with_sibling), (1, ~with_sibling))
                        if part.any()
                    ]
        for block in np.unique(self.blocks_):
            asked = np.flatnonzero(self.blocks_ == block)
            others = random.permutation(np.flatnonzero(self.blocks_ != block))
            questions += [
                _Question(others[:count], asked, 1, position)
                for position, count in enumerate(KNOWN_COUNTS)
                if count <= len(others) and len(asked) > 1
            ]
        return questions

    def _inflation_at(self, known: npt.NDArray[np.int64]) -> Array:
        """Factor on the standard deviation of every column [D] when the columns `known` are known."""
        at = np.log1p(KNOWN_COUNTS)
        values = [float(np.interp(np.log1p(len(known)), at, row)) for row in self.inflation_]
        return np.where(np.isin(self.blocks_, self.blocks_[known]), *values)


class _Question(NamedTuple):
    known: npt.NDArray[np.int64]
    asked: npt.NDArray[np.int64]
    kind: int
    at: int


class _LeftOut(NamedTuple):
    kind: int
    at: int
    error: Array
    standard: Array


def _asked(mixture: Components, rows: Array, question: _Question, bounds: tuple[float, float]) -> _LeftOut:
    """Errors (points) and standardised errors of one question on left-out models, observed scores only."""
    errors, standard = [], []
    hidden = np.full_like(rows, np.nan)
    hidden[:, question.known] = rows[:, question.known]
    for chosen, indices in _patterns(hidden, np.zeros_like(hidden), [None] * len(rows)).items():
        a = np.flatnonzero(np.frombuffer(chosen[0], dtype=bool))
        mean, std = condition(mixture, hidden[indices], a, np.zeros(rows.shape[1]))
        error = rows[indices][:, question.asked] - np.clip(mean, *bounds)[:, question.asked]
        seen = np.isfinite(error)
        errors.append(error[seen])
        standard.append((error / std[:, question.asked])[seen])
    return _LeftOut(question.kind, question.at, np.concatenate(errors), np.concatenate(standard))


def _inflation(results: list[_LeftOut], level: float) -> Array:
    """Ratio of the empirical to the Gaussian quantile of standardised left-out errors; neighbours fill empty cells."""
    z = stats.norm.ppf((1 + level) / 2)
    table = np.full((2, len(KNOWN_COUNTS)), np.nan)
    for kind in range(2):
        for count in range(len(KNOWN_COUNTS)):
            parts = [np.abs(r.standard) for r in results if (r.kind, r.at) == (kind, count) and len(r.standard)]
            if parts:
                values = np.concatenate(parts)
                table[kind, count] = np.quantile(values, level, method="higher") / z
    for kind in range(2):
        row = table[kind]
        if not np.isfinite(row).any():
            table[kind] = table[1 - kind]
    at = np.arange(len(KNOWN_COUNTS))
    return np.array([np.interp(at, at[np.isfinite(row)], row[np.isfinite(row)]) for row in table])


def _patterns(rows: Array, variance: Array, names: list[Any]) -> dict[tuple[bytes, bytes, Any], npt.NDArray[np.int64]]:
    """Rows that share what is known, its variance and the family: one solution serves them all."""
    groups: dict[tuple[bytes, bytes, Any], list[int]] = {}
    seen = np.isfinite(rows)
    for position, name in enumerate(names):
        groups.setdefault((seen[position].tobytes(), variance[position].tobytes(), name), []).append(position)
    return {key: np.array(positions, dtype=np.int64) for key, positions in groups.items()}


def _duplicates(scores: Array) -> list[tuple[int, int]]:
    """Pairs of rows (the first, a later one) that are equal in all scores, missing ones included."""
    first: dict[bytes, int] = {}
    pairs = []
    for position, row in enumerate(scores):
        key = row.tobytes()
        if key in first:
            pairs.append((first[key], position))
        first.setdefault(key, position)
    return pairs


def _labels(given: Any, length: int, what: str, of: str) -> npt.NDArray[Any]:
    if given is None:
        return np.array([f"#{position}" for position in range(length)])
    labels = np.array([str(label) for label in given])
    if len(labels) != length:
        raise VisualHeadsError(f"{what} must name one per {of}: {length} are required, {len(labels)} came.")
    return labels


__all__ = ["KNOWN_COUNTS", "SETTINGS", "JointPrediction", "JointScores", "mean_correlations"]
