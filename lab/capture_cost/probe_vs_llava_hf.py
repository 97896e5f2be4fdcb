"""The probe through lmms-eval: `visual_heads_llava` (heads read) against lmms-eval's own `llava_hf` (no heads), same checkpoint.

Two worker processes, one per model, take turns on one machine; each measured turn is a whole lmms-eval evaluation of the same
documents with a freshly loaded model. Importing, loading and answering are timed apart. Writes table.csv, picture.svg, README.md.

    python -m lab probe-vs-llava-hf            # about six minutes on two cores
    python -m lab probe-vs-llava-hf --quick    # to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
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
TARGET = 2.2
DEMO = ROOT / "lmms_visual_heads" / "demo" / "checkpoints" / "w96-d2-t16-s4000"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite "
    "answers to the user's questions. USER: "
)


def checkpoint(folder: Path, quick: bool) -> Path:
    """A random LLaVA that is large enough for the model's time to be most of the run's: 336 pixels, 576 visual tokens."""
    from tests.builders.tiny import tiny_checkpoint

    sizes = {"hidden_size": 64, "num_hidden_layers": 2} if quick else {"hidden_size": 512, "num_hidden_layers": 4}
    template = (
        VICUNA + "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] if c['type']=='image' %}<image>\n{% endfor %}"
        "{% for c in m['content'] if c['type']=='text' %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %} ASSISTANT:"
    )
    text: dict[str, Any] = {**sizes, "intermediate_size": 3 * sizes["hidden_size"]}
    return tiny_checkpoint(
        "llava-llama",
        folder,
        image_size=336,
        patch_size=14,
        chat_template=template,
        initializer_range=0.05,
        num_attention_heads=8,
        num_key_value_heads=8,
        **text,
    )


def worker(name: str) -> None:
    """Answers one line of JSON per request on standard output; a request is one evaluation."""
    started = time.perf_counter()
    import types

    import torch

    if name == "llava_hf":
        # llava_hf imports decord for videos, which is not installed and not used here.
        decord = types.ModuleType("decord")
        decord.VideoReader = decord.cpu = None  # type: ignore[attr-defined]
        decord.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("decord", None)
        sys.modules["decord"] = decord
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    from lmms_visual_heads.probe import documents  # noqa: F401

    if name == "llava_hf":
        from lmms_eval.models.simple.llava_hf import LlavaHf as Model
    else:
        from lmms_visual_heads.harness.model import VisualHeadsLlava as Model
    manager = TaskManager("ERROR", include_path=str(ROOT / "tasks"), include_defaults=False)
    print(MARK + json.dumps({"import_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        model = Model(**request["arguments"])
        loaded = time.perf_counter()
        inside: list[float] = []
        answer = model.generate_until

        def timed(requests: Any, answer: Any = answer, inside: list[float] = inside) -> Any:
            begin = time.perf_counter()
            result = answer(requests)
            inside.append(time.perf_counter() - begin)
            return result

        model.generate_until = timed
        results = evaluator.simple_evaluate(
            model=model, tasks=request["tasks"], task_manager=manager, limit=request["limit"], bootstrap_iters=0,
            log_samples=True, verbosity="ERROR", gen_kwargs=request["gen_kwargs"],
        )  # fmt: skip
        ended = time.perf_counter()
        said = {
            f"{task} {sample['doc_id']}": str(
                sample["resps"][0][0] if isinstance(sample["resps"][0], list) else sample["resps"][0]
            )
            for task, samples in results["samples"].items()
            for sample in samples
        }
        numbers = {"load": loaded - start, "answer": sum(inside), "rest": ended - loaded - sum(inside)}
        print(MARK + json.dumps({**numbers, "answers": said, "torch_threads": torch.get_num_threads()}), flush=True)
        del model, results


class Worker:
    """One worker process."""

    def __init__(self, name: str, log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lab.capture_cost.probe_vs_llava_hf", "--worker", name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.import_seconds = self._reply()["import_seconds"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one evaluation."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._log.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self._log.flush()
        raise RuntimeError("the worker ended: " + Path(self._log.name).read_text()[-2000:])


def measure(arguments: argparse.Namespace) -> Any:
    """One row per (checkpoint, model)."""
    import pandas as pd

    from lab.capture_cost.timing import middle_half, ratio_interval

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workers = {name: Worker(name, folder / f"{name}.log") for name in ("visual_heads_llava", "llava_hf")}
        asked = {
            "random, 576 visual tokens": (
                checkpoint(folder / "random", arguments.quick),
                arguments.limit,
                "max_new_tokens=2",
            ),
            f"demo ({DEMO.name})": (DEMO, arguments.demo_limit, None),
        }
        for label, (path, limit, gen_kwargs) in asked.items():
            common = {"tasks": arguments.tasks, "limit": limit, "gen_kwargs": gen_kwargs}
            both = {"pretrained": str(path), "device": "cpu", "dtype": "float32"}
            given: dict[str, dict[str, Any]] = {
                "llava_hf": both | {"device_map": "cpu", "batch_size": 1},
                "visual_heads_llava": both | {"batch_size": arguments.batch_size},
            }
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
            for turn in range(arguments.repeats + 1):  # the first turn warms up
                names = list(workers) if turn % 2 else list(workers)[::-1]
                for name in names:
                    more = {"heads": str(folder / f"heads-{turn}-{label[:4]}")} if name != "llava_hf" else {}
                    reply = workers[name].ask({**common, "arguments": given[name] | more})
                    print(label, name, {k: round(reply[k], 2) for k in ("load", "answer", "rest")}, flush=True)
                    if turn:
                        found[name].append(reply)
            answers = {name: replies[0]["answers"] for name, replies in found.items()}
            same = sum(answers["llava_hf"][key] == text for key, text in answers["visual_heads_llava"].items())
            empty = {name: sum(not text for text in one.values()) for name, one in answers.items()}
            for name, replies in found.items():
                seconds = [reply["answer"] for reply in replies]
                theirs_seconds = [reply["answer"] for reply in found["llava_hf"]]
                ratio, low, high = ratio_interval(theirs_seconds, seconds)
                quarter, three_quarters = middle_half(seconds)
                rows.append(
                    {
                        "checkpoint": label,
                        "model": name,
                        "batch_size": given[name]["batch_size"],
                        "documents": len(answers[name]),
                        "answer_seconds": median(seconds),
                        "answer_low": quarter,
                        "answer_high": three_quarters,
                        "times_faster": ratio,
                        "low": low,
                        "high": high,
                        "load_seconds": median(reply["load"] for reply in replies),
                        "rest_seconds": median(reply["rest"] for reply in replies),
                        "import_seconds": workers[name].import_seconds,
                        "equal_answers": f"{same} of {len(answers[name])}",
                        "empty_answers": empty[name],
                        "repeats": len(replies),
                    }
                )
        for one in workers.values():
            one.close()
    return pd.DataFrame(rows)


def draw(frame: Any, figure: Any) -> None:
    """Seconds in `generate_until`, one panel per checkpoint."""
    from lab.capture_cost.timing import grouped_bars

    labels = list(dict.fromkeys(frame["checkpoint"]))
    for label, axes in zip(labels, figure.subplots(1, len(labels)), strict=True):
        part = frame[frame["checkpoint"] == label].assign(all="")
        grouped_bars(axes, part, "all", "model", "answer_seconds", "answer_low", "answer_high")
        axes.set_title(f"{label}: {part['documents'].iloc[0]} questions", fontsize=10)
        axes.set_xlabel("seconds in generate_until")


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["vhead_general", "vhead_obj", "vhead_super"])
    parser.add_argument("--limit", type=int, default=16, help="documents of each task, random checkpoint")
    parser.add_argument("--demo-limit", type=int, default=64, help="documents of each task, demo checkpoint")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default=str(ROOT / "reports" / "capture_cost" / "probe_vs_llava_hf"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    if arguments.quick:
        arguments.limit = arguments.demo_limit = 2
        arguments.repeats = min(arguments.repeats, 2)
    from lab.capture_cost.timing import Target, write_page

    frame = measure(arguments)
    ours = frame[frame["model"] == "visual_heads_llava"]
    targets = [
        Target(
            f"at least {TARGET} times faster than llava_hf, {row['checkpoint']}",
            f"{row['times_faster']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            bool(row["times_faster"] >= TARGET),
        )
        for row in ours.to_dict("records")
    ]
    write_page(
        Path(arguments.out),
        "The probe through lmms-eval: visual_heads_llava against llava_hf",
        [
            "Both models answer the same documents of the same tasks of the same checkpoint in float32 on the CPU, "
            "each in its own process, in turn; "
            f"medians of {arguments.repeats} evaluations after one that warms up. `visual_heads_llava` reads the "
            "heads of every document and writes "
            "its tables; `llava_hf` reads nothing and takes batch size 1 only. `times faster` compares the time "
            "inside `generate_until`, with the "
            "95 % bootstrap interval of the median of paired ratios; loading the model, importing lmms-eval and "
            "everything else that lmms-eval "
            "does (building tasks, scoring; for ours the tables' last step too) stand apart.",
            "The random checkpoint (4 layers, 512 wide, 576 visual tokens) answers with two tokens (`gen_kwargs`), "
            "as a count does; the demo's "
            "checkpoint answers as it learnt to. What `llava_hf` needed: a stand-in for the package `decord`, which "
            "it imports for videos; "
            "`device=cpu,device_map=cpu`, without which transformers refuses its empty device map; chat templates "
            "that take a message as one string "
            "too (both checkpoints have such a one), so that the prompts are equal. It turns an error during "
            "generation into an empty answer: `empty answers` counts them, and "
            "`equal answers` says how many answers are those of ours (its image processor may differ from ours by a "
            "grey level).",
        ],
        frame,
        ("checkpoint", "model", "batch_size", "documents", "answer_seconds", "times_faster", "low", "high", "load_seconds",
         "import_seconds", "rest_seconds", "equal_answers", "empty_answers"),
        targets,
        draw,
    )  # fmt: skip


if __name__ == "__main__":
    main()
