"""How time, memory and file size grow with the number of processes, visual tokens and heads: slopes on logarithmic axes.

Random models on the CPU. A slope of 1 is proportional, 2 quadratic. Writes table.csv, slopes.csv, picture.svg and README.md.

    python -m lab capture-scaling            # about seven minutes on two cores
    python -m lab capture-scaling --quick    # to see that it runs
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MARK = "@measured "
TOKENS = (144, 576, 1440, 2880, 5760)
HEADS = (8, 16, 24, 32, 40)
PARTS = ("visual tokens", "heads", "processes")
QUANTITIES = ("off_seconds", "ours_seconds", "own_ms", "peak_mib", "rows_mib", "file_kib_per_document")


def one_size(model: Any, n_images: int, repeats: int) -> dict[str, float]:
    """Seconds off and ours, the capture's own milliseconds, peak bytes and bytes of the rows, for one model and prompt."""
    from lab.capture_cost.backends import Stopwatch, ways
    from lab.capture_cost.models import inputs
    from lab.capture_cost.timing import interleaved, middle_half, peak_tensor_bytes

    here = ways(model, inputs(model, n_images, 1), 2, ("off", "ours"))
    rows = None
    for way in here.values():
        way.prepare()
        _, rows = way.run()
    peak = peak_tensor_bytes(here["ours"])
    seconds = interleaved(here, repeats)
    here["ours"].prepare()
    own = []
    for _ in range(repeats):
        with Stopwatch() as watch:
            here["ours"].run()
        own.append(1000 * watch.total)
    assert rows is not None
    low, high = middle_half(own)
    return {
        "off_seconds": median(seconds["off"]),
        "ours_seconds": median(seconds["ours"]),
        "own_ms": median(own),
        "own_ms_low": low,
        "own_ms_high": high,
        "peak_mib": peak / 2**20,
        "rows_mib": rows.numel() * rows.element_size() / 2**20,
        "repeats": repeats,
    }


