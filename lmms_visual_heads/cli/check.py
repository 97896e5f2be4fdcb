"""`visual-heads check`: loads a checkpoint, reads one row, proves the capture, says what it costs."""

from __future__ import annotations

from typing import Annotated

import typer

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
    output_format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Load CHECKPOINT, read one row, prove the capture, say what it costs. Exit code 1 when a proof fails.

    Examples:

        visual-heads check llava-hf/llava-1.5-7b-hf

        visual-heads check ./my-checkpoint --device cpu --dtype float32

        visual-heads check llava-hf/llava-1.5-7b-hf --image-aspect pad --quantization 4bit
    """
    from lmms_visual_heads.errors import VisualHeadsError

    if output_format not in ("table", "json"):
        raise VisualHeadsError(f"--format must be table or json; got {output_format!r}. Choose one of them.")

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
    if output_format == "json":
        import json

        findings = [{"proof": f.proof, "holds": f.holds, "detail": f.detail} for f in result.findings]
        typer.echo(json.dumps({"model": model.description, "findings": findings, "facts": result.facts}, indent=2))
    else:
        _print_table(model.name, result.findings, result.facts, model.description)
    if not result.passed:
        raise typer.Exit(1)


def _print_table(name: str, findings: tuple, facts: dict, description: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    words = {True: "[green]holds[/green]", False: "[red]FAILS[/red]", None: "[yellow]skipped[/yellow]"}
    proofs = Table("proof", "", "with", title=f"Capture on {name}")
    for finding in findings:
        proofs.add_row(finding.proof, words[finding.holds], finding.detail)
    measured = Table("fact", "value", title="What was measured")
    measured.add_row("layers x heads", f"{facts['layers']} x {facts['heads']}")
    measured.add_row("dtype, device", f"{facts['dtype']}, {facts['device']}")
    measured.add_row(
        "tokens",
        f"{facts['prompt_tokens']} in the prompt, {facts['visual_tokens']} visual, {facts['patch_tokens']} with a patch",
    )
    measured.add_row(
        "largest image attention",
        f"{facts['largest_image_attention']:.3f} (layer {facts['largest_image_attention_layer']}, "
        f"head {facts['largest_image_attention_head']})",
    )
    measured.add_row(
        "cost of capture",
        f"{facts['cost_ratio']:.3f} times capture off (middle half {facts['cost_ratio_low']:.3f} to "
        f"{facts['cost_ratio_high']:.3f}), "
        f"{facts['repeats']} pairs of prefill + 2 tokens, {facts['seconds_capture_off']:.3f} s off",
    )
    for name, words_for in NOTES.items():
        if description.get(name):
            measured.add_row(words_for, str(description[name]))
    console = Console()
    console.print(proofs)
    console.print(measured)
