"""The joint model on a real score matrix: how well k known scores of a new model predict the others. No torch.

Four columns: known scores at random; none from the target's own benchmark (siblings hidden); the model's whole family left
out of the fit; both. Settings and calibration are chosen inside the training part. Writes table.csv, picture.png, README.md.

    python -m lab score-matrix lvlm_scores_108x149.csv --nine nine_models.csv --out reports/prediction/matrix
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import clone
from sklearn.linear_model import RidgeCV

from lab.score_matrix.nine_models import words as nine_words
from lmms_visual_heads.prediction.score_mixture import KNOWN_COUNTS, JointScores
from lmms_visual_heads.tables import parent_benchmark, read_wide_scores

Array = npt.NDArray[np.float64]

COLUMNS = ("random", "siblings hidden", "family out", "both")
TARGETS = dict(zip(COLUMNS, ((11.3, 7.9, 5.7), (12.2, 9.1, 7.1), (13.6, 10.4, 8.6), (14.5, 12.2, 11.2)), strict=True))
TARGET_COUNTS = (1, 5, 20)
PUBLISHED = {0.2: 5.1, 0.8: 8.1}
OUTER_FOLDS = 12


@dataclass(frozen=True)
class Matrix:
    """Scores [M, D] in points, names, families of the models, benchmark of every column."""

    scores: Array
    models: list[str]
    families: npt.NDArray[np.str_]
    blocks: npt.NDArray[np.str_]


def read(path: Path) -> Matrix:
    """The matrix out of a wide score file."""
    wide = read_wide_scores(path)
    table = wide.frame.pivot(index="model", columns="benchmark", values="score")
    table = table.loc[list(dict.fromkeys(wide.frame["model"])), list(dict.fromkeys(wide.frame["benchmark"]))]
    models = [str(name) for name in table.index]
    return Matrix(
        table.to_numpy(dtype=np.float64),
        models,
        np.array([wide.families.get(name, name) for name in models]),
        np.array([parent_benchmark(str(name)) for name in table.columns]),
    )


def questions(matrix: Matrix, repeats: int, seed: int) -> Iterator[tuple[int, bool, int, Array, npt.NDArray[np.bool_]]]:
    """(model, siblings hidden, k, row with its known scores, asked columns); the same for every method."""
    D = len(matrix.blocks)
    for i, row in enumerate(matrix.scores):
        random = np.random.default_rng([seed, i])
        for _ in range(repeats):
            order = random.permutation(D)
            for k in KNOWN_COUNTS:
                yield i, False, k, *_hide(row, order[:k], np.ones(D, dtype=bool))
            for block in np.unique(matrix.blocks):
                outside = order[matrix.blocks[order] != block]
                for k in KNOWN_COUNTS:
                    yield i, True, k, *_hide(row, outside[:k], matrix.blocks == block)


def _hide(
    row: Array, known: npt.NDArray[np.int64], asked: npt.NDArray[np.bool_]
) -> tuple[Array, npt.NDArray[np.bool_]]:
    hidden = np.full_like(row, np.nan)
    hidden[known] = row[known]
    return hidden, asked & np.isnan(hidden) & np.isfinite(row)


def joint_rows(matrix: Matrix, repeats: int, seed: int, log: list[dict[str, object]]) -> pd.DataFrame:
    """Errors of every question: model, column, k, method, error (mean absolute), covered, cells."""
    everything: dict[int, list[tuple[bool, int, Array, npt.NDArray[np.bool_]]]] = {}
    for i, hidden_siblings, k, hidden, asked in questions(matrix, repeats, seed):
        everything.setdefault(i, []).append((hidden_siblings, k, hidden, asked))
    rows: list[dict[str, object]] = []
    for out, folds in (("model", model_folds(matrix, seed)), ("family", family_folds(matrix))):
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(matrix.models)), fold)
            chosen = JointScores(left_out=out).fit(matrix.scores[rest], matrix.families[rest], matrix.blocks)
            log.append({"left out": out, "settings": chosen.settings_, "models": len(fold)})
            for i in fold:
                others = np.setdiff1d(np.arange(len(matrix.models)), fold if out == "family" else [i])
                if out == "model":
                    chosen.refit(matrix.scores[others], matrix.families[others])
                rows += _answers(matrix, chosen, int(i), others, everything[int(i)], out)
    return pd.DataFrame(rows)


def _answers(
    matrix: Matrix,
    joint: JointScores,
    i: int,
    others: npt.NDArray[np.int64],
    asked_of: list[tuple[bool, int, Array, npt.NDArray[np.bool_]]],
    out: str,
) -> list[dict[str, object]]:
    truth = matrix.scores[i]
    known = np.array([hidden for _, _, hidden, _ in asked_of])
    relatives = others[matrix.families[others] == matrix.families[i]]
    plain = {"column mean": np.nanmean(matrix.scores[others], axis=0)}
    if out == "model":
        plain["family mean"] = np.nanmean(matrix.scores[relatives if len(relatives) else others], axis=0)
    answers = {"joint model": joint.predict(known)}
    if out == "model":
        answers["joint model, family told"] = joint.predict(known, [matrix.families[i]] * len(known))
    rows = []
    for position, (siblings, k, _, asked) in enumerate(asked_of):
        column = COLUMNS[siblings + 2 * (out == "family")]
        base = {
            "model": matrix.models[i],
            "family": matrix.families[i],
            "column": column,
            "k": k,
            "cells": int(asked.sum()),
        }
        for name, answer in answers.items():
            low, high = answer.low[position, asked], answer.high[position, asked]
            rows.append(
                base
                | {
                    "method": name,
                    "error": np.abs(answer.mean[position, asked] - truth[asked]).mean(),
                    "covered": ((low <= truth[asked]) & (truth[asked] <= high)).mean(),
                    "width": (high - low).mean(),
                }
            )
        rows += [base | {"method": n, "error": np.abs(v[asked] - truth[asked]).mean()} for n, v in plain.items()]
    return rows


def model_folds(matrix: Matrix, seed: int) -> list[npt.NDArray[np.int64]]:
    """Folds of the outer choice; models are still left out one at a time."""
    order = np.random.default_rng(seed).permutation(len(matrix.models))
    return np.array_split(order, min(OUTER_FOLDS, len(order)))


def family_folds(matrix: Matrix) -> list[npt.NDArray[np.int64]]:
    """One fold per family."""
    return [np.flatnonzero(matrix.families == family) for family in np.unique(matrix.families)]


def summary(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Per column, k and method: mean absolute error over cells with bootstrap interval, coverage, width, families' mean."""
    table = []
    for (column, k, method), part in rows.groupby(["column", "k", "method"], sort=False):
        unit = "family" if column in COLUMNS[2:] else "model"
        part = part.assign(**{n: part[n] * part["cells"] for n in ("error", "covered", "width")})
        units = part.groupby(unit)[["error", "covered", "width", "cells"]].sum(min_count=1)
        error, cells = units["error"].to_numpy(), units["cells"].to_numpy()
        drawn = np.random.default_rng(seed).integers(0, len(units), (2000, len(units)))
        low, high = np.quantile(error[drawn].sum(axis=1) / cells[drawn].sum(axis=1), [0.025, 0.975])
        by_family = part.groupby("family")[["error", "cells"]].sum()
        table.append(
            {
                "column": column,
                "k": k,
                "method": method,
                "error": error.sum() / cells.sum(),
                "error_low": low,
                "error_high": high,
                "error_mean_of_families": (by_family["error"] / by_family["cells"]).mean(),
                "coverage": units["covered"].sum(min_count=1) / cells.sum(),
                "width": units["width"].sum(min_count=1) / cells.sum(),
                "units": len(units),
            }
        )
    return pd.DataFrame(table)


