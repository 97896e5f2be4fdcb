"""`python -m lab real-models`: public answers of real models, imported, and predictions judged on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder with the three public files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the tables.")] = Path("reports/real_models/tables"),
) -> None:
    """Write the public records as tables of the product's own formats.

    Example:

        python -m lab real-models import ../shared/data/real_models --out reports/real_models/tables
    """
    from lab.real_models.tables import import_tables

    for path in import_tables(source, out):
        typer.echo(f"{path}: {path.stat().st_size} bytes")


@app.callback()
def real_models() -> None:
    """Public answers of real models: import them, judge predictions on them."""
