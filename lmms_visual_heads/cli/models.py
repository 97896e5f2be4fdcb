"""`visual-heads models`: the models of the study, what is known of them, and their published scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmms_visual_heads.cli.printing import Format, PrintedColumn, Row, print_data, print_table, say, text


def models(
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
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
    if form is Format.TABLE:
        _print(entries)
        return
    import pandas as pd

    print_data(pd.DataFrame(entries, dtype=object), form)


def _print(entries: list[dict[str, Any]]) -> None:
    def layers_x_heads(entry: Row) -> str:
        theirs = entry["study_layers_x_heads"]
        return f"{entry['layers_x_heads']}" + (f" (study: {theirs})" if theirs != entry["layers_x_heads"] else "")

    columns = (
        text("model"),
        text("family", importance=3),
        PrintedColumn("layers x heads", layers_x_heads, wraps=True),
        text("resolution", importance=4),
        PrintedColumn("training", lambda entry: entry["training_strategy"].split(";")[0].split(",")[0], 6, wraps=True),
        text("visual_tokens", "visual tokens", importance=2),
        text("original_repository", "original repository", importance=5),
        text("huggingface_repository", "Hugging Face repository", importance=1),
    )
    print_table(entries, columns, "Models of the study", whole="--format csv")
    for entry in entries:
        if entry["twin"]:
            say(f"{entry['model']}: named in the study's {entry['named_in']}; its twin is {entry['twin']}.")
