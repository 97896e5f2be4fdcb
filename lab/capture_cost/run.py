"""What reading the heads costs: generation with capture off, ours, eager full maps, and hooks that recompute the row.

Random weights, no lmms-eval, no checkpoint. Writes table.csv, picture.svg and README.md under reports/capture_cost/.

    python -m lab capture-cost                                   # small models on the CPU, a quarter of an hour on two cores
    python -m lab capture-cost --images 5 --batch 1 --keep       # some cells again, the others as table.csv has them
    python -m lab capture-cost --suite gpu --device cuda         # the real shapes of four models in bfloat16
    python -m lab capture-cost --quick                           # a minute, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from lab.capture_cost.backends import EXPLAINED, Stopwatch, ways
from lab.capture_cost.models import SHAPES, TOKENS_PER_IMAGE, build, inputs, weight_bytes
from lab.capture_cost.timing import (
    Target,
    Way,
    available_bytes,
    grouped_bars,
    interleaved,
    middle_half,
    peak_tensor_bytes,
    ratio_interval,
    seconds_of,
    work_of,
    write_page,
)

ROOT = Path(__file__).resolve().parents[2]
KIB = 1024
PRINTED = ("visual_tokens", "batch", "new_tokens", "method", "seconds", "ratio", "own_percent")
SHOWN = (
    "visual_tokens", "batch", "new_tokens", "shape", "method", "seconds", "ratio", "ratio_low", "ratio_high", "own_percent",
    "kernel_seconds", "page_faults", "peak_mib", "peak_ratio", "same_answer", "note",
)  # fmt: skip


EAGER = (
    "Why full maps cost what they do: they are computed for the whole square of positions where SDPA needs the causal half, and "
    "every map (hundreds of MiB at 2,880 tokens) is memory that the allocator takes from the system anew, page by page. `kernel "
    "seconds` (processor time inside the operating system) and `page faults` of one run show the second part; an allocator that "
    "happens to hold enough memory from before saves it. On the machine of the committed page eager then took 1.7 to 2.1 times "
    "plain generation at 2,880 tokens and batch 1 (with earlier cells in the same process, or with MALLOC_MMAP_MAX_=0 "
    "MALLOC_TRIM_THRESHOLD_=8000000000), so the factor of 3 holds for memory as a fresh process gets it, and not for the "
    "arithmetic alone. On real shapes the maps outgrow the memory first: 27.7 GB for a 13B model at 2,940 tokens in half precision."
)
UNFINISHED = "unfinished.jsonl"
"""In the output folder while the grid is not done: the cells that are."""
MARK = "@cell "
CELL = ["batch", "visual_tokens", "new_tokens"]


@contextmanager
def repeatable() -> Iterator[None]:
    """Kernels whose sums have one order, where the GPU has them: answers of random weights hang on ties."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def measured_cell(
    model: Any, shape: str, n_images: int, batch: int, new_tokens: int, repeats: int, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Rows of one cell of the grid, one per method."""
    given = inputs(model, n_images, batch)
    length = given["input_ids"].shape[1]
    facts = {"shape": shape, "visual_tokens": n_images * TOKENS_PER_IMAGE, "batch": batch, "new_tokens": new_tokens}
    if new_tokens == 1 and "ours" in names:
        names = (*names[:2], "ours, own step", *names[2:])
    needed = SHAPES[shape].map_bytes(batch, length, model.dtype.itemsize) if "eager" in names else 0
    available = available_bytes()
    skipped = needed > 0.8 * available
    here: dict[str, Way] = ways(model, given, new_tokens, tuple(n for n in names if n != "eager" or not skipped))
    first: dict[str, Any] = {}
    peaks: dict[str, int] = {}
    with repeatable():
        for name, way in here.items():
            way.prepare()
            first[name] = way.run()  # warm-up, and what is compared
        here["off"].prepare()
        steady = torch.equal(here["off"].run()[0], first["off"][0])
    for name, way in here.items():
        peaks[name] = peak_tensor_bytes(way)
    seconds = interleaved(here, repeats)
    own: list[float] = []
    own_share: list[float] = []
    for _ in range(min(repeats, 5)):
        with Stopwatch() as watch:
            took, _ = seconds_of(here["ours"])
        own.append(watch.total)
        own_share.append(watch.total / took)
    rows = []
    for name in here:
        ratio, low, high = ratio_interval(seconds[name], seconds["off"])
        quarter, three_quarters = middle_half(seconds[name])
        work = work_of(here[name])
        tokens, read = first[name]
        note = ""
        if read is not None and name not in ("ours", "ours, own step") and model.dtype == torch.float32:
            off_by = float((read - first["ours"][1]).abs().max())
            note = f"rows as ours within {off_by:.0e}"
        rows.append(
            {
                **facts,
                "method": name,
                "seconds": median(seconds[name]),
                "seconds_low": quarter,
                "seconds_high": three_quarters,
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "own_percent": 100 * median(own_share) if name == "ours" else float("nan"),
                "own_ms": 1000 * median(own) if name == "ours" else float("nan"),
                **work,
                "peak_mib": peaks[name] / 2**20,
                "peak_ratio": peaks[name] / peaks["off"],
                "whole_peak_ratio": (peaks[name] + weight_bytes(model)) / (peaks["off"] + weight_bytes(model)),
                "same_answer": "yes" if torch.equal(tokens, first["off"][0]) else "no",
                "off_again": "same" if steady else "differs",
                "note": note,
                "repeats": repeats,
            }
        )
    if skipped:
        note = f"not run: its maps need {needed / 2**30:.1f} GiB, {available / 2**30:.1f} are free"
        rows.append({**facts, "method": "eager", "note": note, "same_answer": "–", "repeats": 0})
    for row in rows:
        print({name: row.get(name) for name in PRINTED}, flush=True)
    return rows


def cell_of_its_own(shape: str, device: str, dtype: str, *cell: Any) -> list[dict[str, Any]]:
    """`measured_cell` in a fresh process: what memory an allocator holds from other cells decides what large maps cost."""
    words = [sys.executable, "-m", "lab.capture_cost.run", "--cell", json.dumps([shape, device, dtype, *cell])]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        found: list[dict[str, Any]] = []
        for line in run.stdout:
            if line.startswith(MARK):
                found = json.loads(line.removeprefix(MARK))
            else:
                print(line, end="", flush=True)
    if not found:
        raise SystemExit(f"the cell {cell} ended with status {run.returncode} and no rows")
    return found


def one_cell(text: str) -> None:
    """What `cell_of_its_own` starts."""
    shape, device, dtype, *cell = json.loads(text)
    rows = measured_cell(build(SHAPES[shape], device, getattr(torch, dtype)), shape, *cell)
    print(MARK + json.dumps(rows, default=float), flush=True)


def shape_of(arguments: argparse.Namespace, n_images: int, batch: int, new_tokens: int) -> str:
    """The shape that a cell runs on: the one that was asked for, or the largest of ours that lets the grid end in minutes."""
    if arguments.quick:
        return "tiny"
    if arguments.shape:
        return str(arguments.shape[0])
    level = 0 if batch == 1 else 1 if n_images == 1 else 2
    level += int(new_tokens >= 64 and n_images * batch > 1)
    return ("small", "wide", "narrow", "narrow")[level]


def measure(arguments: argparse.Namespace, out: Path) -> pd.DataFrame:
    """The whole grid; cells that an interrupted run with the same settings has measured are taken from `out`."""
    kept = out / UNFINISHED
    settings = [arguments.repeats, arguments.methods, arguments.dtype, arguments.device, torch.__version__]
    known = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            cell = json.loads(line)
            known[json.dumps(cell["key"])] = cell["rows"]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for batch, n_images, new_tokens in product(arguments.batch, arguments.images, arguments.new_tokens):
        shape = shape_of(arguments, n_images, batch, new_tokens)
        key = json.dumps([shape, n_images, batch, new_tokens, *settings])
        if key in known:
            print(f"measured before: {shape}, {n_images} images, batch {batch}, {new_tokens} new tokens", flush=True)
            rows += known[key]
            continue
        asked = (n_images, batch, new_tokens, arguments.repeats, tuple(arguments.methods))
        if arguments.quick:
            model = build(SHAPES[shape], arguments.device, getattr(torch, arguments.dtype))
            cell = measured_cell(model, shape, *asked)
        else:
            cell = cell_of_its_own(shape, arguments.device, arguments.dtype, *asked)
        with kept.open("a") as lines:
            lines.write(json.dumps({"key": json.loads(key), "rows": cell}, default=float) + "\n")
        rows += cell
    return pd.DataFrame(rows)


def with_kept(frame: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, str]:
    """`frame` and the other cells of table.csv, in the grid's order; and the sentence that says so."""
    before = pd.read_csv(out / "table.csv", keep_default_na=True).fillna({"note": ""})
    new = set(frame[CELL].itertuples(index=False, name=None))
    kept = before[[cell not in new for cell in before[CELL].itertuples(index=False, name=None)]]
    both = pd.concat([frame, kept]).sort_values(CELL, kind="stable").reset_index(drop=True)
    n_kept = len(kept[CELL].drop_duplicates())
    again = "; ".join(f"{tokens} tokens, batch {batch}, {new} new" for batch, tokens, new in sorted(new))
    return both, (
        f"{len(new)} cells ({again}) were measured later than the other {n_kept}, with other work waiting on the machine; "
        "a dash stands where an earlier run did not measure a column, and cells of that run shared a process."
    )


