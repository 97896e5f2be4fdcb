"""The declared primary metric of known benchmarks, with its possible range.

Names and scales as lmms-eval 0.7.3 writes them.

A task that is not listed may declare its own in its configuration: `metadata: {primary_metric: ..., scale: ...}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError


@dataclass(frozen=True, slots=True)
class Metric:
    """A benchmark's primary metric.

    Attributes
    ----------
    names : tuple of str
        lmms-eval metric names; several are summed (MME).
    scale : float or None
        Best possible value; None where only the values can tell (1 or 100).
    filter : str or None
        lmms-eval filter, where one was chosen.
    """

    names: tuple[str, ...]
    scale: float | None
    filter: str | None = None

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise VisualHeadsError("A metric needs a name; it is empty. Write --metric TASK=METRIC.")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise VisualHeadsError(
                f"A metric's scale must be a positive number; {self.scale} came. Write --metric TASK=METRIC:SCALE."
            )

    @property
    def label(self) -> str:
        """The name in the score table's column `metric`."""
        return "+".join(self.names) + (f",{self.filter}" if self.filter else "")


_EXACT_MATCH = Metric(("exact_match",), 1.0)
_ANLS = Metric(("anls",), 1.0)

PRIMARY_METRICS: Mapping[str, Metric] = {
    # Accuracy rather than POPE's F1: a mean over items, so that its sampling error is known.
    **dict.fromkeys(("pope", "pope_adv", "pope_pop", "pope_random"), Metric(("pope_accuracy",), 1.0)),
    # Perception (of 2000) and cognition (of 800); both are parts of MME's total.
    "mme": Metric(("mme_perception_score", "mme_cognition_score"), 2800.0),
    "gqa": _EXACT_MATCH,
    **dict.fromkeys(
        ("mmbench_en_dev", "mmbench_en_dev_lite", "mmbench_en_dev_static", "mmbench_cn_dev"),
        Metric(("gpt_eval_score",), 100.0),
    ),
    **dict.fromkeys(("seedbench", "seedbench_lite", "seedbench_ko"), Metric(("seed_image",), 1.0)),
    "seedbench_2": Metric(("seed_Single_Image",), 1.0),
    "seedbench_2_plus": Metric(("seedbench_2_plus_all",), 1.0),
    "seedbench_ppl": Metric(("acc",), 1.0),
    **dict.fromkeys(("textvqa_val", "textvqa_val_lite"), _EXACT_MATCH),
    **dict.fromkeys(("vqav2_val", "vqav2_val_lite"), _EXACT_MATCH),
    **dict.fromkeys(("ok_vqa_val2014", "ok_vqa_val2014_lite"), _EXACT_MATCH),
    "vizwiz_vqa_val": _EXACT_MATCH,
    **dict.fromkeys(("scienceqa", "scienceqa_img"), _EXACT_MATCH),
    "mmmu_val": Metric(("mmmu_acc",), 1.0),
    **dict.fromkeys(("ai2d", "ai2d_lite", "ai2d_no_mask"), _EXACT_MATCH),
    **dict.fromkeys(("chartqa", "chartqa_lite"), Metric(("relaxed_overall",), 1.0)),
    **dict.fromkeys(("docvqa_val", "docvqa_val_lite", "infovqa_val", "infovqa_val_lite"), _ANLS),
    "ocrbench": Metric(("ocrbench_accuracy",), 1.0),
    "mmstar": Metric(("average",), 1.0),
    "mmvet": Metric(("gpt_eval_score",), 100.0),
    "realworldqa": _EXACT_MATCH,
    "hallusion_bench_image": Metric(("aAcc",), 100.0),
    "vstar_bench": Metric(("vstar_overall_acc",), 100.0),
    **dict.fromkeys(("countbench", "countbenchqa"), Metric(("acc",), 1.0)),
    **dict.fromkeys(("cv_bench", "cv_bench_2d", "cv_bench_3d"), Metric(("cv_bench_acc",), 1.0)),
    "refcoco_bbox_rec_val": Metric(("refcoco_ACC@0.5",), 1.0),
    "vlmsareblind": Metric(("accuracy",), 1.0),
}
"""Primary metric per lmms-eval task."""

_FAMILIES = (
    (re.compile(r"vhead_.+|scenes_.+"), _EXACT_MATCH),
    (re.compile(r"blink_.+"), Metric(("blink_acc",), 1.0)),
)


def primary_metric(task: str, config: Mapping[str, Any] | None = None) -> Metric | None:
    """The primary metric of `task`: declared here, or else in the task's own configuration; None where nowhere.

    Parameters
    ----------
    task : str
        lmms-eval task name.
    config : mapping or None
        The task's entry under `configs` of a results file.
    """
    if task in PRIMARY_METRICS:
        return PRIMARY_METRICS[task]
    declared = (config or {}).get("metadata")
    if isinstance(declared, Mapping) and isinstance(declared.get("primary_metric"), str):
        scale = declared.get("scale", 1.0)
        return Metric((declared["primary_metric"],), float(scale) if isinstance(scale, int | float) else 1.0)
    return next((metric for pattern, metric in _FAMILIES if pattern.fullmatch(task)), None)


def parse_choices(choices: list[str] | tuple[str, ...]) -> dict[str, Metric]:
    """The user's `--metric TASK=METRIC[,FILTER][:SCALE]` as metrics.

    Raises
    ------
    VisualHeadsError
        When a choice does not have that form.

    Examples
    --------
    >>> parse_choices(["mme=mme_perception_score:2000"])
    {'mme': Metric(names=('mme_perception_score',), scale=2000.0, filter=None)}
    """
    chosen: dict[str, Metric] = {}
    for choice in choices:
        task, equals, rest = choice.partition("=")
        name, colon, scale = rest.partition(":")
        try:
            number = float(scale) if colon else None
        except ValueError:
            number = float("nan")
        if not equals or not task.strip() or not name.strip() or (number is not None and not number > 0):
            raise VisualHeadsError(
                f"--metric needs TASK=METRIC or TASK=METRIC:SCALE; {choice!r} came. Example: --metric "
                "mme=mme_perception_score:2000."
            )
        metric, _, chosen_filter = name.strip().partition(",")
        chosen[task.strip()] = Metric(tuple(metric.split("+")), number, chosen_filter or None)
    return chosen