def references(matrix: Matrix) -> dict[str, float]:
    """Numbers that others measured on this matrix, measured again: leave-one-model-out errors, points."""
    M = len(matrix.models)
    macros = pd.DataFrame(matrix.scores).T.groupby(matrix.blocks).mean().T.to_numpy()
    ridge, mean, family = [], [], []
    for i in range(M):
        rest = np.arange(M) != i
        mean.append(np.abs(macros[i] - macros[rest].mean(axis=0)).mean())
        kin = rest & (matrix.families == matrix.families[i])
        if kin.any():
            family.append(np.abs(matrix.scores[i] - matrix.scores[kin].mean(axis=0)).mean())
        for j in range(macros.shape[1]):
            X = np.delete(macros, j, axis=1)
            X = (X - X[rest].mean(axis=0)) / X[rest].std(axis=0)
            ridge.append(
                abs(RidgeCV(np.logspace(-2, 3, 12)).fit(X[rest], macros[rest, j]).predict(X[[i]])[0] - macros[i, j])
            )
    return {
        "column mean, nine macro scores": float(np.mean(mean)),
        "ridge from the other eight, nine macro scores": float(np.mean(ridge)),
        "family mean, all columns, models with relatives": float(np.mean(family)),
    }


def shrunk_gaussian(matrix: Matrix, seed: int) -> pd.DataFrame:
    """The reference: one Gaussian, a tenth of every correlation removed, random known scores."""
    rows = []
    fixed = JointScores(shrinkage=0.1, family_pull=np.inf, block_share=0.0, n_folds=2).fit(
        matrix.scores, None, matrix.blocks
    )
    for i, siblings, k, hidden, asked in questions(matrix, 1, seed):
        if siblings:
            continue
        if k == KNOWN_COUNTS[0]:
            fixed.refit(np.delete(matrix.scores, i, axis=0))
        rows.append((k, np.abs(fixed.predict([hidden]).mean[0, asked] - matrix.scores[i, asked]).mean()))
    return pd.DataFrame(rows, columns=["k", "error"]).groupby("k")["error"].mean().to_frame().T


