"""Capture proves itself on one drawn image: sums, eager attention, influence on the logits, equal answers, cost.

Runs any object with the interface of `SelfCheckable`; about a minute for a 7B model on a GPU. Times in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import AttentionInterface

from lmms_visual_heads.capture.attention import ATTENTION_NAME, attach, last_query_row, visual_heads_attention
from lmms_visual_heads.capture.forced import forced_generation
from lmms_visual_heads.capture.generation import generate_with_rows, rows_of_pass
from lmms_visual_heads.capture.late import LateRow, scores_together
from lmms_visual_heads.capture.layers import steps_from_cache
from lmms_visual_heads.schema import QUERIES

QUESTION = "How many shapes are there in this image? Answer with a number."
SUM_TOLERANCE = 1e-4
EAGER_TOLERANCE = 1e-4
"""Looser than one row's own error: over many layers the two implementations' hidden states drift apart, too."""
TOGETHER_TOLERANCE = 1e-5
"""Both take products and sums in float32, in different orders."""
EAGER_BYTES = 4 * 2**30
"""Full maps of all layers may take this much memory; larger models skip the comparison."""

TIMED_SECONDS = 1.0
MOST_REPEATS = 51


class SelfCheckable(Protocol):
    """What the self-check needs of a model."""

    model: Any
    n_layers: int
    n_heads: int

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def encode(self, text: str, images: Sequence[Image.Image]) -> Any: ...
    def move(self, inputs: Any) -> dict[str, Tensor]: ...
    def generation_settings(self, wanted: Any) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One proof: True holds, False fails, None was skipped; `detail` says with which numbers, or why."""

    proof: str
    holds: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """All findings, and facts (JSON-able) about the model and the cost.

    `cost_ratio` is the median over pairs of runs of time with capture / time without; `_low` and `_high` bound the
    middle half of the pairs.
    """

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether no proof failed."""
        return all(finding.holds is not False for finding in self.findings)


def drawn_image(size: int = 336) -> Image.Image:
    """Three shapes on a plain ground; the same picture everywhere."""
    image = Image.new("RGB", (size, size), (235, 235, 225))
    draw = ImageDraw.Draw(image)
    unit = size // 12
    draw.rectangle((unit, unit, 4 * unit, 4 * unit), fill=(200, 40, 40))
    draw.ellipse((6 * unit, 2 * unit, 10 * unit, 6 * unit), fill=(40, 80, 200))
    draw.polygon([(3 * unit, 11 * unit), (5 * unit, 7 * unit), (7 * unit, 11 * unit)], fill=(40, 150, 60))
    return image


def self_check(model: SelfCheckable, repeats: int = 7, image: Image.Image | None = None) -> SelfCheck:
    """Prove that rows are right and harmless, and measure what they cost.

    Parameters
    ----------
    model : SelfCheckable
        A VisualModel.
    repeats : int
        Pairs of timed runs, off and on in turn; a fast model is timed more often.
    image : PIL image or None
        None: `drawn_image()`.

    Returns
    -------
    SelfCheck
    """
    encoded = model.encode(QUESTION, [drawn_image() if image is None else image])
    inputs = model.move(encoded.inputs)
    settings = model.generation_settings({"max_new_tokens": 2})
    captured = {query: generate_with_rows(model.model, inputs, query, settings) for query in (*QUERIES, None)}
    rows = captured[QUERIES[0]].rows
    if rows is None:
        raise AssertionError("a query was given, so rows were read")
    tokens = captured[None].tokens
    findings = (
        _sums(rows),
        *((_together(model, rows.shape[-1]),) if model.device.type == "cuda" else ()),
        _eager(model, inputs, tokens[:, :1], rows),
        _influence(model, inputs, captured[None].first_logits),
        _equal_answers(tokens, {query: captured[query].tokens for query in QUERIES}),
    )
    off, on = _times(
        lambda query: generate_with_rows(model.model, inputs, query, settings), repeats, model.device.type == "cuda"
    )
    attention = rows[:, 0][..., encoded.visual_positions.to(rows.device)].sum(-1).nan_to_num(-1.0)
    largest = int(attention.argmax())
    ratios = sorted(a / b for a, b in zip(on, off, strict=True))
    facts = {
        "layers": model.n_layers,
        "heads": model.n_heads,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "prompt_tokens": len(encoded),
        "visual_tokens": len(encoded.visual_positions),
        "patch_tokens": len(encoded.patch_positions),
        "largest_image_attention": float(attention.max()),
        "largest_image_attention_layer": largest // model.n_heads,
        "largest_image_attention_head": largest % model.n_heads,
        "seconds_capture_off": median(off),
        "seconds_capture_on": median(on),
        "cost_ratio": median(ratios),
        "cost_ratio_low": ratios[len(ratios) // 4],
        "cost_ratio_high": ratios[-1 - len(ratios) // 4],
        "repeats": len(ratios),
    }
    return SelfCheck(findings, facts)


def _sums(rows: Tensor) -> Finding:
    read = rows[~rows.isnan().flatten(1).all(1)]  # layers without attention have no row
    off_by = float((read.sum(-1) - 1).abs().max()) if len(read) else float("nan")
    holds = off_by <= SUM_TOLERANCE
    return Finding("every row sums to 1", holds, f"{read.shape[0] * read.shape[2]} heads, off by at most {off_by:.1e}")


@torch.inference_mode()
def _together(model: SelfCheckable, n_keys: int) -> Finding:
    """The one kernel for all layers of a decode step against layer by layer, on drawn tensors of the model's shapes and dtype."""
    proof = "rows of all layers at once equal rows one by one"
    config = model.model.config.get_text_config(decoder=True)
    n_key_heads = getattr(config, "num_key_value_heads", None) or model.n_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int, length: int) -> Tensor:
        return torch.randn(1, heads, length, width, generator=generator).to(model.device, model.dtype)

    late = [LateRow(drawn(model.n_heads, 1), drawn(n_key_heads, n_keys), width**-0.5) for _ in range(2)]
    scores = scores_together(late)
    if scores is None:
        return Finding(proof, None, "skipped: there is no such kernel here, rows are read layer by layer")
    one_by_one = torch.stack([last_query_row(row.query, row.key, None, row.scaling) for row in late])
    off_by = float((scores.softmax(-1) - one_by_one).abs().max())
    return Finding(proof, off_by <= TOGETHER_TOLERANCE, f"off by at most {off_by:.1e}")


