"""The suite at real shapes: random weights, bfloat16, one GPU. Capture cost, prefix reuse, shares of the machine's ceilings.

Called by capture_cost.py --suite gpu. On a CPU it runs with `--quick` (a tiny model), to see that it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from lab.capture_cost.backends import EXPLAINED, ways
from lab.capture_cost.models import SHAPES, TOKENS_PER_IMAGE, build, inputs, weight_bytes
from lab.capture_cost.reuse import reuse_ways
from lab.capture_cost.run import SHOWN, measured_cell
from lab.capture_cost.timing import (
    Target,
    Way,
    grouped_bars,
    interleaved,
    markdown,
    ratio_interval,
    seconds_of,
    write_page,
)
from lmms_visual_heads.capture.attention import last_query_row
from lmms_visual_heads.capture.late import LateRow
from lmms_visual_heads.capture.rows import settle

REAL = ("llava-1.5-7b", "llava-1.5-13b", "llava-1.6-mistral-7b", "llava-1.6-vicuna-13b")
LIMITS = {576: 1.06, 2880: 1.02}
ALL = ("off", "ours", "hooks", "eager")
ALIKE = ("off", "ours")


def cells(shape: str, repeats: int, quick: bool) -> list[tuple[int, int, int, tuple[str, ...], int]]:
    """(images, batch, new tokens, methods, repeats): what the targets name for every model, more for the first."""
    if quick:
        return [(1, 1, 2, ALL, repeats), (1, 2, 1, ALIKE, repeats)]
    asked = [(1, 1, 2, ALL, repeats), (5, 1, 2, ALL, repeats), (1, 8, 2, ALIKE, repeats)]
    if shape == REAL[0]:
        asked += [(n, 1, new, ALIKE, repeats) for n in (1, 5) for new in (1, 8)]
        asked += [(1, 1, 128, ALIKE, 7), (5, 8, 2, ALIKE, 7)]
    return asked


def ceilings(device: str, dtype: torch.dtype, quick: bool) -> dict[str, float]:
    """Bytes a second of a large copy (read and written), and floating-point operations a second of a large product."""
    size, side = (2**24, 512) if quick else (2**32, 8192)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    sink = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def best(run: Callable[[], Any]) -> float:
        def several() -> None:
            for _ in range(10):
                run()

        return median(seconds_of(Way(several))[0] for _ in range(5)) / 10

    best(lambda: a @ b)
    return {
        "bytes_per_second": 2 * size / best(lambda: sink.copy_(source)),
        "operations_per_second": 2 * side**3 / best(lambda: a @ b),
    }


def row_error(device: str, dtype: torch.dtype) -> float:
    """Largest difference of a row, read at once and settled later, from the same softmax in float64.

    32 heads x 2,941 keys x 128 numbers in `dtype`.
    """
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 32, n, 128, generator=generator).to(dtype) for n in (1, 2941))
    expected = (query.double() @ key.double().mT * 128**-0.5).softmax(-1)
    there = query.to(device), key.to(device)
    with torch.inference_mode():
        found = [last_query_row(*there, None, None), *(settle((LateRow(*there, 128**-0.5),)) or ())]
    return max(float((row.cpu().double() - expected).abs().max()) for row in found)


def shares(model: Any, shape: str, n_images: int, ceiling: dict[str, float], repeats: int) -> dict[str, Any]:
    """How much of the ceilings plain prefill and plain decoding reach: what there is to lose."""
    sizes, given = SHAPES[shape], inputs(model, n_images, 1)
    model.set_attn_implementation({"text_config": "sdpa"})
    length = given["input_ids"].shape[1]
    with torch.inference_mode():
        prefill = Way(lambda: model(**given, logits_to_keep=1))
        times = [seconds_of(prefill)[0] for _ in range(repeats + 1)][1:]
    few, many = 2, 34
    steps = {n: ways(model, given, n, ("off",))["off"] for n in (few, many)}
    seconds = interleaved(steps, 4)
    a_step = (median(seconds[many][1:]) - median(seconds[few][1:])) / (many - few)
    decoder = model.get_decoder()
    linear = sum(p.numel() for name, p in decoder.named_parameters() if "embed" not in name)
    tower = sum(p.numel() for p in model.model.vision_tower.parameters())
    operations = 2 * linear * length + 2 * sizes.layers * sizes.hidden * length**2 + 2 * tower * 577 * n_images
    head = model.lm_head.weight.numel()
    cache = 2 * sizes.layers * sizes.key_value_heads * sizes.head_width * length
    moved = (linear + head + cache) * model.dtype.itemsize
    return {
        "shape": shape,
        "visual_tokens": n_images * TOKENS_PER_IMAGE,
        "prefill_ms": 1000 * median(times),
        "prefill_percent_of_matrix_rate": 100 * operations / median(times) / ceiling["operations_per_second"],
        "decode_step_ms": 1000 * a_step,
        "decode_percent_of_bandwidth": 100 * moved / a_step / ceiling["bytes_per_second"],
    }


def launches(model: Any, n_images: int) -> dict[str, int]:
    """Kernels (on a CPU: operators) that one generation of two tokens starts, off and ours."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    found = {}
    for name, way in ways(model, inputs(model, n_images, 1), 2, ALIKE).items():
        way.prepare()
        way.run()
        with profile(activities=activities) as profiler:
            way.run()
        kinds = [e.device_type().name for e in profiler.profiler.kineto_results.events()]
        found[name] = kinds.count("CUDA") if torch.cuda.is_available() else len(kinds)
    return found