def bytes_per_document(heads: int = 32, layers: int = 32, documents: int = 64) -> dict[str, float]:
    """Bytes on disk per document, written by the project's own writer from statistics of drawn attention rows."""
    from lmms_visual_heads.statistics.heads import head_statistics
    from lmms_visual_heads.tables import HeadTableWriter

    generator = torch.Generator().manual_seed(0)
    found = {}
    model = {"name": "drawn rows", "layers": layers, "heads": heads}
    tasks = {"vhead_super": {"fingerprint": "0" * 32, "n_documents": documents}}
    metadata = {"model": model, "query": "first_generated", "tasks": tasks}
    for kind, n_patches, n_visual in (("one view", 576, 576), ("anyres", 2880, 2928)):
        with tempfile.TemporaryDirectory() as folder:
            writer = HeadTableWriter(Path(folder) / "a.heads.parquet")
            visual = torch.arange(5, 5 + n_visual)
            patches = visual[:n_patches]
            region = torch.arange(n_patches) % 7 == 0
            base = patches[:576] if kind == "anyres" else None
            for document in range(documents):
                scores = torch.randn(layers, heads, n_visual + 60, generator=generator) * 3
                numbers = head_statistics(scores.softmax(-1), visual, patches, torch.tensor([0]), region, base)
                share = float(numbers.pop("region_share")[0, 0])
                grids = {name: grid.numpy() for name, grid in numbers.items()}
                writer.add(
                    "vhead_super", document, grids, n_visual_tokens=n_visual, n_patch_tokens=n_patches,
                    n_prompt_tokens=n_visual + 60, item_id=f"scene-{document:04d}", region_share=share,
                )  # fmt: skip
            found[kind] = writer.close(metadata).stat().st_size / documents
    return found


