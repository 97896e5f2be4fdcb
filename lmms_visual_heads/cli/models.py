"""`visual-heads models`: the models of the study, what is known of them, and their published scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TABLE = (
    "model",
    "family",
    "layers_x_heads",
    "resolution",
    "training_strategy",
    "visual_tokens",
    "original_repository",
    "huggingface_repository",
)


def models(
    output_format: Annotated[str, typer.Option("--format", help="table, csv or json (a list).")] = "table",
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="OUT", help="Write their published scores as a score table (CSV)."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Scores from this document only (part of its name).")
    ] = None,
    mix_sources: Annotated[
        bool,
        typer.Option(
            "--mix-sources",
            help="Allow several documents per benchmark; official tables disagree by more than a point.",
        ),
    ] = False,
    names: Annotated[
        str,
        typer.Option("--names", help="Repositories that name the models in the score table: original or huggingface."),
    ] = "original",
) -> None:
    """List the models of the study: family, layers x heads, resolution, training, visual tokens, repositories.

    Layers x heads are those of the checkpoints' configs; where the study says something else, that is shown too. The
    study means two different models by its Phi-3 and its Llama-3 entry; both twins are listed.

    Examples:

        visual-heads models

        visual-heads models --format json

        visual-heads models --scores published.csv --source ViP-LLaVA@77079b1
    """
    from lmms_visual_heads.checkpoints.known_models import known_models, published_scores, score_sources
    from lmms_visual_heads.errors import VisualHeadsError

    if output_format not in ("table", "csv", "json"):
        raise VisualHeadsError(f"--format must be table, csv or json; got {output_format!r}. Choose one of them.")
    if scores is not None:
        import pandas as pd

        from lmms_visual_heads.tables import write_scores

        table = pd.DataFrame(published_scores(source=source, mix_sources=mix_sources, names=names))
        write_scores(table, scores)
        used = table["source"].nunique()
        typer.echo(
            f"{len(table)} published scores of {table['model'].nunique()} models on {table['benchmark'].nunique()} "
            f"benchmarks from {used} tables: {scores}"
        )
        return
    if source is not None or mix_sources:
        documents = "; ".join(f"{name} ({number} scores)" for name, number in score_sources().items())
        raise VisualHeadsError(
            f"--source and --mix-sources belong to --scores OUT, which is missing. Documents with scores: {documents}."
        )
    entries = [model.as_dict() for model in known_models()]
    if output_format == "json":
        import json

        typer.echo(json.dumps(entries, indent=2))
    elif output_format == "csv":
        import csv
        import io

        written = io.StringIO()
        writer = csv.DictWriter(written, list(entries[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**entry, "sources": "; ".join(entry["sources"])} for entry in entries)
        typer.echo(written.getvalue(), nl=False)
    else:
        _print_table(entries)


def _print_table(entries: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Models of the study", title_justify="left", show_lines=False)
    for name in _TABLE:
        table.add_column(name.replace("_", " "), overflow="fold")
    notes = []
    for entry in entries:
        cells = {name: str(entry[name] or "-") for name in _TABLE}
        cells["training_strategy"] = cells["training_strategy"].split(";")[0].split(",")[0]
        if entry["study_layers_x_heads"] != entry["layers_x_heads"]:
            cells["layers_x_heads"] += f" (study: {entry['study_layers_x_heads']})"
        table.add_row(*cells.values())
        if entry["twin"]:
            notes.append(f"{entry['model']}: named in the study's {entry['named_in']}; its twin is {entry['twin']}.")
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)