def reuse_row(model: Any, shape: str, n_images: int, repeats: int) -> dict[str, Any]:
    """Three questions about one image: separately, as one batch, and with one prefill of what they share."""
    here = reuse_ways(model, [inputs(model, n_images, 1, question=q) for q in range(3)])
    first = {}
    for name, way in here.items():
        way.prepare()
        first[name] = way.run()
    seconds = interleaved(here, repeats)
    ratio, low, high = ratio_interval(seconds["separate"], seconds["reuse"])
    batch_ratio = ratio_interval(seconds["batch"], seconds["reuse"])[0]
    equal = {name: int((first[name][0] == first["separate"][0]).all(1).sum()) for name in here}
    rows_off = {name: float((first[name][1] - first["separate"][1]).abs().max()) for name in here}
    return {
        "shape": shape,
        "visual_tokens": n_images * TOKENS_PER_IMAGE,
        **{f"{name}_seconds": median(values) for name, values in seconds.items()},
        "separate_against_reuse": ratio,
        "low": low,
        "high": high,
        "batch_against_reuse": batch_ratio,
        "answers_equal_of_3": equal["reuse"],
        "largest_difference_of_a_row": rows_off["reuse"],
        "the_same_for_the_batch": rows_off["batch"],
        "repeats": repeats,
    }


def run_suite(arguments: argparse.Namespace, out: Path) -> None:
    """Measure every shape and write the page."""
    quick, device = arguments.quick, arguments.device
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    shapes = arguments.shape or (["tiny"] if quick else list(REAL))
    repeats = arguments.repeats or 15
    ceiling = ceilings(device, dtype, quick)
    error = row_error(device, dtype)
    print(f"rows differ from float64 by at most {error:.1e}", flush=True)
    capture, reused, shared, counted = [], [], [], []
    started = time.perf_counter()
    for shape in shapes:
        model = build(SHAPES[shape], device, dtype)
        print(f"{shape}: {weight_bytes(model) / 2**30:.1f} GiB, {time.perf_counter() - started:.0f} s", flush=True)
        for n_images, batch, new_tokens, names, times in cells(shape, repeats, quick):
            capture += measured_cell(model, shape, n_images, batch, new_tokens, times, names)
        for n_images in (1,) if quick else (1, 5):
            reused.append(reuse_row(model, shape, n_images, repeats))
            shared.append(shares(model, shape, n_images, ceiling, min(repeats, 7)))
            counted.append({"shape": shape, "visual_tokens": n_images * TOKENS_PER_IMAGE, **launches(model, n_images)})
        _write(
            out, arguments, dtype, ceiling, error, pd.DataFrame(capture), *map(pd.DataFrame, (reused, shared, counted))
        )
        del model
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