def targets(frame: pd.DataFrame, disk: dict[str, float]) -> list[Target]:
    """What was asked of the capture, and what was found; the worst cell decides."""
    ran = frame[frame["repeats"] > 0]
    ours, eager = ran[ran["method"] == "ours"], ran[ran["method"] == "eager"]
    same = int((ours["same_answer"] == "yes").sum())
    share, ratio = ours["own_percent"].max(), ours["ratio_low"].max()
    found = [
        Target("own time at most 1 % of generation (timed directly), worst cell", f"{share:.2f} %", bool(share <= 1)),
        Target(
            "1.03 inside or above the 95 % interval of the time against off, worst cell",
            f"largest lower end {ratio:.3f}, medians {ours['ratio'].min():.3f} to {ours['ratio'].max():.3f}",
            bool(ratio <= 1.03),
        ),
        Target(
            "peak memory at most 1.05 times (tensors beside the weights), worst cell",
            f"{ours['peak_ratio'].max():.3f} (with the weights {ours['whole_peak_ratio'].max():.3f})",
            bool(ours["peak_ratio"].max() <= 1.05),
        ),
        Target(
            "answers with capture on equal those with capture off", f"{same} of {len(ours)} cells", same == len(ours)
        ),
    ]
    keys = ["visual_tokens", "batch", "new_tokens"]
    both = eager.merge(ours, on=keys, suffixes=("_eager", "_ours"))
    long = both[(both["visual_tokens"] >= 2880) & (both["new_tokens"] <= 8)]
    slower = (long["seconds_eager"] / long["seconds_ours"]).groupby(long["batch"]).agg(["min", "max"])
    parts = [f"{low:.2f} to {high:.2f} times at batch {batch}" for batch, low, high in slower.itertuples()]
    found.append(
        Target(
            "eager at 2,880 tokens at least 3 times slower than ours (up to 8 new tokens), every cell",
            ", ".join(parts) or "no such cell",
            bool((slower["min"] >= 3).all()) if len(long) else None,
        )
    )
    for kind, limit in (("one view", 20), ("anyres", 28)):
        size = disk[kind] / KIB
        wanted = f"at most {limit} KiB a document on disk, 32 x 32 heads, {kind}"
        found.append(Target(wanted, f"{size:.1f} KiB", bool(size <= limit)))
    return found


