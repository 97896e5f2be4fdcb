"""Sentences of the page that are not about trust: headline, what is missing, commands, words used, how to cite.

Pure functions on frames; text only, escaping is the template's work.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lmms_visual_heads.report.formatting import split_flags
from lmms_visual_heads.report.inputs import PLAIN_TASKS, VISUAL_TASKS, ReportModel
from lmms_visual_heads.report.trust import Trust

CITATION = (
    "Bi et al., “Unveiling Visual Perception in Language Models: An Attention Head Analysis Approach”, CVPR 2025."
)

GLOSSARY = (
    (
        "visual token",
        "a position of the prompt that holds an image embedding; a patch token is one that stands for a patch of the image.",
    ),
    ("head", "a pair (layer, head) of the language model's query heads, both counted from 0."),
    (
        "query",
        "whose attention is read: that of the first generated token (first_generated) or of the last token of the prompt "
        "(last_prompt).",
    ),
    ("image attention W", "the share of a head's attention that falls on the visual tokens, 0 to 1."),
    (
        "concentration C",
        "1 − H(p) / ln n, where p is the attention over the n patch tokens, made to sum to 1, and H its entropy: 0 when "
        "spread evenly, 1 on one token. It depends on n: compare it within a model.",
    ),
    (
        "focus F",
        "ln n − H(p), in nats. It does not change when every patch is split into equal parts: compare it between models.",
    ),
    ("visual-head score S", "W × C."),
    ("visual head", "a head whose mean S on a data set exceeds a stated threshold."),
    (
        "region attention, region lift",
        "attention on the patches that the pointed box overlaps; the lift is ln(region attention / (patch attention × the "
        "box's share of the patch area)), pooled over documents: 0 means no preference for the box.",
    ),
    ("probe", "the vhead questions (general, obj, super) about counting, on which head statistics are taken."),
    ("points", "100 × score / the metric's best value."),
    (
        "baseline",
        "what one would say without looking at the model: the mean score of the other models, every training counting the same.",
    ),
    ("MAE", "mean absolute error: predicted minus actual without its sign, averaged, in points."),
    (
        "benchmark prompts",
        "prompts of the benchmark that is predicted, answered by the model, labels unused.",
    ),
    ("knock-out", "a run in which heads see nothing of the image; how far the answer moves is their causal score."),
    ("lineage", "checkpoints that share a training: the same run, a warm start, a seed. They are left out together."),
    ("missing (–)", "not measured or not defined; drawn as a hatched cell, never as zero."),
)


def headline(
    models: Sequence[ReportModel], heads: pd.DataFrame, predictions: pd.DataFrame | None, verdict: Trust
) -> tuple[str, str]:
    """The page's first line, at the strength that the verdict allows, and a sentence that adds to it (may be empty)."""
    if predictions is not None and not predictions.empty:
        return _of_predictions(predictions, verdict)
    return _without_predictions(models, heads, verdict), ""


def _without_predictions(models: Sequence[ReportModel], heads: pd.DataFrame, verdict: Trust) -> str:
    if verdict.numbers:
        numbers = verdict.numbers
        return (
            f"On {numbers['n_models']} scored models the predictor's MAE is {numbers['error']:.1f} points, "
            f"the baseline's {numbers['baseline_error']:.1f}"
        )
    means = heads.groupby("model", sort=False)["image_attention"].mean().dropna()
    if means.empty:
        return f"What the attention heads of {_models(len(models))} do with the image"
    if len(models) == 1:
        return (
            f"The attention heads of {models[0].name} spend {_percent(means.iloc[0])} of their attention on the image"
        )
    return (
        f"The attention heads of {_models(len(models))} spend {_percent(means.min())} ({means.idxmin()}) "
        f"to {_percent(means.max())} ({means.idxmax()}) of their attention on the image"
    )


