"""The command `visual-heads`: one file per verb. Light to import; each verb loads what it needs when it runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from lmms_visual_heads.errors import VisualHeadsError, VisualHeadsWarning

VARIADIC = frozenset({"--heads", "--items", "--results"})
"""Options that take several values in a row: `--heads A B C` means `--heads A --heads B --heads C`."""

_VERBS = (
    "check",
    "models",
    "convert",
    "sweep",
    "scores",
    "fit",
    "predict",
    "estimate",
    "plan",
    "report",
    "demo",
)

app = typer.Typer(
    name="visual-heads",
    help="Read what attention heads do with the image, and predict benchmark scores from it. The heads are measured by "
    "lmms-eval --model visual_heads_llava --model_args pretrained=CKPT --tasks vhead",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from lmms_visual_heads import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _verb in _VERBS:
    app.command(_verb)(getattr(import_module(f"lmms_visual_heads.cli.{_verb}"), _verb))
app.command("import-study")(import_module("lmms_visual_heads.cli.import_study").import_study)
app.add_typer(import_module("lmms_visual_heads.cli.data").data_app, name="data")


def spread_variadic(arguments: Sequence[str]) -> list[str]:
    """Turn `--heads A B C` into `--heads A --heads B --heads C`; everything after `--` stays as it is."""
    spread: list[str] = []
    option = ""
    first = False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*spread, *arguments[position:]]
        if argument.startswith("-"):
            option = argument if argument in VARIADIC else ""
            first = bool(option)
            spread.append(argument)
        elif option and not first:
            spread += [option, argument]
        else:
            first = False
            spread.append(argument)
    return spread


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a `VisualHeadsError` ends in its one sentence and exit status 1."""
    from lmms_visual_heads.cli.printing import note, wrapped

    def show(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
        if issubclass(category, VisualHeadsWarning):
            note(message)
        else:
            shown(message, category, *where, **more)  # type: ignore[arg-type]

    shown = warnings.showwarning
    warnings.showwarning = show
    typed = sys.argv[1:] if arguments is None else arguments
    if len(typed) == 2 and typed[0] in ("--show-completion", "--install-completion"):
        # Typer asks the process tree for the shell and passes over the one that is named; so it takes the name.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    try:
        app(spread_variadic(typed))
    except VisualHeadsError as error:
        typer.secho(wrapped(f"visual-heads: {error}", sys.stderr), fg=typer.colors.RED, err=True)
        raise SystemExit(1) from None
    finally:
        warnings.showwarning = shown
