"""Measures small checkpoints: the probe and the `scenes` benchmarks through lmms-eval, one head table and one results file each.

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

from lmms_visual_heads.harness.evaluation import evaluate
from lmms_visual_heads.names import file_stem
from lmms_visual_heads.schema import ANSWERS_SUFFIX, HEADS_SUFFIX

PROBE = "vhead"
BENCHMARKS = "scenes"


def measure(
    checkpoints: Mapping[str, Path], out: Path, *, batch_size: int = 32, limit: int | None = None
) -> list[Path]:
    """Measure `checkpoints` one after the other.

    Parameters
    ----------
    checkpoints : mapping of str to Path
        Model name -> folder in Hugging Face format.
    out : Path
        Gets `heads/<name>.heads.parquet`, `heads/<name>.answers.parquet` and `results/<name>_results.json`.
    batch_size, limit
        As for lmms-eval.

    Returns
    -------
    list of Path
        The results files, in the order of the checkpoints.
    """
    # The small checkpoints know the drawn scenes only: other data under the same task names are left aside.
    os.environ.pop("VHEAD_DATA", None)
    heads, results = out / "heads", out / "results"
    heads.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    written = []
    for name, checkpoint in tqdm(checkpoints.items(), desc="measuring checkpoints"):
        stem = file_stem(name)
        target = results / f"{stem}_results.json"
        written.append(target)
        if target.exists():
            continue
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            document = evaluate(
                checkpoint, [PROBE, BENCHMARKS], batch_size=batch_size, limit=limit, heads=scratch, model_name=name
            )
            for suffix in (HEADS_SUFFIX, ANSWERS_SUFFIX):
                (table,) = Path(scratch).glob(f"*{suffix}")
                shutil.move(table, heads / f"{stem}{suffix}")
        document["config"]["model_args"] = f"model_name={name}"
        part = target.with_suffix(".part")
        part.write_text(json.dumps(document, indent=1, sort_keys=True, default=str))
        os.replace(part, target)
    return written
