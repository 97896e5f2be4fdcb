"""Flags of a prediction, each with its meaning in one plain sentence. A cell joins them by ";"."""

from __future__ import annotations

from types import MappingProxyType

FEW_LINEAGES = "few_lineages"
NO_BETTER = "no_better_than_baseline"
OUTSIDE = "outside_training_range"
MISSING = "missing_features"
IN_TRAINING = "in_training"
KNOWN = "known"
FEWER_DOCUMENTS = "fewer_documents"
DIFFERENT_DTYPE = "different_dtype"
DIFFERENT_PROCESSOR = "different_image_processor"
UNKNOWN_SIZE = "unknown_size"
LABELLED = "labelled"
LABELS_CONTRADICT = "labels_contradict"
VIEWS_DIFFER = "views_differ"
FEWER_PROMPTS = "fewer_prompts"
FORCED_QUERY = "forced:other_query"
FORCED_PROBE = "forced:other_probe"
FORCED_SIZE = "forced:other_size"

FLAG_WORDS = MappingProxyType(
    {
        FEW_LINEAGES: "fitted on fewer than 15 separate trainings: the interval's coverage cannot be certified",
        NO_BETTER: "on trainings that were left out, the predictor was no better than the baseline for this benchmark",
        OUTSIDE: "the heads lie well outside what was fitted: the interval is widened, the number is a guess",
        MISSING: "some head statistics are missing and were replaced by their mean",
        IN_TRAINING: "the predictor knows this model: the number is the one predicted with its training left out",
        KNOWN: "not predicted: this is the score that was given as known, with its sampling interval",
        LABELLED: "blended with labelled items of this benchmark; the baseline is those items scored directly, drawn to the mean",
        LABELS_CONTRADICT: "what was measured lies far from what was predicted: the model is unlike the fitted ones; widened",
        VIEWS_DIFFER: "confidence and agreement contradict each other as in no fitted model: confidence counts less, widened",
        FEWER_PROMPTS: "answered fewer than half of the fitted models' benchmark prompts: the interval is widened",
        FEWER_DOCUMENTS: "probed on fewer than half of the documents of the fitted models",
        DIFFERENT_DTYPE: "measured in another dtype than the fitted models",
        DIFFERENT_PROCESSOR: "measured with another image processor than the fitted models",
        UNKNOWN_SIZE: "the number of language-model parameters is not known, so its range was not checked",
        FORCED_QUERY: "forced: the heads were read at another query than those of the fitted models",
        FORCED_PROBE: "forced: the heads come from other probe data than those of the fitted models",
        FORCED_SIZE: "forced: the model is much smaller or larger than the fitted models",
    }
)


def join_flags(flags: list[str]) -> str:
    """A cell of flags: each once, in the order of `FLAG_WORDS`."""
    order = {flag: position for position, flag in enumerate(FLAG_WORDS)}
    return ";".join(sorted(set(flags), key=lambda flag: order[flag]))
