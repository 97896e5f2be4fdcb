"""`visual-heads plan`: how many items of which benchmark to score next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmms_visual_heads.cli.printing import Format, number, print_data, print_table, say, text

if TYPE_CHECKING:
    import pandas as pd


def plan(
    predictor: Annotated[Path | None, typer.Option("--predictor", help="A predictor (see: visual-heads fit).")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores", help="Instead of a predictor: scores of reference models, a score table or a wide CSV file."
        ),
    ] = None,
    known: Annotated[
        Path | None, typer.Option("--known", help="Score table of what is known of the new model.")
    ] = None,
    heads: Annotated[
        list[Path] | None, typer.Option("--heads", help="Head tables of the new model; with --predictor.")
    ] = None,
    items: Annotated[
        list[Path] | None,
        typer.Option("--items", help="Samples files of lmms-eval: labelled items of the new model; with --heads."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Which model of --known or --heads.")] = None,
    budget: Annotated[int, typer.Option("--budget", help="Forward passes in all, one per item.", min=1)] = 512,
    batch: Annotated[int, typer.Option("--batch", help="Items that are added at once.", min=1)] = 16,
    largest: Annotated[int | None, typer.Option("--largest", help="Most items of one benchmark.", min=1)] = None,
    lineages: Annotated[
        Path | None, typer.Option("--lineages", help="CSV model,lineage: families of the models of --scores.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
) -> None:
    """Say how many items of which benchmark lower the expected error most per forward pass.

    The error is the mean absolute error in points expected over all benchmarks. Steps follow one another; the same
    benchmark may come back. With --heads everything counts that predict would use: answer and causal tables beside the head
    tables, --known and --items; and where the run wrote what an item costs, the gain is per cost.

    Examples:

        visual-heads plan --predictor my.predictor --budget 256

        visual-heads plan --predictor my.predictor --heads new_heads --known known.csv --format csv

        visual-heads plan --predictor my.predictor --heads new_heads --items logs --budget 128

        visual-heads plan --scores lvlm_scores_108x149.csv --known known.csv --budget 1000
    """
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.prediction import BenchmarkPredictor
    from lmms_visual_heads.prediction.acquisition import (
        belief_of_predictor,
        belief_of_scores,
        expected_error,
        plan_items,
        relative_cost,
    )
    from lmms_visual_heads.tables import is_wide, read_items, read_lineages, read_scores, read_wide_scores

    if (predictor is None) == (scores is None):
        raise VisualHeadsError("A plan needs one of --predictor and --scores. Name a predictor or a score table.")
    if heads and predictor is None:
        raise VisualHeadsError("--heads needs --predictor: a score table alone says nothing about heads.")
    if items and not heads:
        raise VisualHeadsError("--items needs --heads: the labels are joined to that model's answers.")
    known_scores = None if known is None else read_scores(known)
    if known_scores is not None and model is not None:
        known_scores = known_scores[known_scores["model"] == model]
        if known_scores.empty:
            raise VisualHeadsError(f"{known} has no score of {model}. Check the name, or leave out --known.")
    cost = None
    if predictor is not None:
        fitted = BenchmarkPredictor.load(predictor)
        if heads:
            from lmms_visual_heads.features.measurements import read_measurements

            measurements = read_measurements(heads)
            names = measurements.models if model is None else [model]
            if len(names) != 1 or names[0] not in measurements.models:
                listed = ", ".join(measurements.models)
                raise VisualHeadsError(f"A plan is for one model; --heads has {listed}. Choose with --model.")
            labelled = None if not items else read_items(items).frame
            belief = fitted.beliefs(measurements.only(names), known_scores=known_scores, items=labelled)[names[0]]
            told = {task: flops for (name, task), flops in measurements.item_flops.items() if name == names[0]}
            cost = relative_cost(told, belief.benchmarks)
        else:
            belief = belief_of_predictor(fitted, known_scores)
    else:
        assert scores is not None
        families = None if lineages is None else read_lineages(lineages)
        if is_wide(scores):
            table, named = read_wide_scores(scores)
            families = families or named
        else:
            table = read_scores(scores)
        belief = belief_of_scores(table, known_scores, families)
    steps = plan_items(belief, budget, batch, largest, cost)
    if form is Format.TABLE:
        _print(steps, expected_error(belief.covariance), len(belief.benchmarks))
    else:
        print_data(steps.round(4), form)


def _print(steps: pd.DataFrame, before: float, n_benchmarks: int) -> None:
    columns = (
        number("step", form="d", importance=2),
        text("benchmark"),
        number("items", form="d"),
        number("forward_passes", "passes so far", "d", importance=3),
        number("error_before", "MAE before", ".2f", importance=1),
        number("error_after", "MAE after", ".2f"),
    )
    print_table(steps, columns, "What to score next", whole="--format csv")
    last = before if steps.empty else float(steps["error_after"].iloc[-1])
    say(f"Expected MAE over {n_benchmarks} benchmarks: {before:.2f} points now, {last:.2f} after the plan.")
    say("It is an expectation of the model behind it, not a promise.")