def random_cells(matrix: Matrix, seeds: int) -> pd.DataFrame:
    """The setting of matrix factorisation: cells of the whole matrix hidden at random, all models in the fit."""
    rows = []
    for share, published in PUBLISHED.items():
        for seed in range(seeds):
            hide = np.random.default_rng([seed, int(100 * share)]).random(matrix.scores.shape) < share
            seen = np.where(hide, np.nan, matrix.scores)
            answer = JointScores().fit(seen, matrix.families, matrix.blocks).predict(seen, matrix.families)
            error = (answer.mean - matrix.scores)[hide]
            inside = ((answer.low <= matrix.scores) & (matrix.scores <= answer.high))[hide].mean()
            rows.append((share, published, seed, np.abs(error).mean(), np.sqrt((error**2).mean()), inside))
    return pd.DataFrame(rows, columns=["hidden", "published", "seed", "error", "rmse", "coverage"])


def shuffled(matrix: Matrix, seed: int) -> tuple[float, float]:
    """(column mean, joint model at k = 20) when every column is shuffled among the models: there is nothing to know."""
    random = np.random.default_rng(seed)
    mixed = Matrix(random.permuted(matrix.scores, axis=0), matrix.models, matrix.families, matrix.blocks)
    joint, plain = [], []
    for fold in model_folds(mixed, seed)[:4]:
        rest = np.setdiff1d(np.arange(len(mixed.models)), fold)
        model = clone(JointScores()).fit(mixed.scores[rest], mixed.families[rest], mixed.blocks)
        for i in fold:
            hidden, asked = _hide(
                mixed.scores[i], random.permutation(mixed.scores.shape[1])[:20], np.ones(mixed.scores.shape[1], bool)
            )
            joint.append(np.abs(model.predict([hidden]).mean[0] - mixed.scores[i])[asked].mean())
            plain.append(np.abs(mixed.scores[rest].mean(axis=0) - mixed.scores[i])[asked].mean())
    return float(np.mean(plain)), float(np.mean(joint))


def main() -> None:
    """Measure, and write the folder."""
    from lab.score_matrix.page import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="wide score file: model, family, one column of percent per sub-task")
    parser.add_argument("--nine", type=Path, help="nine_models.csv")
    parser.add_argument("--out", type=Path, default=Path("reports/prediction/matrix"))
    parser.add_argument("--repeats", type=int, default=3, help="draws of known scores per model")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    matrix = read(given.scores)
    log: list[dict[str, object]] = []
    table = summary(joint_rows(matrix, given.repeats, given.seed, log), given.seed)
    write(
        given.out,
        matrix,
        table,
        pd.DataFrame(log),
        references(matrix),
        shrunk_gaussian(matrix, given.seed),
        random_cells(matrix, 2),
        shuffled(matrix, given.seed),
        nine_words(given.nine) if given.nine else "",
        f"python -m lab score-matrix {given.scores.name}{' --nine ' + given.nine.name if given.nine else ''} "
        f"--repeats {given.repeats} --seed {given.seed} --out {given.out}",
    )
    print(f"{given.out}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
