"""What the fitted models answered, prompt by prompt: the votes that a new model's answers are compared with.

See `agreement`. Answers are compared as lower-case text, so that models with different tokenizers can be references of each other.
Shapes: R fitted models, T models, B benchmarks, N prompts of one benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from lmms_visual_heads.features.measurements import Measurements
from lmms_visual_heads.prediction.agreement import agreement, vote_weights

Array = npt.NDArray[np.float64]

_LARGEST_CHANCE = 0.5
"""Guessing is right at most half of the time: with models that always say the same, agreement is no chance."""
_DEFAULT_ITEMS = 1000.0
"""Items behind a score where they are not known."""


@dataclass(frozen=True)
class Votes:
    """Answers of R fitted models to the N prompts of one benchmark that all of them answered.

    Attributes
    ----------
    models : tuple of str
    doc_ids : int array [N]
    words : tuple of str
        The different answers.
    codes : int array [R, N]
        Position in `words`.
    weights : array [R]
        `agreement.vote_weights`; 0 for who does no better than guessing.
    """

    models: tuple[str, ...]
    doc_ids: npt.NDArray[np.int64]
    words: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    weights: Array

    @classmethod
    def of(
        cls, replies: Mapping[str, pd.Series], points: Mapping[str, float], items: Mapping[str, float]
    ) -> Self | None:
        """From answers by model, indexed by doc_id, and the models' scores; None where no prompt is common to all of two.

        A guesser's score, which is not known without labels, is taken to be the chance that two of the answers are the same: 1 / k
        for k answers that are equally common, whatever else single models say.
        """
        models = tuple(sorted(set(replies) & set(points)))
        if len(models) < 2:
            return None
        table = pd.concat([replies[model].rename(model) for model in models], axis=1, join="inner").sort_index()
        if table.empty:
            return None
        words, codes = np.unique(table.to_numpy(dtype=str).T, return_inverse=True)
        score = np.array([points[model] for model in models])[:, None]
        known = np.array([items.get(model, np.nan) for model in models])
        n_items = float(np.nanmedian(known)) if np.isfinite(known).any() else _DEFAULT_ITEMS
        share = np.bincount(codes.ravel(), minlength=len(words)) / codes.size
        chance = min(float((share**2).sum()), _LARGEST_CHANCE)
        weights = vote_weights(score, np.array([chance]), np.array([max(n_items, 2.0)]))[:, 0]
        found = codes.reshape(len(models), len(table)).astype(np.int64)
        return cls(models, table.index.to_numpy(dtype=np.int64), tuple(map(str, words)), found, weights)

    def agreement(self, replies: pd.Series, lineage: str, lineages: Mapping[str, str]) -> float:
        """Share of a model's answers that are the vote of the fitted models of other lineages, over the prompts in common.

        Parameters
        ----------
        replies : Series
            The model's answers, indexed by doc_id.
        lineage : str
            Its lineage.
        lineages : mapping
            Of the fitted models.
        """
        return float(self.agreements([replies], [lineage], lineages)[0])

    def agreements(
        self, replies: Sequence[pd.Series], own_lineages: Sequence[str], lineages: Mapping[str, str]
    ) -> Array:
        """`agreement` of several models, [T]; those that answered the same prompts are counted together."""
        out = np.full(len(replies), np.nan)
        code = {word: number for number, word in enumerate(self.words)}
        doc_ids = pd.Index(self.doc_ids)
        fitted = [lineages[model] for model in self.models]
        together: dict[bytes, list[int]] = {}
        places = [doc_ids.get_indexer(series.index) for series in replies]
        for number, place in enumerate(places):
            if (place >= 0).any():
                together.setdefault(place.tobytes(), []).append(number)
        for numbers in together.values():
            place = places[numbers[0]]
            common = place >= 0
            # An answer that no fitted model gave agrees with none of them.
            own = [[code.get(word, len(self.words)) for word in replies[number][common]] for number in numbers]
            said = np.vstack([self.codes[:, place[common]], np.array(own)])
            groups = np.array([*fitted, *(own_lineages[number] for number in numbers)])
            weights = np.append(self.weights, np.zeros(len(numbers)))
            out[numbers] = agreement(said, weights, groups, slice(None))[len(self.models) :]
        return out

    def document(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        return {
            "models": list(self.models),
            "doc_ids": self.doc_ids.tolist(),
            "words": list(self.words),
            "codes": self.codes.tolist(),
            "weights": self.weights.tolist(),
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Self:
        """From what `document` gave.

        Raises
        ------
        ValueError
            When the parts do not fit together.
        """
        codes = np.array(document["codes"], dtype=np.int64)
        found = cls(
            tuple(map(str, document["models"])),
            np.array(document["doc_ids"], dtype=np.int64),
            tuple(map(str, document["words"])),
            codes,
            np.array(document["weights"], dtype=np.float64),
        )
        if codes.shape != (len(found.models), len(found.doc_ids)) or found.weights.shape != (len(found.models),):
            raise ValueError("the answers of the fitted models have another shape than their names say")
        if codes.size and not (codes.min() >= 0 and codes.max() < len(found.words)):
            raise ValueError("an answer of the fitted models is not in their list")
        return found


def votes_of(
    measured: Measurements, models: Sequence[str], benchmarks: Sequence[str], points: Array, items: Array
) -> dict[str, Votes]:
    """Votes per benchmark of the fitted models that have answers and a score there.

    Parameters
    ----------
    points, items : array [R, B]
        Scores in points, and the items behind them; NaN where not known.
    """
    found = {}
    for b, benchmark in enumerate(benchmarks):
        scored = [m for m in range(len(models)) if np.isfinite(points[m, b])]
        replies = {
            models[m]: measured.replies[models[m], benchmark]
            for m in scored
            if (models[m], benchmark) in measured.replies
        }
        known = {models[m]: float(points[m, b]) for m in scored}
        votes = Votes.of(replies, known, {models[m]: float(items[m, b]) for m in scored})
        if votes is not None:
            found[benchmark] = votes
    return found


def agreement_of(
    votes: Mapping[str, Votes],
    measured: Measurements,
    models: Sequence[str],
    benchmarks: Sequence[str],
    lineages: Mapping[str, str],
) -> Array:
    """Agreement of models with the fitted ones, [T, B]; NaN where there is nothing to compare.

    Parameters
    ----------
    lineages : mapping
        Of the fitted models; a model that is not among them is a lineage of its own.
    """
    out = np.full((len(models), len(benchmarks)), np.nan)
    for b, benchmark in enumerate(benchmarks):
        asked = [m for m, model in enumerate(models) if (model, benchmark) in measured.replies]
        if benchmark in votes and asked:
            replies = [measured.replies[models[m], benchmark] for m in asked]
            own = [lineages.get(models[m], f"{models[m]} (new)") for m in asked]
            out[asked, b] = votes[benchmark].agreements(replies, own, lineages)
    return out


__all__ = ["Votes", "agreement_of", "votes_of"]
