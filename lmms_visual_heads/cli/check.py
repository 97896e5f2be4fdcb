"""`visual-heads check`: loads a checkpoint, reads one row, proves the capture, says what it costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lmms_visual_heads.cli.printing import TreeFormat, print_table, text

NOTES = {
    "quantization": "quantisation",
    "heads_note": "layers x heads, note",
    "image_aspect_note": "images that are not square",
}
"""What the model's description adds to the table of facts, where it has it."""


def check(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: cuda where there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or auto.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    conversation: Annotated[
        str | None, typer.Option(help="Conversation template of an original checkpoint, such as v1.")
    ] = None,
    image_aspect: Annotated[
        str | None, typer.Option(help="pad or crop: what happens to an image that is not square.")
    ] = None,
    model_base: Annotated[
        str | None, typer.Option(help="Where weights, processor or tokenizer that CHECKPOINT lacks come from.")
    ] = None,
    peft: Annotated[str | None, typer.Option(help="LoRA adapter to merge: folder or hub id.")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, through bitsandbytes.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto: spread over several GPUs, instead of --device.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed pairs of runs, capture on and off.")] = 7,
    form: Annotated[TreeFormat, typer.Option("--format", help="How to print.")] = TreeFormat.TABLE,
) -> None:
    """Load CHECKPOINT, read one row, prove the capture, say what it costs. Exit code 1 when a proof fails.

    Examples:

        visual-heads check llava-hf/llava-1.5-7b-hf

        visual-heads check ./my-checkpoint --device cpu --dtype float32

        visual-heads check llava-hf/llava-1.5-7b-hf --image-aspect pad --quantization 4bit
    """
    from lmms_visual_heads.capture.selfcheck import self_check
    from lmms_visual_heads.checkpoints.loading import load_model

    model = load_model(
        checkpoint,
        device=device,
        dtype=dtype,
        revision=revision,
        conversation=conversation,
        image_aspect=image_aspect,
        model_base=model_base,
        peft=peft,
        quantization=quantization,
        device_map=device_map,
    )
    result = self_check(model, repeats=repeats)
    if form is TreeFormat.JSON:
        import json

        findings = [{"proof": f.proof, "holds": f.holds, "detail": f.detail} for f in result.findings]
        typer.echo(json.dumps({"model": model.description, "findings": findings, "facts": result.facts}, indent=2))
    else:
        _print(model.name, result.findings, result.facts, model.description)
    if not result.passed:
        raise typer.Exit(1)


def _print(name: str, findings: tuple[Any, ...], facts: dict[str, Any], description: dict[str, Any]) -> None:
    words = {True: "holds", False: "FAILS", None: "skipped"}
    proofs = [{"proof": f.proof, "result": words[f.holds], "with": f.detail} for f in findings]
    print_table(proofs, (text("proof", wraps=True), text("result"), text("with", wraps=True)), f"Capture on {name}")
    measured = {
        "layers x heads": f"{facts['layers']} x {facts['heads']}",
        "dtype, device": f"{facts['dtype']}, {facts['device']}",
        "tokens": f"{facts['prompt_tokens']} in the prompt, {facts['visual_tokens']} visual, {facts['patch_tokens']} with a "
        "patch",
        "largest image attention": f"{facts['largest_image_attention']:.3f} (layer "
        f"{facts['largest_image_attention_layer']}, head {facts['largest_image_attention_head']})",
        "cost of capture": f"{facts['cost_ratio']:.3f} times capture off (middle half {facts['cost_ratio_low']:.3f} to "
        f"{facts['cost_ratio_high']:.3f}), {facts['repeats']} pairs of prefill + 2 tokens, "
        f"{facts['seconds_capture_off']:.3f} s off",
        **{title: str(description[entry]) for entry, title in NOTES.items() if description.get(entry)},
    }
    rows = [{"fact": fact, "value": value} for fact, value in measured.items()]
    print_table(rows, (text("fact", wraps=True), text("value", wraps=True)), "What was measured")
