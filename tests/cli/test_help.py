"""`--help`, `--version` and shell completion, of every verb."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lmms_visual_heads import __version__
from lmms_visual_heads.cli import app, main, spread_variadic
from lmms_visual_heads.errors import VisualHeadsWarning

BIN = Path(sys.executable).parent


def verbs(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below `visual-heads`, groups among them, with its full name."""
    for name, inside in (get_command(app) if command is None else command).commands.items():
        yield " ".join((*path, name)), inside
        if hasattr(inside, "commands"):
            yield from verbs(inside, (*path, name))


def examples(help_text: str) -> list[str]:
    _, heading, section = help_text.partition("Examples:")
    return [line.strip() for line in section.splitlines() if line.strip()] if heading else []


ALL = dict(verbs())


def test_the_walk_reaches_commands_of_groups() -> None:
    assert {"predict", "data", "data looktwice"} <= set(ALL)


@pytest.mark.parametrize("verb", ALL)
def test_help_ends_in_two_examples_that_parse(verb: str) -> None:
    lines = examples(ALL[verb].help)
    own = [line for line in lines if re.match(rf"visual-heads {verb}( |$)", line)]
    assert len(own) >= 2, f"{verb} has {len(own)} examples"
    for line in own:
        words = spread_variadic(shlex.split(re.split(r" [>|] ", line)[0])[1:])
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        if words != ["--help"]:
            command.make_context("visual-heads", words)


@pytest.mark.parametrize("verb", ALL)
def test_sentences_of_help_are_short(verb: str) -> None:
    command = ALL[verb]
    prose = command.help.partition("Examples:")[0]
    texts = [prose, *(parameter.help or "" for parameter in command.params if hasattr(parameter, "help"))]
    for sentence in re.split(r"(?<=[.:;])\s", " ".join(" ".join(one.split()) for one in texts)):
        assert len(sentence.split()) <= 40, sentence


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def typed(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [str(BIN / "visual-heads"), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "complete -o default -F"), ("zsh", "compdef"), ("fish", "complete --command")]
)
def test_show_completion_prints_the_script_of_the_shell_that_is_named(shell: str, words: str) -> None:
    assert words in typed("--show-completion", shell)


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    typed("--install-completion", "bash", HOME=str(tmp_path))
    (script,) = tmp_path.rglob("visual-heads.sh")
    assert str(script) in (tmp_path / ".bashrc").read_text()

    def complete(line: str) -> set[str]:
        at = str(len(line.split(" ")) - 1)
        return set(typed(COMP_WORDS=line, COMP_CWORD=at, _VISUAL_HEADS_COMPLETE="complete_bash").split())

    assert complete("visual-heads pre") == {"predict"}
    assert complete("visual-heads predict p --format ") == {"table", "csv", "json"}


def test_what_was_put_right_in_a_file_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prior.csv").write_text("model,pope\n a ,50\n")
    main_words = ["scores", str(tmp_path / "prior.csv"), "--out", str(tmp_path / "scores.csv")]
    with pytest.raises(SystemExit):
        main(main_words)
    printed = capsys.readouterr()
    assert "the blanks around ' a ' were left out." in printed.err
    assert VisualHeadsWarning.__name__ not in printed.err
    assert (tmp_path / "scores.csv").read_text().splitlines()[1].startswith("a,pope,")
