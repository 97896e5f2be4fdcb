"""Measures small checkpoints through lmms-eval: the probe and the `scenes` benchmarks, then the benchmarks' first prompts alone.

What is measured already is passed over, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from lmms_visual_heads.demo.measured import BENCHMARK_FOLDER
from lmms_visual_heads.demo.runs import BENCHMARK_ARGUMENTS, BENCHMARK_PROMPTS, BENCHMARKS, PROBE
from lmms_visual_heads.harness.evaluation import evaluate
from lmms_visual_heads.names import file_stem
from lmms_visual_heads.schema import ANSWERS_SUFFIX, CAUSAL_SUFFIX, HEADS_SUFFIX


def measure(
    checkpoints: Mapping[str, Path], out: Path, *, batch_size: int = 32, limit: int | None = None
) -> list[Path]:
    """Measure `checkpoints` one after the other.

    Parameters
    ----------
    checkpoints : mapping of str to Path
        Model name -> folder in Hugging Face format.
    out : Path
        Gets `heads/<name>.heads.parquet`, `heads/<name>.answers.parquet`, `results/<name>_results.json`, and
        `own/<name>.answers.parquet` and `own/<name>.causal.parquet`: the first `BENCHMARK_PROMPTS` documents of each benchmark.
    batch_size, limit
        As for lmms-eval.

    Returns
    -------
    list of Path
        The results files, in the order of the checkpoints.
    """
    # The small checkpoints know the drawn scenes only: other data under the same task names are left aside.
    os.environ.pop("VHEAD_DATA", None)
    heads, results, own = out / "heads", out / "results", out / BENCHMARK_FOLDER
    for folder in (heads, results, own):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, checkpoint in tqdm(checkpoints.items(), desc="measuring checkpoints"):
        stem = file_stem(name)
        target = results / f"{stem}_results.json"
        written.append(target)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                document = evaluate(
                    checkpoint, [PROBE, BENCHMARKS], batch_size=batch_size, limit=limit, heads=scratch, model_name=name
                )
                _keep(Path(scratch), heads / stem, HEADS_SUFFIX, ANSWERS_SUFFIX)
            document["config"]["model_args"] = f"model_name={name}"
            part = target.with_suffix(".part")
            part.write_text(json.dumps(document, indent=1, sort_keys=True, default=str))
            os.replace(part, target)
        if not own.joinpath(f"{stem}{CAUSAL_SUFFIX}").exists():
            few = BENCHMARK_PROMPTS if limit is None else min(BENCHMARK_PROMPTS, limit)
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                arguments = {"heads": scratch, "model_name": name, **BENCHMARK_ARGUMENTS}
                evaluate(checkpoint, [BENCHMARKS], batch_size=batch_size, limit=few, **arguments)
                _keep(Path(scratch), own / stem, ANSWERS_SUFFIX, CAUSAL_SUFFIX)
    return written


def _keep(scratch: Path, stem: Path, *suffixes: str) -> None:
    """Move a run's tables to files that begin with `stem`."""
    for suffix in suffixes:
        (table,) = scratch.glob(f"*{suffix}")
        shutil.move(table, stem.with_name(stem.name + suffix))