@torch.inference_mode()
def _eager(model: SelfCheckable, inputs: dict[str, Tensor], token: Tensor, rows: Tensor) -> Finding:
    """Rows of the first generated token against transformers' eager attention, which builds full maps."""
    proof = "rows equal eager attention"
    ids = torch.cat([inputs["input_ids"], token], dim=1)
    if model.dtype != torch.float32:
        return Finding(proof, None, f"skipped: eager attention rounds its maps to {model.dtype}; use dtype=float32")
    if getattr(model.model, "is_loaded_in_8bit", False):
        return Finding(proof, None, "skipped: 8-bit layers round a token by the tokens beside it, which differ here")
    needed = model.n_layers * model.n_heads * ids.shape[1] ** 2 * 4
    if needed > EAGER_BYTES:
        return Finding(proof, None, f"skipped: full maps would take {needed / 2**30:.1f} GiB")
    text_config = model.model.config.get_text_config(decoder=True)
    part = next((n for n in model.model.config.sub_configs if getattr(model.model.config, n) is text_config), None)
    model.model.set_attn_implementation({part: "eager"} if part else "eager")
    try:
        if steps_from_cache(model.model):
            maps = model.model(
                **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)},
                output_attentions=True,
                use_cache=False,
                logits_to_keep=1,
            ).attentions
        else:
            maps = forced_generation(model.model, inputs, token, 1, 0).attentions or ()
    finally:
        attach(model.model)
    last = rows_of_pass(
        model.model, tuple(full[:, :, -1:].float() for full in maps), len(inputs["input_ids"][0]), QUERIES[0]
    )
    if last is None:
        raise AssertionError("a query was given, so rows were read")
    off_by = float((last - rows).nan_to_num(0.0).abs().max())
    return Finding(proof, off_by <= EAGER_TOLERANCE, f"off by at most {off_by:.1e}")


def _influence(model: SelfCheckable, inputs: dict[str, Tensor], logits: Tensor) -> Finding:
    """Even attention put behind our name must change the logits: then it is our function that the model calls."""

    def even_attention(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        return visual_heads_attention(module, torch.zeros_like(query), *args, **kwargs)

    AttentionInterface.register(ATTENTION_NAME, even_attention)
    try:
        with torch.inference_mode():
            changed = model.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
    finally:
        AttentionInterface.register(ATTENTION_NAME, visual_heads_attention)
    difference = float((changed - logits).abs().max())
    return Finding("changing the attention changes the logits", difference > 1e-3, f"by up to {difference:.2g}")


def _equal_answers(off: Tensor, on: dict[str, Tensor]) -> Finding:
    different = [query for query, tokens in on.items() if not torch.equal(off, tokens)]
    detail = f"different with {', '.join(different)}" if different else f"both queries, {off.shape[1]} tokens"
    return Finding("answers with capture on equal answers with capture off", not different, detail)


def _times(run: Callable[[str | None], Any], repeats: int, on_gpu: bool) -> tuple[list[float], list[float]]:
    """Seconds of runs with capture off and on, in turn, so that a drift of the machine hits both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    while len(seconds[0]) < repeats or (sum(seconds[0]) < TIMED_SECONDS and len(seconds[0]) < MOST_REPEATS):
        for which, query in enumerate((None, QUERIES[0])):
            start = time.perf_counter()
            run(query)
            if on_gpu:
                torch.cuda.synchronize()
            seconds[which].append(time.perf_counter() - start)
    return seconds
