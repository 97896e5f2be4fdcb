"""Host memory of a long run's tables: fake documents through the recorder, its journal and the final tables.

Every size runs in a fresh process that reports its peak resident memory; what the process holds before the first document is
taken off. No model, no images. Writes table.csv, picture.svg and README.md.

    python -m lab capture-memory                                   # 100,000 documents of 40 x 40 heads, and smaller sizes
    python -m lab capture-memory --documents 500 1000 2000         # quick
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MIB = 1024
"""Issue and promise: 100,000 documents on 40 x 40 heads stay under 1 GiB beside the model."""


def peak_mib() -> float:
    """Peak resident memory of this process, MiB; of its own, where `ru_maxrss` begins with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def record(n_documents: int, n_layers: int, n_heads: int, folder: Path) -> dict[str, float]:
    """Run fake documents through a recorder as a run does; figures of this process."""
    import numpy as np

    from lmms_visual_heads.harness.recording import Document, RunRecorder
    from lmms_visual_heads.schema import HEADS_SUFFIX

    description = {"name": "fake", "layers": n_layers, "heads": n_heads, "dtype": "float32"}
    recorder = RunRecorder(folder, "fake", "first_generated", description)
    random = np.random.default_rng(0)
    shape = (n_layers, n_heads)
    names = ("image_attention", "concentration", "focus", "visual_head_score", "region_attention", "region_attention_base",
             "region_attention_tiles", "newline_attention", "sink_attention")  # fmt: skip
    tokens = {"n_prompt_tokens": 640, "n_visual_tokens": 576, "n_patch_tokens": 576}
    answer = {"confidence": 0.5, "answer_entropy": 1.0, "answer_log_probability": -0.5, "answer_token_index": 0,
              "n_answer_tokens": 2, "top_tokens": list(range(20)), "top_probabilities": [0.05] * 20}  # fmt: skip
    before, started = peak_mib(), time.perf_counter()
    for doc_id in range(n_documents):
        document = Document(
            task="vhead_super", doc_id=doc_id, item_id=str(doc_id), images=[None], boxes=(),  # type: ignore[list-item]
            digest=doc_id.to_bytes(16, "big"), wanted=True, padding_only=False,
        )  # fmt: skip
        recorder.recall(document, "0")
        recorder.wants_rows(document)
        heads = {name: random.random(shape, dtype=np.float32) for name in names}
        response = {"text": "3", "n_prompt": 640, "n_answer": 2}
        recorder.add(document, "0", response, answer=answer, heads=heads, tokens=tokens, region_share=0.1)
    recorded, growth_recording = time.perf_counter() - started, peak_mib() - before
    recorder.finish(None)
    (table,) = folder.glob(f"*{HEADS_SUFFIX}")
    return {
        "documents": n_documents,
        "layers": n_layers,
        "heads": n_heads,
        "growth_mib": round(peak_mib() - before, 1),
        "growth_while_recording_mib": round(growth_recording, 1),
        "seconds_recording": round(recorded, 1),
        "seconds_in_all": round(time.perf_counter() - started, 1),
        "bytes_per_document": round(table.stat().st_size / n_documents),
    }


def measured(n_documents: int, n_layers: int, n_heads: int) -> dict[str, float]:
    """`record` in a process of its own, in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--inside",
            folder,
            "--documents",
            str(n_documents),
            "--layers",
            str(n_layers),
            "--heads",
            str(n_heads),
        ]
        command = [sys.executable, "-m", "lab.capture_cost.memory", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{n_documents} documents: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "capture_cost" / "memory")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside is not None:
        print(json.dumps(record(given.documents[0], given.layers, given.heads, given.inside)))
        return
    import pandas as pd

    page(pd.DataFrame([measured(n, given.layers, given.heads) for n in given.documents]), given.out)


def page(frame: Any, out: Path) -> None:
    """Table, picture and page; the largest number of documents decides."""
    from lab.capture_cost.timing import Target, write_page

    largest = frame.iloc[-1]
    n, grid = int(largest["documents"]), f"{int(largest['layers'])} x {int(largest['heads'])}"
    found = float(largest["growth_mib"])
    write_page(
        out,
        "Host memory of a long run's tables",
        [
            "Fake documents through recorder, journal and final tables, as a run puts them there; every size in a process of its "
            "own. `growth mib`: peak resident memory less what the process held before the first document; `while recording` "
            "without the last step, in which the journal becomes tables. Random statistics compress worse than real ones, so "
            "`bytes per document` is an upper bound.",
        ],
        frame,
        list(frame.columns),
        [
            Target(
                f"{n:,} documents of {grid} heads in less than {LIMIT_MIB:,} MiB beside the model",
                f"{found:.0f} MiB",
                found < LIMIT_MIB,
            )
        ],
        draw,
    )


def draw(frame: Any, figure: Any) -> None:
    """Growth over documents."""
    axes = figure.subplots()
    for name in ("growth_mib", "growth_while_recording_mib"):
        axes.plot(frame["documents"], frame[name], marker="o", label=name.replace("_", " "))
    axes.axhline(LIMIT_MIB, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(frame["documents"], [f"{n:,}" for n in frame["documents"]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("documents")
    axes.set_ylabel("MiB")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