def _write(
    out: Path,
    arguments: argparse.Namespace,
    dtype: torch.dtype,
    ceiling: dict[str, float],
    error: float,
    capture: pd.DataFrame,
    reused: pd.DataFrame,
    shared: pd.DataFrame,
    counted: pd.DataFrame,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in (("reuse", reused), ("ceilings", shared), ("launches", counted)):
        frame.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    on_gpu = arguments.device.startswith("cuda")
    where = "one GPU" if on_gpu else "a CPU: a check that it runs, no measurement of real models"
    decimals = {"low": 2, "high": 2, "separate_against_reuse": 2, "batch_against_reuse": 2}
    more = [
        "## Three questions about one image",
        "`separate`: three generations, batch 1; `batch`: one batch of three, the image three times; `reuse`: one "
        "prefill of what the questions "
        "share, then one batch of their own tokens. All read the rows of the first generated token.",
        "\n".join(markdown(reused, decimals | {f"{n}_seconds": 4 for n in ("separate", "batch", "reuse")}
                           | {n: 6 for n in ("largest_difference_of_a_row", "the_same_for_the_batch")})),
        "## Shares of this machine's ceilings",
        f"Measured in the same run: a large copy moves {ceiling['bytes_per_second'] / 1e12:.2f} TB/s (read and "
        f"written), a large {_name(dtype)} "
        f"product runs at {ceiling['operations_per_second'] / 1e12:.1f} TFLOP/s. Plain generation, capture off:",
        "\n".join(markdown(shared, dict.fromkeys(shared.columns[2:], 1))),
        f"## {'Kernels' if on_gpu else 'Operators'} started by prefill + 2 tokens",
        "\n".join(markdown(counted, {})),
    ]  # fmt: skip
    write_page(
        out,
        "What reading the heads costs at real shapes",
        [
            f"Random weights, {_name(dtype)}, on {where}. Shapes of {', '.join(dict.fromkeys(capture['shape']))}; a "
            "prompt has 60 text tokens and one "
            "image (576 visual tokens) or five images (2,880: as many as the base view and four tiles of an anyres prompt have "
            "before un-padding and newlines; on the 1.6 shapes, too). Random weights cost what real ones do; their answers mean "
            "nothing.",
            "Runs interleaved, medians of `repeats` (table.csv); `ratio` is time against `off` with the 95 % "
            "bootstrap interval of the median of "
            "paired ratios; `own percent` is the time inside the capture's own functions (rows, stacking, statistics), "
            "waiting for the device before and after each; the hooks that watch the passes are in the ratio alone; "
            "`peak MiB` comes from the allocator, beside the weights.",
            " · ".join(f"`{name}`: {text}" for name, text in EXPLAINED.items()) + ".",
        ],
        capture,
        SHOWN,
        _targets(capture, reused, error),
        _draw,
        more,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _targets(capture: pd.DataFrame, reused: pd.DataFrame, error: float) -> list[Target]:
    ours = capture[capture["method"] == "ours"]
    found = []
    for tokens, limit in LIMITS.items():
        cell = ours[(ours["visual_tokens"] == tokens) & (ours["batch"] == 1) & (ours["new_tokens"] == 2)]
        parts = [f"{row.shape} {row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]" for row in _rows(cell)]
        met = bool((cell["ratio"] <= limit).all()) if len(cell) else None
        wanted = f"ours at most {limit} times plain SDPA, {tokens:,} visual tokens, prefill + 2 tokens"
        found.append(Target(wanted, "; ".join(parts) or "no such cell", met))
    long = reused[reused["visual_tokens"] == 2880]
    parts = [f"{row.shape} {row.separate_against_reuse:.2f}" for row in _rows(long)]
    met = bool((long["separate_against_reuse"] >= 2).all()) if len(long) else None
    found.append(
        Target("reuse at least 2 times faster at 2,880 visual tokens", "; ".join(parts) or "no such cell", met)
    )
    same, steady = ours["same_answer"] == "yes", ours["off_again"] == "same"
    differs = bool((~same & steady).any())
    found.append(
        Target(
            "answers with capture on equal those with capture off",
            f"{int(same.sum())} of {len(ours)} cells; a second run of plain generation equals the first in {int(steady.sum())}",
            True if same.all() else False if differs else None,
        )
    )
    found.append(Target("rows within 1e-6 of the same softmax in float64", f"{error:.1e}", error <= 1e-6))
    peak = float(ours["peak_ratio"].max())
    found.append(
        Target("peak memory at most 1.05 times (tensors beside the weights)", f"{peak:.3f}, worst cell", peak <= 1.05)
    )
    return found


def _rows(frame: pd.DataFrame) -> Any:
    """Rows with attribute names that do not hide those of a tuple."""
    return [argparse.Namespace(**{str(name): value for name, value in row.items()}) for row in frame.to_dict("records")]


def _draw(frame: pd.DataFrame, figure: Any) -> None:
    ran = frame[
        (frame["repeats"] > 0) & (frame["method"] != "off") & (frame["batch"] == 1) & (frame["new_tokens"] == 2)
    ]
    panels = sorted(ran["visual_tokens"].unique())
    for tokens, axes in zip(panels, np.atleast_1d(figure.subplots(1, max(1, len(panels)))), strict=True):
        part = ran[ran["visual_tokens"] == tokens]
        grouped_bars(axes, part, "shape", "method", "ratio", "ratio_low", "ratio_high")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlim(0, 1.12 * part["ratio_high"].max())
        if tokens != panels[-1]:
            axes.get_legend().remove()
        axes.set_xlabel("time against plain SDPA, prefill + 2 tokens")
        axes.set_title(f"{tokens:,} visual tokens", fontsize=10)