def over_tokens(sizes: tuple[int, ...], shape: str, repeats: int) -> list[dict[str, Any]]:
    """One row per number of visual tokens; images of 144 patches."""
    import torch

    from lab.capture_cost.models import SHAPES, build

    model = build(SHAPES[shape], "cpu", torch.float32, image_size=168)
    found = []
    for tokens in sizes:
        found.append({"over": "visual tokens", "size": tokens, **one_size(model, tokens // 144, repeats)})
        print(found[-1], flush=True)
    return found


def over_heads(sizes: tuple[int, ...], repeats: int, documents: int) -> list[dict[str, Any]]:
    """One row per grid of heads (n layers x n heads, 16 numbers a head), 576 visual tokens; with bytes on disk."""
    import torch

    from lab.capture_cost.models import Shape, build
    from lab.capture_cost.run import bytes_per_document

    found = []
    for n in sizes:
        model = build(Shape(n, 16 * n, n, n, 16 * n, 1000, (64, 2)), "cpu", torch.float32)
        size = bytes_per_document(heads=n, layers=n, documents=documents)["one view"] / 1024
        row = {"over": "heads", "size": n * n, **one_size(model, 1, repeats), "file_kib_per_document": size}
        found.append(row)
        print(row, flush=True)
    return found


def over_processes(checkpoint: Path, documents: int, rounds: int) -> list[dict[str, Any]]:
    """Rows for one and two gloo processes over the same documents, one thread each, started in turn."""
    from lab.capture_cost.timing import middle_half

    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for n in (1, 2) if turn % 2 else (2, 1):
            found[n] += _started(n, checkpoint, documents)
            print("processes", n, found[n][-1], flush=True)
    rows = []
    for n, seconds in found.items():
        low, high = middle_half(seconds)
        rows.append(
            {"over": "processes", "size": n, "ours_seconds": median(seconds), "ours_seconds_low": low,
             "ours_seconds_high": high, "repeats": len(seconds)}
        )  # fmt: skip
    return rows


def _started(n: int, checkpoint: Path, documents: int) -> list[float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(n),
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(port),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            *launcher,
            "-m",
            "lab.capture_cost.scaling",
            "--worker",
            str(checkpoint),
            folder,
            str(documents),
        ]
        run = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    lines = [line for line in run.stdout.splitlines() if MARK in line]
    if not lines:
        raise RuntimeError(run.stderr[-3000:])
    return json.loads(lines[-1].split(MARK, 1)[1])


def worker(checkpoint: str, folder: str, documents: str) -> None:
    """One rank: the probe three times, the first to warm up; the slowest rank's seconds in `generate_until` are the run's."""
    import torch
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    from lmms_visual_heads.harness import processes
    from lmms_visual_heads.harness.model import VisualHeadsLlava

    torch.set_num_threads(1)
    manager = TaskManager("ERROR", include_path=str(ROOT / "tasks"), include_defaults=False)
    seconds = []
    for turn in range(3):
        model = VisualHeadsLlava(pretrained=checkpoint, device="cpu", heads=f"{folder}/{turn}", batch_size=4)
        inside: list[float] = []
        answer = model.generate_until

        def timed(requests: Any, answer: Any = answer, inside: list[float] = inside) -> Any:
            processes.barrier()
            start = time.perf_counter()
            result = answer(requests)
            inside.append(time.perf_counter() - start)
            return result

        model.generate_until = timed  # type: ignore[method-assign]
        evaluator.simple_evaluate(
            model=model, tasks=["vhead_super"], task_manager=manager, limit=int(documents), bootstrap_iters=0,
            log_samples=False, verbosity="ERROR", gen_kwargs="max_new_tokens=2",
        )  # fmt: skip
        seconds.append(max(processes.gather(sum(inside))))
    if processes.rank() == 0:
        print(MARK + json.dumps(seconds[1:]), flush=True)


def slopes(frame: Any) -> Any:
    """Least-squares slope of every quantity on logarithmic axes, over the upper part of the sizes and over all."""
    import numpy as np
    import pandas as pd

    rows = []
    for over, part in frame.groupby("over", sort=False):
        for quantity in QUANTITIES:
            known = part[["size", quantity]].dropna() if quantity in part else part.iloc[:0]
            if len(known) < 2:
                continue
            x, y = np.log(known["size"].to_numpy(float)), np.log(known[quantity].to_numpy(float))
            whole = float(np.polyfit(x, y, 1)[0])
            last = float(np.polyfit(x[-3:], y[-3:], 1)[0])
            rows.append({"over": over, "quantity": quantity, "slope": whole, "slope_of_the_largest_three": last})
    return pd.DataFrame(rows)


def draw(frame: Any, figure: Any) -> None:
    """Seconds and own time over tokens and heads, on logarithmic axes."""
    panels = [
        ("visual tokens", ("off_seconds", "own_ms", "peak_mib")),
        ("heads", ("off_seconds", "own_ms", "file_kib_per_document")),
    ]
    for (over, quantities), axes in zip(panels, figure.subplots(1, 2), strict=True):
        part = frame[frame["over"] == over]
        for quantity in quantities:
            axes.plot(part["size"], part[quantity], marker="o", label=quantity.replace("_", " "))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(part["size"], [f"{size:,}" for size in part["size"]])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(over)
        axes.legend(fontsize=8)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--rounds", type=int, default=4, help="starts of each number of processes; each gives two times"
    )
    parser.add_argument("--documents", type=int, default=24, help="of the probe, for the processes")
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=list(PARTS), help="the rest is taken from table.csv"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=str(ROOT / "reports" / "capture_cost" / "scaling"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    import pandas as pd

    from lab.capture_cost.probe_vs_llava_hf import checkpoint
    from lab.capture_cost.timing import Target, markdown, write_page

    quick = arguments.quick
    tokens, heads, shape = (TOKENS[:2], HEADS[:2], "tiny") if quick else (TOKENS, HEADS, "small")
    out = Path(arguments.out)
    measured: list[Any] = []
    if set(arguments.only) != set(PARTS):
        before = pd.read_csv(out / "table.csv")
        measured.append(before[~before["over"].isin(arguments.only)])
    if "visual tokens" in arguments.only:
        measured.append(pd.DataFrame(over_tokens(tokens, shape, arguments.repeats)))
    if "heads" in arguments.only:
        measured.append(pd.DataFrame(over_heads(heads, arguments.repeats, 8 if quick else 32)))
    if "processes" in arguments.only:
        with tempfile.TemporaryDirectory() as temporary:
            model = checkpoint(Path(temporary) / "random", quick)
            rows = over_processes(model, 4 if quick else arguments.documents, 1 if quick else arguments.rounds)
        measured.append(pd.DataFrame(rows))
    frame = pd.concat(measured).sort_values("over", key=lambda of: of.map(PARTS.index), kind="stable")
    frame = frame.reset_index(drop=True)
    found = slopes(frame)
    out.mkdir(parents=True, exist_ok=True)
    found.to_csv(out / "slopes.csv", index=False, float_format="%.4g")

    def slope(over: str, quantity: str) -> float:
        chosen = found[(found["over"] == over) & (found["quantity"] == quantity)]["slope"]
        return float(chosen.iloc[0]) if len(chosen) else math.nan

    speed_up = 2 ** -slope("processes", "ours_seconds")
    targets = [
        Target("the capture's own time grows no faster than the visual tokens (slope at most 1.1)",
               f"{slope('visual tokens', 'own_ms'):.2f}", slope("visual tokens", "own_ms") <= 1.1),
        Target("it grows no faster than the heads (slope at most 1.1)", f"{slope('heads', 'own_ms'):.2f}",
               slope("heads", "own_ms") <= 1.1),
        Target("the file grows no faster than the heads (slope at most 1.1)", f"{slope('heads', 'file_kib_per_document'):.2f}",
               slope("heads", "file_kib_per_document") <= 1.1),
        Target("two processes on two cores at least 1.6 times as fast as one", f"{speed_up:.2f} times", speed_up >= 1.6),
    ]  # fmt: skip
    write_page(
        out,
        "How the cost of reading the heads grows",
        [
            "Random models on the CPU, float32, prompts of 60 text tokens, two new tokens, medians of "
            f"{arguments.repeats} interleaved runs. "
            "Over visual tokens: the shape `small` of capture_cost.py (3 layers x 8 heads), images of 144 patches. "
            "Over heads: n layers x n heads "
            "of 16 numbers, 576 visual tokens, with the bytes on disk of drawn rows. Over processes: the probe "
            "through lmms-eval, started by "
            f"`torch.distributed.run` with gloo, one thread a process, {arguments.rounds} starts of each in turn with "
            "two measured runs each; the "
            "slowest process's time in `generate_until` counts. `own ms`: the capture's own functions, timed directly."
            + ("" if set(arguments.only) == set(PARTS) else f" {' and '.join(arguments.only).capitalize()}: in a run of their "
               "own, after the others."),
        ],
        frame,
        ("over", "size", *QUANTITIES, "repeats"),
        targets,
        draw,
        ["## Slopes on logarithmic axes", "1 is proportional, 2 quadratic, -1 perfect scaling over processes.",
         "\n".join(markdown(found, {"slope": 2, "slope_of_the_largest_three": 2}))],
    )  # fmt: skip


if __name__ == "__main__":
    main()
