"""The world that a predictor was fitted in: query, probe data, sizes, numeric types.

Heads from another world are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.features import HeadProfiles
from lmms_visual_heads.prediction import flags


@dataclass(frozen=True)
class World:
    """What the heads of the fitted models have in common.

    Attributes
    ----------
    query : str
    fingerprints : dict
        Per task the fingerprint of its data.
    n_documents : dict
        Per task the smallest number of documents behind a profile.
    parameters : tuple of two ints, or None
        Smallest and largest number of language-model parameters; None where no model says it.
    dtypes, image_processors : tuple of str
    """

    query: str
    fingerprints: Mapping[str, str | None]
    n_documents: Mapping[str, int]
    parameters: tuple[int, int] | None
    dtypes: tuple[str, ...]
    image_processors: tuple[str, ...]

    @classmethod
    def of(cls, profiles: HeadProfiles, tasks: Sequence[str]) -> Self:
        """The world of `profiles`.

        Raises
        ------
        VisualHeadsError
            When the models differ in query or data.
        """
        names = profiles.models
        first = names[0]
        metadata = profiles.metadata_by_model
        for name in names[1:]:
            if metadata[name]["query"] != metadata[first]["query"]:
                raise VisualHeadsError(
                    f"All models of a fit need one query; {first} has {metadata[first]['query']} and {name} has "
                    f"{metadata[name]['query']}. Leave one out, or measure it again with "
                    f"query={metadata[first]['query']}."
                )
            for task in tasks:
                if _fingerprint(metadata[name], task) != _fingerprint(metadata[first], task):
                    raise VisualHeadsError(
                        f"All models of a fit must be probed on the same data; {first} and {name} have different "
                        "fingerprints "
                        f"of {task}. Leave one out, or run the same probe (same data, same --limit) for both."
                    )
        sizes = [size for name in names if (size := _parameters(metadata[name])) is not None]
        return cls(
            query=str(metadata[first]["query"]),
            fingerprints={task: _fingerprint(metadata[first], task) for task in tasks},
            n_documents={task: min(_documents(profiles, name, task) for name in names) for task in tasks},
            parameters=(min(sizes), max(sizes)) if sizes else None,
            dtypes=tuple(sorted({str(metadata[name].get("dtype")) for name in names})),
            image_processors=tuple(sorted({str(metadata[name].get("image_processor")) for name in names})),
        )

    def check(self, profiles: HeadProfiles, model: str, size_factor: float, force: bool) -> list[str]:
        """Flags of `model`'s heads; refuses heads from another world unless `force`.

        Parameters
        ----------
        size_factor : float
            Language models more than this many times smaller or larger than the fitted ones are refused.

        Raises
        ------
        VisualHeadsError
            Names every difference and the way out.
        """
        metadata = profiles.metadata_by_model[model]
        differences: list[tuple[str, str]] = []
        if metadata["query"] != self.query:
            differences.append((flags.FORCED_QUERY, f"its heads were read at {metadata['query']}, not {self.query}"))
        for task, fingerprint in self.fingerprints.items():
            if task not in metadata["tasks"] or _documents(profiles, model, task) == 0:
                raise VisualHeadsError(
                    f"This predictor needs heads on {', '.join(self.fingerprints)}; {model} has none on {task}. "
                    f"Run lmms-eval --model visual_heads_llava with --tasks {','.join(self.fingerprints)} for it."
                )
            if _fingerprint(metadata, task) != fingerprint:
                differences.append((flags.FORCED_PROBE, f"its data of {task} have another fingerprint"))
        size = _parameters(metadata)
        if size is not None and self.parameters is not None:
            smallest, largest = self.parameters
            if not smallest / size_factor <= size <= largest * size_factor:
                differences.append(
                    (
                        flags.FORCED_SIZE,
                        f"its language model has {size:,} parameters, the fitted ones {smallest:,} to {largest:,}",
                    )
                )
        if differences and not force:
            reasons = "; ".join(dict.fromkeys(reason for _, reason in differences))
            raise VisualHeadsError(
                f"This predictor speaks only about models like those it was fitted on; {model} is from another world: "
                f"{reasons}. Fit a predictor on models like it, or use --force (every row is then flagged)."
            )
        found = [flag for flag, _ in differences]
        if size is None and self.parameters is not None:
            found.append(flags.UNKNOWN_SIZE)
        if str(metadata.get("dtype")) not in self.dtypes:
            found.append(flags.DIFFERENT_DTYPE)
        if str(metadata.get("image_processor")) not in self.image_processors:
            found.append(flags.DIFFERENT_PROCESSOR)
        if any(2 * _documents(profiles, model, task) < self.n_documents[task] for task in self.fingerprints):
            found.append(flags.FEWER_DOCUMENTS)
        return found


def _fingerprint(metadata: Mapping[str, Any], task: str) -> str | None:
    value = metadata["tasks"].get(task, {}).get("fingerprint")
    return None if value is None else str(value)


def _parameters(metadata: Mapping[str, Any]) -> int | None:
    value = metadata["model"].get("language_model_parameters")
    return value if isinstance(value, int) and value > 0 else None


def _documents(profiles: HeadProfiles, model: str, task: str) -> int:
    frame = profiles.frame
    counts = frame.loc[(frame["model"] == model) & (frame["task"] == task), "n_documents"]
    return int(counts.max()) if len(counts) else 0