def missing_parts(has_scores: bool, has_predictor: bool, has_predictions: bool) -> list[tuple[str, str]]:
    """What the page could not show: pairs (sentence, command that adds it; empty where none does)."""
    parts = []
    if not has_predictor and not has_predictions:
        parts.append(
            (
                "No predictor was given, so no benchmark score is predicted. Fit one on models whose heads and scores you have "
                "(at least 15 before a number means anything), then give it to the report:",
                "visual-heads fit --heads PATH... --scores scores.csv --out predictor.skops\n"
                "visual-heads report --heads PATH... --predictor predictor.skops --out DIR",
            )
        )
    if not has_scores:
        parts.append(
            (
                "No score table was given, so predictions stand without the scores that the models really get. "
                "Read them from finished lmms-eval runs:"
                if has_predictor or has_predictions
                else "No score table was given. Read one from finished lmms-eval runs:",
                "visual-heads scores RESULTS... --out scores.csv",
            )
        )
    return parts


def remake_commands(
    models: Sequence[ReportModel],
    report_command: Sequence[str] | None,
    with_predictor: bool,
    beside: Any | None = None,
) -> list[str]:
    """Commands that measure such heads again and write this page; capitals stand for what the reader fills in.

    `beside`: the models' answers and causal scores; a run over benchmark prompts has a command of its own.
    """
    commands = []
    probed = {str(task) for model in models for task in (model.metadata.get("tasks") or {})}
    groups: dict[tuple[str, tuple[str, ...]], None] = {}
    for model in models:
        tasks = tuple((model.metadata.get("tasks") or {}).keys()) or tuple(dict.fromkeys(model.profile["task"]))
        groups[(str(model.metadata.get("query") or ""), tasks)] = None
    for query, measured in groups:
        typed = ",".join(_task_words(measured))
        chosen = f",query={query}" if query else ""
        commands.append(
            f"lmms-eval --model visual_heads_llava --model_args pretrained=CKPT,heads=heads{chosen} --tasks {typed}"
        )
    commands += [] if beside is None else _benchmark_prompts_commands(beside, {model.name for model in models}, probed)
    if report_command:
        commands.append(shlex.join(report_command))
    else:
        extra = " --scores scores.csv --predictor PREDICTOR" if with_predictor else ""
        commands.append(f"visual-heads report --heads heads{extra} --out DIR")
    return commands


def _benchmark_prompts_commands(measured: Any, models: set[str], probed: set[str]) -> list[str]:
    """The run over prompts of the benchmarks themselves, with its extra passes."""
    rows = measured.answers[measured.answers["model"].isin(models) & ~measured.answers["task"].isin(probed)]
    if rows.empty:
        return []
    tasks = sorted(set(rows["task"]))
    arguments = ["pretrained=CKPT", "heads=heads"]
    images = [name for name in ("swap", "blank") if rows[f"{name}_kl"].notna().any()]
    causal = measured.causal[measured.causal["task"].isin(tasks)]
    knockouts = {
        "all": causal["layer"] < 0,
        "layers": (causal["layer"] >= 0) & (causal["head"] < 0),
        "heads": causal["head"] >= 0,
    }
    knocked_out = [name for name, rows_of in knockouts.items() if rows_of.any()]
    if images or knocked_out:
        arguments.append(f"control_tasks={'+'.join(tasks)}")
    arguments += [f"image_control={'+'.join(images)}"] if images else []
    arguments += [f"knockout={'+'.join(knocked_out)}"] if knocked_out else []
    limit = int(rows["n_prompts"].max())
    run = f"lmms-eval --model visual_heads_llava --model_args {','.join(arguments)}"
    return [f"{run} --tasks {','.join(tasks)} --limit {limit}"]


