"""`python -m lab VERB`: how the product was proven. Runs in a checkout; each verb loads what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import typer

from lmms_visual_heads.errors import VisualHeadsError

VERBS = {
    "train": (
        "lab.cli.zoo:train",
        "train the small checkpoints: those that ship, and those that predictions are judged on",
    ),
    "ship": ("lab.cli.zoo:ship", "copy trained checkpoints into the package, for the demo"),
    "status": ("lab.cli.zoo:status", "which checkpoints are trained, which ship"),
    "measure": ("lab.cli.measure:measure", "measure trained checkpoints: scores, answers, heads, knock-outs"),
    "study": ("lab.cli.study:study", "judge the predictor on trainings that were left out: reports/prediction"),
    "product": ("lab.study.product_on_zoo:main", "the predictor as a user holds it, on a measured zoo"),
    "longer-trained": (
        "lab.study.longer_trained:main",
        "fitted on one zoo, asked about another that was trained longer",
    ),
    "other-device": ("lab.study.other_device:main", "the same trainings on two devices"),
    "taught-or-not": ("lab.study.taught_or_not:main", "benchmarks that a training was taught, and those it was not"),
    "score-matrix": ("lab.score_matrix.score_matrix:main", "known scores predict unknown ones, 108 real models"),
    "real-models": ("lab.cli.real_models:app", "public answers of real models: import them, judge predictions on them"),
    "capture-cost": ("lab.capture_cost.run:main", "time of the capture beside plain generation"),
    "capture-memory": ("lab.capture_cost.memory:main", "memory and disk of long runs"),
    "capture-scaling": ("lab.capture_cost.scaling:main", "time over documents and processes"),
    "probe-vs-llava-hf": ("lab.capture_cost.probe_vs_llava_hf:main", "the probe beside lmms-eval's own wrapper"),
}
"""Verb -> where its function stands, and what it is for."""


def usage() -> str:
    """The list of verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}s}  {words}" for verb, (_, words) in VERBS.items()]
    return "\n".join(["usage: python -m lab VERB [options]; python -m lab VERB --help", "", *lines])


def command(function: Callable[..., None]) -> typer.Typer:
    """A function of `lab.cli` as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(function)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a verb; a `VisualHeadsError` ends in its one sentence and exit status 1."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if words else 2)
    verb, *rest = words
    if verb not in VERBS:
        print(f"python -m lab: one of {', '.join(VERBS)} is required; {verb!r} came.", file=sys.stderr)
        raise SystemExit(2)
    module, _, name = VERBS[verb][0].partition(":")
    function = getattr(import_module(module), name)
    try:
        if isinstance(function, typer.Typer):
            function(rest, prog_name=f"python -m lab {verb}")
        elif module.startswith("lab.cli."):
            command(function)(rest, prog_name=f"python -m lab {verb}")
        else:
            sys.argv = [f"python -m lab {verb}", *rest]
            function()
    except VisualHeadsError as error:
        print(f"python -m lab {verb}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