def draw(frame: pd.DataFrame, figure: Any) -> None:
    """Time against off, one panel per number of visual tokens."""
    ran = frame[(frame["repeats"] > 0) & ~frame["method"].isin(["off", "ours, own step"])].copy()
    ran["cell"] = "batch " + ran["batch"].astype(str) + ", " + ran["new_tokens"].astype(str) + " new"
    panels = sorted(ran["visual_tokens"].unique())
    for place, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        part = ran[ran["visual_tokens"] == place]
        grouped_bars(axes, part, "cell", "method", "ratio", "ratio_low", "ratio_high")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlim(0, 1.12 * part["ratio_high"].max())
        axes.set_xlabel("time against plain generation")
        axes.set_title(f"{place:,} visual tokens", fontsize=10)
        if place != panels[-1]:
            axes.get_legend().remove()


def main() -> None:
    """Parse, measure, write."""
    # Without it, products on a GPU may add in another order each time; read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, nargs="+", help="one for all cells; gpu: which of the four")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cpu: float32; gpu: bfloat16")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5], help="images of 576 visual tokens per prompt")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[1, 2, 8, 128])
    parser.add_argument("--methods", nargs="+", default=["off", "ours", "hooks", "eager"])
    parser.add_argument("--repeats", type=int, help="default 7 (gpu: 15)")
    parser.add_argument("--quick", action="store_true", help="tiny models, few repeats: to see that it runs")
    parser.add_argument("--keep", action="store_true", help="cells that are not asked for are those of table.csv")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--out", default=None, help="default reports/capture_cost/<suite>")
    arguments = parser.parse_args()
    if arguments.cell:
        one_cell(arguments.cell)
        return
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "--device cuda needs a GPU that torch sees; none is there. Leave it out, or install torch for this GPU."
        )
    if (
        arguments.suite == "gpu"
        and not arguments.device.startswith("cuda")
        and not (arguments.quick or arguments.shape)
    ):
        parser.error("the real shapes need a GPU (--device cuda); on a CPU add --quick, which runs a tiny model.")
    out = Path(arguments.out or ROOT / "reports" / "capture_cost" / arguments.suite)
    if arguments.suite == "gpu":
        from lab.capture_cost.real_shapes import run_suite

        run_suite(arguments, out)
        return
    arguments.repeats = arguments.repeats or 7
    arguments.dtype = arguments.dtype or "float32"
    if arguments.quick:
        arguments.images, arguments.batch, arguments.new_tokens = [1], [1, 2], [1, 2]
    disk = bytes_per_document(documents=8 if arguments.quick else 64)
    frame = measure(arguments, out)
    frame, later = with_kept(frame, out) if arguments.keep else (frame, "")
    methods = " · ".join(f"`{name}`: {text}" for name, text in EXPLAINED.items())
    write_page(
        out,
        "What reading the heads costs (small random models)",
        [
            f"Random weights, {arguments.dtype}, shapes {_sizes(list(dict.fromkeys(frame['shape'])))}; "
            "long prompts and large batches run on smaller shapes, so that eager maps fit and the grid ends in minutes. "
            "Absolute seconds say nothing about a real model; ratios do.",
            f"Runs interleaved, medians of {arguments.repeats}; `ratio` is time against `off` with the 95 % bootstrap "
            "interval of the median "
            "of paired ratios. `own percent`: time inside the capture's own functions (rows, stacking, statistics "
            "and their way to the host), "
            "measured directly, as a share of generation. `peak MiB`: the largest number of bytes that tensors held "
            "at once beside the weights, "
            "added up from every allocation and release in torch's profiler, in a run that is not timed. Each cell runs in a "
            "process of its own. " + later,
            methods + ".",
            EAGER,
            "Bytes a document on disk (32 x 32 heads, drawn rows through `HeadTableWriter`): "
            f"{disk['one view'] / KIB:.1f} KiB with one view, "
            f"{disk['anyres'] / KIB:.1f} KiB with anyres tiles.",
        ],
        frame.assign(disk_bytes_one_view=disk["one view"], disk_bytes_anyres=disk["anyres"]),
        SHOWN,
        targets(frame, disk),
        draw,
    )  # fmt: skip
    (out / UNFINISHED).unlink()


def _sizes(names: list[str]) -> str:
    parts = [f"`{n}` ({SHAPES[n].layers} layers x {SHAPES[n].heads} heads, {SHAPES[n].hidden} wide)" for n in names]
    return ", ".join(parts)


if __name__ == "__main__":
    main()
