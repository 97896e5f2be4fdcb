"""What every benchmark shares: interleaved repeats, intervals, peak memory, targets, and the page that is written.

Seconds are wall clock. A ratio is of two runs that stood next to each other; its interval is the 95 % bootstrap
interval of the median of those ratios. Imports nothing of lmms-eval.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler tells of every start and stop otherwise

import pandas as pd
import torch

PACKAGES = ("torch", "transformers", "lmms_eval", "pyarrow", "numpy")
LEVEL = 0.95

Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Way:
    """One way of doing the measured thing; `prepare` is not timed."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Target:
    """One target: what is wanted, what was found, whether that meets it (None: could not be measured here)."""

    wanted: str
    found: str
    met: bool | None


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(way: Way) -> tuple[float, Any]:
    """Seconds of one run, and what it returned."""
    way.prepare()
    synchronise()
    start = time.perf_counter()
    result = way.run()
    synchronise()
    return time.perf_counter() - start, result


def work_of(way: Way) -> dict[str, float]:
    """Processor seconds inside the operating system and page faults of one run; nothing where the system does not tell."""
    try:
        import resource
    except ImportError:
        return {}
    way.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF)
    way.run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt - before.ru_minflt
    return {"kernel_seconds": after.ru_stime - before.ru_stime, "page_faults": float(faults)}


def interleaved(ways: Mapping[Name, Way], repeats: int) -> dict[Name, list[float]]:
    """Seconds of every way, run in turn; each round begins with another way, so that a drift hits all alike."""
    names = list(ways)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(seconds_of(ways[name])[0])
    return seconds


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high) of the paired ratios; 95 % percentile bootstrap of their median, 2,000 draws."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    draws = random.Random(0)
    medians = sorted(median(draws.choices(ratios, k=len(ratios))) for _ in range(2000))
    edge = int((1 - LEVEL) / 2 * len(medians))
    return median(ratios), medians[edge], medians[-1 - edge]


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile."""
    series = pd.Series(values)
    return float(series.quantile(0.25)), float(series.quantile(0.75))


def peak_tensor_bytes(way: Way) -> int:
    """Largest number of bytes that tensors held at once beside what existed before the run.

    On a GPU from the caching allocator; on a CPU every allocation and release that torch's profiler saw, added up.
    """
    way.prepare()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way.run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        way.run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def available_bytes() -> int:
    """Memory that can still be had: on the GPU where there is one, else of the machine (Linux)."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo does not say how much memory is available")


def machine() -> str:
    """One line: processor, cores, memory, GPU, versions."""
    name, memory = platform.processor() or platform.machine(), 0.0
    if Path("/proc/cpuinfo").exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        name = models[0] if models else name
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [f"{name}, {os.cpu_count()} cores ({torch.get_num_threads()} used), {memory:.0f} GiB"]
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        parts.append(f"GPU {torch.cuda.get_device_name()}, {total:.0f} GiB")
    else:
        parts.append("no GPU")
    return "; ".join([*parts, f"Python {platform.python_version()}", *_versions()])


def _versions() -> Iterable[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def markdown(frame: pd.DataFrame, decimals: Mapping[str, int]) -> list[str]:
    """A table in Markdown; `decimals` says how a column is rounded, a missing number is a dash."""

    def cell(name: str, value: Any) -> str:
        if value is None or (isinstance(value, float) and value != value):
            return "–"
        return f"{value:,.{decimals[name]}f}" if name in decimals and not isinstance(value, str) else str(value)

    names = [str(name) for name in frame.columns]
    rows = [
        "| " + " | ".join(cell(n, v) for n, v in zip(names, row, strict=True)) + " |"
        for row in frame.itertuples(index=False)
    ]
    return ["| " + " | ".join(n.replace("_", " ") for n in names) + " |", "|" + "---|" * len(names), *rows]


def write_page(
    out: Path,
    title: str,
    explained: Sequence[str],
    frame: pd.DataFrame,
    shown: Sequence[str],
    targets: Sequence[Target],
    draw: Callable[[pd.DataFrame, Any], None] | None = None,
    more: Sequence[str] = (),
) -> None:
    """table.csv, picture.svg and README.md in `out`.

    Parameters
    ----------
    out : Path
    title : str
    explained : sequence of str
        Paragraphs above the table.
    frame : DataFrame
        Everything that was measured; all of it goes to table.csv.
    shown : sequence of str
        Its columns that the page shows.
    targets : sequence of Target
    draw : callable, optional
        Draws `frame` on a matplotlib figure.
    more : sequence of str
        Paragraphs below the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "table.csv", index=False, float_format="%.6g")
    lines = [f"# {title}", "", f"Machine: {machine()}.", ""]
    for paragraph in explained:
        lines += [paragraph, ""]
    words = {True: "met", False: "**missed**", None: "not measured here"}
    if targets:
        lines += ["| target | found | |", "|---|---|---|"]
        lines += [f"| {target.wanted} | {target.found} | {words[target.met]} |" for target in targets] + [""]
    if draw is not None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 5), layout="constrained")
        draw(frame, figure)
        matplotlib.rcParams["svg.hashsalt"] = "lmms-visual-heads"
        figure.savefig(out / "picture.svg", metadata={"Date": None})
        lines += ["![](picture.svg)", ""]
    decimals = {name: _decimals(frame[name]) for name in shown if pd.api.types.is_float_dtype(frame[name])}
    lines += [*markdown(frame[list(shown)], decimals), ""]
    for paragraph in more:
        lines += [paragraph, ""]
    given = sys.argv[1:]
    for name in (
        "--out",
        "--only",
        "--keep",
        *(("--images", "--batch", "--new-tokens") if "--keep" in given else ()),
    ):  # where a copy went says nothing; what remakes the page is the whole
        if name in given:
            place = given.index(name)
            end = next((i for i, word in enumerate(given[place + 1 :], place + 1) if word.startswith("--")), len(given))
            del given[place:end]
    command = " ".join([sys.argv[0], *given])
    lines += [f"Remake: `{command}`", ""]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")
    for target in targets:
        print(f"{words[target.met].strip('*'):>18}  {target.wanted}: {target.found}", flush=True)


def _decimals(column: pd.Series) -> int:
    largest = column.abs().max()
    return 4 if largest < 1 else 3 if largest < 20 else 1


def grouped_bars(
    axes: Any, frame: pd.DataFrame, label: str, group: str, value: str, low: str | None = None, high: str | None = None
) -> None:
    """Horizontal bars of `value`, one colour per `group`, one place per `label`, with the interval as a line."""
    labels, groups = list(dict.fromkeys(frame[label])), list(dict.fromkeys(frame[group]))
    height = 0.8 / len(groups)
    for number, name in enumerate(groups):
        part = frame[frame[group] == name]
        places = [labels.index(text) + (number - (len(groups) - 1) / 2) * height for text in part[label]]
        axes.barh(places, part[value], height=height * 0.9, label=name)
        if low is not None and high is not None:
            spread = [(part[value] - part[low]).clip(lower=0), (part[high] - part[value]).clip(lower=0)]
            axes.errorbar(part[value], places, xerr=spread, fmt="none", ecolor="black", elinewidth=0.8)
        ends = part[value] if high is None else part[[value, high]].max(axis=1)
        for place, end, number in zip(places, ends, part[value], strict=True):
            offset = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
            axes.annotate(f"{number:.2f}", (end, place), **offset)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.legend(fontsize=8)
