"""The methods that the study judges, in one list: their names are the words of the reports.

Linear methods were fixed before the zoo's scores were looked at; forests, agreement and how labels are trusted were chosen on the
development zoo, each before the trainings that judge it.
"""

from __future__ import annotations

from lab.study.methods.base import BestOther, Features, Method, RawAgreement, RawConfidence
from lab.study.methods.constants import CONSTANTS
from lab.study.methods.forest import Forest, TwoViews
from lab.study.methods.gaussian_process import NextCheckpoint, Process
from lab.study.methods.label_correction import LabelsCorrectAnswers
from lab.study.methods.labelled import Direct, ItemResponseScoring, LabelledRegression
from lab.tables.schema import PROMPT_COUNTS

FREE = ("own_answers.confidence", "own_answers.entropy", "own_answers.information")
"""Answer statistics that one pass per prompt gives."""

CHEAP = ("metadata", "loss", "probe_accuracy")

BEST_LABEL_FREE = "answers + agreement, two views"
BEST_LABELLED = "labels correcting answers + agreement"
"""The two methods that targets and lock-box are about; chosen on the development zoo."""

LABEL_FREE: tuple[Method, ...] = (
    Features("mean"),
    Features("metadata", ("metadata",)),
    Features("training loss", ("loss",)),
    Features("probe accuracy", ("probe_accuracy",)),
    RawConfidence(),
    RawAgreement(),
    BestOther(),
    Features("probe heads", ("probe_heads",)),
    Features("probe causal heads", ("probe_causal",)),
    Features("probe answers", ("probe_answers",)),
    Features("own heads", ("own_heads",)),
    Features("own causal heads", ("own_causal",)),
    Features("all heads cut", ("own_causal.every_kl",)),
    Features("own answers, one pass", FREE, PROMPT_COUNTS),
    Features("own answers", ("own_answers",), PROMPT_COUNTS),
    Features("own answers + own heads", ("own_answers", "own_heads")),
    Features("own answers + own causal heads", ("own_answers", "own_causal")),
    Features("own answers + probe heads", ("own_answers", "probe_heads")),
    Features("own causal heads + own heads", ("own_causal", "own_heads")),
    Features("cheap", CHEAP),
    Features("cheap + probe heads", (*CHEAP, "probe_heads")),
    Features("cheap + own heads", (*CHEAP, "own_heads")),
    Features("cheap + own causal heads", (*CHEAP, "own_causal")),
    Features("cheap + own answers", (*CHEAP, "own_answers")),
    Features("everything without labels", (*CHEAP, "own_answers", "own_heads", "own_causal", "probe_heads")),
)

LABELLED: tuple[Method, ...] = (
    Direct(),
    Direct("direct scoring, shrunk", True),
    ItemResponseScoring(),
    LabelledRegression("labels in a regression", with_answers=False, items=False),
    LabelledRegression("labels + answers in a regression"),
    LabelsCorrectAnswers("labels correcting answers"),
    LabelsCorrectAnswers(BEST_LABELLED, agreement=True),
    LabelsCorrectAnswers(f"{BEST_LABELLED} + own heads", extra=("own_heads",), agreement=True),
)


PROCESSES: tuple[Method, ...] = (
    Process("training loss, process", ("loss",)),
    Process("probe accuracy, process", ("probe_accuracy",)),
    Process("probe heads, process", ("probe_heads",)),
    Process("own heads, process", ("own_heads",)),
    Process("own causal heads, process", ("own_causal",)),
    Process("own answers, process", ("own_answers",)),
)

FEW_COUNTS = (16, 64, 256)
"""Numbers of prompts at which forests are judged."""

FORESTS: tuple[Method, ...] = (
    Forest("training loss, forest", ("loss",)),
    Forest("probe accuracy, forest", ("probe_accuracy",)),
    Forest("cheap, forest", CHEAP),
    Forest("probe heads, forest", ("probe_heads",)),
    Forest("own heads, forest", ("own_heads",)),
    Forest("own causal heads, forest", ("own_causal",)),
    Forest("own answers, one pass, forest", FREE, FEW_COUNTS),
    Forest("own answers, forest", ("own_answers",), FEW_COUNTS),
    Forest("own answers + own heads, forest", ("own_answers", "own_heads")),
    Forest("own answers + own causal heads, forest", ("own_answers", "own_causal")),
    Forest("agreement, forest", (), PROMPT_COUNTS, agreement=True),
    Forest("answers + agreement, forest", FREE, PROMPT_COUNTS, agreement=True),
    TwoViews(BEST_LABEL_FREE, FREE, PROMPT_COUNTS),
    Forest("own answers + agreement, forest", ("own_answers",), agreement=True),
    Forest("answers + agreement + own heads, forest", (*FREE, "own_heads"), agreement=True),
    Forest("answers + agreement + own causal heads, forest", (*FREE, "own_causal"), agreement=True),
    Forest("cheap + probe heads, forest", (*CHEAP, "probe_heads")),
    Forest("everything without labels, forest", (*CHEAP, "own_answers", "own_heads", "own_causal", "probe_heads")),
)

WATCHED: tuple[Method, ...] = (
    NextCheckpoint("last score"),
    NextCheckpoint("last score + training loss", ("loss",)),
    NextCheckpoint("last score + probe accuracy", ("probe_accuracy",)),
    NextCheckpoint("last score + probe heads", ("probe_heads",)),
    NextCheckpoint("last score + own heads", ("own_heads",)),
    NextCheckpoint("last score + own causal heads", ("own_causal",)),
    NextCheckpoint("last score + own answers", ("own_answers",)),
)


def judged_in(setting: str) -> tuple[Method, ...]:
    """`methods_of` and the constants that they must beat; those are no part of the list that a lock-box is opened with."""
    return (*CONSTANTS, *methods_of(setting))


def methods_of(setting: str) -> tuple[Method, ...]:
    """The methods that are judged in a setting."""
    if setting == "new_benchmark":
        forests = [method for method in FORESTS if method.name in ("own answers, forest", BEST_LABEL_FREE)]
        return (*LABEL_FREE, *forests, Direct())
    if setting == "known_training":
        return (*LABEL_FREE, *FORESTS, *PROCESSES, *WATCHED, Direct(), LABELLED[1])
    return (*LABEL_FREE, *FORESTS, *PROCESSES, *LABELLED)
