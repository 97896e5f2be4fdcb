"""lmms-eval from Python and as a command: a short way for the zoo, the demo and the tests. Never imported by the plugin."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.plugin import MODEL_ID, tasks_folder


@dataclass(frozen=True, slots=True)
class CommandRun:
    """A finished run of the command: its words, and the results file that it wrote."""

    command: str
    results: Path


def evaluate(
    pretrained: str | Path,
    tasks: Sequence[str],
    *,
    batch_size: int = 1,
    limit: int | None = None,
    more_tasks: Path | None = None,
    **model_args: str,
) -> dict[str, Any]:
    """Run lmms-eval in this process on our own tasks only, which starts in a moment.

    Parameters
    ----------
    pretrained : str or Path
        Checkpoint.
    tasks : sequence of str
        Tasks or groups of the `tasks/` folder, or of `more_tasks`.
    batch_size, limit
        As for lmms-eval.
    more_tasks : Path or None
        A further folder of task files.
    **model_args
        Further arguments of `visual_heads_llava`, such as `heads="DIR"`.

    Returns
    -------
    dict
        lmms-eval's results document.
    """
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    from lmms_visual_heads.harness.model import VisualHeadsLlava

    model = VisualHeadsLlava(pretrained=str(pretrained), batch_size=batch_size, **model_args)
    folders = [str(folder) for folder in (tasks_folder(), more_tasks) if folder is not None]
    manager = TaskManager("ERROR", include_path=folders, include_defaults=False)
    results = evaluator.simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        batch_size=batch_size,
        bootstrap_iters=0,
        log_samples=False,
        verbosity="ERROR",
    )
    results["config"] |= {"model": MODEL_ID, "model_args": _typed({"pretrained": str(pretrained), **model_args})}
    return json.loads(json.dumps(results, default=str))


def _typed(model_args: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in model_args.items())


def start_lmms_eval(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run `lmms-eval` with `words`, its output appended to `log`, its progress bars on the terminal; its exit status.

    The status is 0 for most failures: look at the files that it wrote.
    """
    with log.open("a") as handle:
        handle.write(f"$ lmms-eval {shlex.join(words)}\n")
        handle.flush()
        quiet = [sys.executable, "-m", "lmms_eval", *words, "--verbosity", "WARNING"]
        return subprocess.run(quiet, stdout=handle, env=dict(environment), check=False).returncode


def run_command(
    pretrained: str | Path,
    tasks: Sequence[str],
    *,
    output: Path,
    heads: Path,
    batch_size: int = 8,
    limit: int | None = None,
    **model_args: str,
) -> CommandRun:
    """Run the `lmms-eval` command as a user would, its log in `output`; its progress bars go to the terminal.

    Further `model_args` are those of `visual_heads_llava`, as for `evaluate`.

    Raises
    ------
    VisualHeadsError
        When it wrote none; lmms-eval's exit status does not tell.
    """
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.rglob("*_results.json"))
    named_args = {"pretrained": str(pretrained), "heads": str(heads), **model_args}
    words = ["--model", MODEL_ID, "--model_args", _typed(named_args)]
    words += ["--tasks", ",".join(tasks), "--batch_size", str(batch_size), "--output_path", str(output)]
    words += ["--limit", str(limit)] if limit is not None else []
    # The embedded checkpoints know the drawn scenes only: other data under the same task names are left aside.
    environment = {name: value for name, value in os.environ.items() if name != "VHEAD_DATA"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "LOGURU_LEVEL": "WARNING"}
    log = output / "lmms-eval.log"
    start_lmms_eval(words, log, environment)
    written = sorted(set(output.rglob("*_results.json")) - before)
    if not written:
        raise VisualHeadsError(
            f"lmms-eval wrote no results for {', '.join(tasks)}; the reason stands above and in {log}."
        )
    return CommandRun(f"lmms-eval {shlex.join(words)}", written[-1])
