"""What reading the heads costs: `generate` with capture off, with ours, and with eager full maps, side by side.

Random weights, no lmms-eval, no checkpoint. Runs are interleaved; figures are medians over the repeats with their middle half,
ratios are of runs that stood next to each other. Absolute seconds mean something on a GPU only. Writes table.csv and README.md.

    python benchmarks/capture_cost.py                                                       # small, on the CPU, a few minutes
    python benchmarks/capture_cost.py --shape llava-1.5-7b --device cuda --dtype bfloat16 --out reports/capture_cost_gpu
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.generation import generate_with_rows
from lmms_visual_heads.statistics.heads import head_statistics

TOKENS_PER_IMAGE = 576
N_TEXT_TOKENS = 60


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model and its vision tower."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    tower: tuple[int, int]


SHAPES = {
    "small": Shape(8, 512, 8, 8, 1376, 1000, (64, 2)),
    "llava-1.5-7b": Shape(32, 4096, 32, 32, 11008, 32064, (1024, 24)),
    "llava-1.5-13b": Shape(40, 5120, 40, 40, 13824, 32064, (1024, 24)),
    "llava-1.6-mistral-7b": Shape(32, 4096, 32, 8, 14336, 32064, (1024, 24)),
    "llava-1.6-vicuna-13b": Shape(40, 5120, 40, 40, 13824, 32064, (1024, 24)),
}


def build(shape: Shape, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights; 24 x 24 patches an image."""
    torch.manual_seed(0)
    width, depth = shape.tower
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth, num_attention_heads=max(1, width // 64),
            image_size=336, patch_size=14, projection_dim=width,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=8192,
        ),
        image_token_index=shape.vocabulary - 1, vision_feature_layer=-1,
    )  # fmt: skip
    with torch.device(device):
        model = LlavaForConditionalGeneration(config).to(dtype)
    model.generation_config.eos_token_id = None
    return model.eval()


def inputs(model: LlavaForConditionalGeneration, n_images: int, batch: int) -> dict[str, torch.Tensor]:
    """Prompts with `n_images` images each; every image is 576 visual tokens, so five make the 2,880 of a full anyres prompt."""
    generator = torch.Generator().manual_seed(1)
    image_token = model.config.image_token_id
    text = torch.randint(3, image_token - 1, (batch, N_TEXT_TOKENS), generator=generator)
    visual = torch.full((batch, n_images * TOKENS_PER_IMAGE), image_token)
    ids = torch.cat([text[:, :10], visual, text[:, 10:]], dim=1).to(model.device)
    pixels = torch.randn(batch * n_images, 3, 336, 336, generator=generator).to(model.device, model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def methods(
    model: LlavaForConditionalGeneration, given: dict[str, torch.Tensor], new_tokens: int
) -> dict[str, Callable[[], Any]]:
    """The three ways, as functions without arguments; `ours` reads the rows of the first generated token and their statistics."""
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    visual = (given["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]

    def off() -> Any:
        return generate_with_rows(model, given, None, settings).tokens

    def ours() -> Any:
        captured = generate_with_rows(model, given, "first_generated", settings)
        assert captured.rows is not None
        for one in range(captured.rows.shape[1]):
            numbers = head_statistics(captured.rows[:, one], visual, visual, torch.tensor([0]))
            torch.stack(list(numbers.values())).cpu()
        return captured.tokens

    def eager() -> Any:
        model.set_attn_implementation({"text_config": "eager"})
        try:
            output = model.generate(**given, **settings, output_attentions=True, return_dict_in_generate=True)
            _ = [layer[:, :, -1].float() for layer in output.attentions[min(1, new_tokens - 1)]]
            return output.sequences[:, given["input_ids"].shape[1] :]
        finally:
            attach(model)

    return {"off": off, "ours": ours, "eager": eager}


def timed(run: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Seconds, peak GPU memory beside the model in MiB (NaN on a CPU), and what the run returned."""
    before = 0
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    with torch.inference_mode():
        result = run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20, result
    return time.perf_counter() - start, float("nan"), result


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per (visual tokens, batch, new tokens, method)."""
    model = build(SHAPES[arguments.shape], arguments.device, getattr(torch, arguments.dtype))
    attach(model)
    rows = []
    for n_images in arguments.images:
        for batch in arguments.batch:
            given = inputs(model, n_images, batch)
            ways = methods(model, given, arguments.new_tokens)
            if arguments.no_eager:
                del ways["eager"]
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            peaks: dict[str, list[float]] = {name: [] for name in ways}
            answers = {name: timed(run, arguments.device)[2] for name, run in ways.items()}  # warm-up
            for _ in range(arguments.repeats):
                for name, run in ways.items():
                    took, peak, _ = timed(run, arguments.device)
                    seconds[name].append(took)
                    peaks[name].append(peak)
            for name in ways:
                ratios = pd.Series(seconds[name]) / pd.Series(seconds["off"])
                rows.append(
                    {
                        "shape": arguments.shape,
                        "visual_tokens": n_images * TOKENS_PER_IMAGE,
                        "batch": batch,
                        "new_tokens": arguments.new_tokens,
                        "method": name,
                        "seconds": pd.Series(seconds[name]).median(),
                        "ratio": ratios.median(),
                        "ratio_low": ratios.quantile(0.25),
                        "ratio_high": ratios.quantile(0.75),
                        "peak_mib": pd.Series(peaks[name]).median(),
                        "same_answer": bool(torch.equal(answers[name], answers["off"])),
                        "repeats": arguments.repeats,
                    }
                )
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, arguments: argparse.Namespace) -> None:
    """table.csv and README.md in the output folder."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(out / "table.csv", index=False)
    on_gpu = arguments.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    lines = [
        "# What reading the heads costs",
        "",
        f"Machine: {machine}; torch {torch.__version__}, transformers {transformers.__version__}.",
        f"Shape `{arguments.shape}`, {arguments.dtype}, random weights. Interleaved runs, medians of {arguments.repeats},",
        "middle half in brackets.",
        "`off`: SDPA, no rows. `ours`: the row of the first generated token and its statistics. `eager`: full attention maps by",
        "`output_attentions=True`, as tools that capture attention do it.",
        "",
        "| visual tokens | batch | new tokens | method | time against off | same answer |"
        + (" peak MiB |" if on_gpu else ""),
        "|---|---|---|---|---|---|" + ("---|" if on_gpu else ""),
    ]
    for row in table.to_dict("records"):
        memory = f" {row['peak_mib']:.0f} |" if on_gpu else ""
        lines.append(
            f"| {row['visual_tokens']} | {row['batch']} | {row['new_tokens']} | {row['method']} | {row['ratio']:.3f} "
            f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}] | {'yes' if row['same_answer'] else 'no'} |{memory}"
        )
    command = (
        f"python benchmarks/capture_cost.py --shape {arguments.shape} --device {arguments.device} --dtype {arguments.dtype} "
        f"--images {' '.join(map(str, arguments.images))} --batch {' '.join(map(str, arguments.batch))} "
        f"--new-tokens {arguments.new_tokens} --repeats {arguments.repeats} --out {arguments.out}"
    )
    (out / "README.md").write_text("\n".join([*lines, "", f"Remake: `{command}`", ""]))


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5], help="images of 576 visual tokens per prompt")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--new-tokens", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--out", default="reports/capture_cost")
    arguments = parser.parse_args()
    write(measure(arguments), arguments)


if __name__ == "__main__":
    main()
