"""`python -m lab VERB`: how the product was proven. Runs in a checkout; each verb loads what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import typer

from lmms_visual_heads.errors import VisualHeadsError


class Verb(NamedTuple):
    """Where a verb's function stands, what it is for, and two examples of it."""

    place: str
    words: str
    examples: tuple[str, str]


VERBS = {
    "train": Verb(
        "lab.cli.zoo:train",
        "train the small checkpoints: those that ship, and those that predictions are judged on",
        ("--only w48-d2-t16 --out /tmp/zoo", "--config proof --only 'z*' --shard 1/2 --out proof-work"),
    ),
    "ship": Verb(
        "lab.cli.zoo:ship",
        "copy trained checkpoints into the package, for the demo",
        ("--from zoo-work", "--from zoo-work --to /tmp/shipped"),
    ),
    "status": Verb(
        "lab.cli.zoo:status", "which checkpoints are trained, which ship", ("", "--config proof --out proof-work")
    ),
    "measure": Verb(
        "lab.cli.measure:measure",
        "measure trained checkpoints: scores, answers, heads, knock-outs",
        (
            "--limit 50 --out /tmp/measured --to /tmp/tables",
            "--config proof --from proof-work --out proof-measured --shard 1/2 --wait",
        ),
    ),
    "study": Verb(
        "lab.cli.study:study",
        "judge the product and its baselines on trainings that were left out: reports/prediction",
        (
            "zoo-work/measured --out zoo-work/study --jobs 2",
            "reports/prediction/tables/development --held-out reports/prediction/tables/third --out /tmp/study",
        ),
    ),
    "other-device": Verb(
        "lab.study.other_device:main",
        "the same trainings on two devices",
        (
            "reports/prediction/tables/more proof-measured --out /tmp/devices",
            "measured-cpu measured-gpu --out /tmp/devices",
        ),
    ),
    "score-matrix": Verb(
        "lab.score_matrix.score_matrix:main",
        "known scores predict unknown ones, 108 real models",
        (
            "lvlm_scores_108x149.csv --out /tmp/matrix",
            "lvlm_scores_108x149.csv --nine nine_models.csv --repeats 3 --seed 0",
        ),
    ),
    "real-models": Verb(
        "lab.cli.real_models:app",
        "public answers of real models: import them, judge predictions on them",
        ("import --help", "import ../shared/data/real_models --out reports/real_models/tables"),
    ),
    "capture-cost": Verb(
        "lab.capture_cost.run:main",
        "time of the capture beside plain generation",
        ("--quick", "--suite gpu --device cuda"),
    ),
    "capture-memory": Verb(
        "lab.capture_cost.memory:main", "memory and disk of long runs", ("", "--documents 500 1000 2000")
    ),
    "capture-scaling": Verb(
        "lab.capture_cost.scaling:main", "time over documents and processes", ("--quick", "--documents 24 --repeats 7")
    ),
    "probe-vs-llava-hf": Verb(
        "lab.capture_cost.probe_vs_llava_hf:main",
        "the probe beside lmms-eval's own wrapper",
        ("--quick", "--limit 16 --repeats 7"),
    ),
}


def usage() -> str:
    """The list of verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}s}  {verb.words}" for name, verb in VERBS.items()]
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
    name, *rest = words
    if name not in VERBS:
        print(f"python -m lab: one of {', '.join(VERBS)} is required; {name!r} came.", file=sys.stderr)
        raise SystemExit(2)
    try:
        _run(f"python -m lab {name}", VERBS[name], rest)
    except VisualHeadsError as error:
        print(f"python -m lab {name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as ended:
        if rest in (["-h"], ["--help"]) and not ended.code:
            lines = [f"  python -m lab {name} {arguments}".rstrip() for arguments in VERBS[name].examples]
            print("\n".join(["Examples:", *lines]))
        raise


def _run(program: str, verb: Verb, arguments: list[str]) -> None:
    module, _, name = verb.place.partition(":")
    function = getattr(import_module(module), name)
    if isinstance(function, typer.Typer):
        function(arguments, prog_name=program)
    elif module.startswith("lab.cli."):
        command(function)(arguments, prog_name=program)
    else:
        sys.argv = [program, *arguments]
        function()


if __name__ == "__main__":
    main()