def fitted_facts(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A predictor's description as (name, text) pairs: trainings with their models, the probe, then whatever else it says."""
    rest = dict(description)
    facts: list[tuple[str, str]] = []
    lineages = rest.pop("lineages", None)
    if isinstance(lineages, Mapping) and lineages:
        rest.pop("models", None)
        groups: dict[str, list[str]] = {}
        for model, lineage in lineages.items():
            groups.setdefault(str(lineage), []).append(str(model))
        parts = [f"{name} ({', '.join(models)})" if models != [name] else name for name, models in groups.items()]
        facts.append(("trainings and their models", "; ".join(parts)))
    for task, about in (rest.pop("probe", None) or {}).items():
        documents, fingerprint = (about.get(name) for name in ("n_documents", "fingerprint"))
        facts.append((f"probe {task}", f"{documents} documents, fingerprint {str(fingerprint)[:12]}"))
    benchmarks = rest.pop("benchmarks", None)
    if benchmarks:
        facts.append(("benchmarks", ", ".join(str(one["benchmark"]) for one in benchmarks)))
    return facts + [(name.replace("_", " "), _plain(value)) for name, value in rest.items()]


def _plain(value: Any) -> str:
    """A value of a description as text; nothing for a missing one."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        between = " to " if len(value) == 2 and all(isinstance(entry, int) for entry in value) else ", "
        return between.join(_plain(entry) for entry in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _of_predictions(predictions: pd.DataFrame, verdict: Trust) -> tuple[str, str]:
    names = list(dict.fromkeys(predictions["model"]))
    n_benchmarks = predictions["benchmark"].nunique()
    over = f"{n_benchmarks} benchmark{'' if n_benchmarks == 1 else 's'}"
    what = f"{names[0]} on {over}" if len(names) == 1 else f"{_models(len(names))} on {over}"
    weak = {
        "none": "; how good they are was not checked",
        "too few": ", an illustration only",
        "not better": ", not to be relied on",
        "worse": ", not to be relied on",
    }
    if any(flag.startswith("forced") for cell in predictions["flags"] for flag in split_flags(cell)):
        return f"Predicted scores of {what}, forced for models unlike those fitted: not to be relied on", ""
    if verdict.verdict in weak:
        return f"Predicted scores of {what}{weak[verdict.verdict]}", ""
    shared = predictions.pivot_table(index="model", columns="benchmark", values="predicted", dropna=False).dropna(
        axis="columns"
    )
    if shared.shape[1] == 0:
        return f"Predicted scores of {what}", ""
    means = shared.mean(axis="columns").reindex(names)
    on = f"on average over {shared.shape[1]} benchmarks" if shared.shape[1] > 1 else f"on {shared.columns[0]}"
    if len(names) == 1:
        base = predictions.set_index("benchmark")["baseline"].reindex(shared.columns).mean()
        return f"{names[0]} is predicted to score {means.iloc[0]:.0f} points {on}; the baseline says {base:.0f}", ""
    best, second = means.sort_values(ascending=False, kind="stable").index[:2]
    apart, common = _apart(predictions, best, second)
    if apart == 0:
        return (
            f"Predicted scores of {what}: {means.min():.0f} to {means.max():.0f} points on average, too close to say which is best",
            f"The highest is {best}, then {second} with {means[second]:.0f} points; their intervals overlap on every benchmark.",
        )
    return (
        f"{best} is predicted to do best of {_models(len(names))}: {means[best]:.0f} points {on}",
        f"{second} follows with {means[second]:.0f} points. The intervals of the two are apart on {apart} of {common} benchmarks.",
    )


def _apart(predictions: pd.DataFrame, first: str, second: str) -> tuple[int, int]:
    """On how many benchmarks the intervals of two models do not overlap, and how many benchmarks they share."""
    a, b = (
        predictions[predictions["model"] == name].drop_duplicates("benchmark").set_index("benchmark")
        for name in (first, second)
    )
    both = a.index.intersection(b.index)
    a, b = a.loc[both], b.loc[both]
    return int(((a["low"] > b["high"]) | (b["low"] > a["high"])).sum()), len(both)


def _task_words(tasks: tuple[str, ...]) -> list[str]:
    """Tasks as one would type them: a whole probe by its group's name."""
    words = list(tasks)
    for group, members in (("vhead", PLAIN_TASKS), ("vhead_visual", VISUAL_TASKS)):
        if set(members) <= set(words):
            words = [group, *(word for word in words if word not in members)]
    return words


def _models(n: int) -> str:
    return f"{n} model{'' if n == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
