"""The joint model of scores: known truth, missing values, coverage, no skill where there is none, equal rows noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.gaussian_mixture import Components, complete, condition, shrunk
from lmms_visual_heads.prediction.score_mixture import JointScores
from lmms_visual_heads.tables import (
    check_scores,
    parent_benchmark,
    read_results,
    read_scores,
    read_wide_scores,
    write_scores,
)
from tests.builders.paths import SHARED as SHARED_FOLDER

SHARED = SHARED_FOLDER / "data" / "lvlm_scores_108x149.csv"
BLOCKS = np.repeat(["a", "b", "c"], 5)


def low_rank(models: int, seed: int, noise: float = 2.0) -> np.ndarray:
    """Scores of rank 2 around 50, with noise; the loadings are those of seed 0 whatever the seed."""
    loadings = np.random.default_rng(0).normal(size=(2, 15)) * 8
    random = np.random.default_rng(seed)
    return 50 + random.normal(size=(models, 2)) @ loadings + random.normal(size=(models, 15)) * noise


def hide(scores: np.ndarray, known: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    hidden = np.full_like(scores, np.nan)
    for row, truth in zip(hidden, scores, strict=True):
        at = random.permutation(scores.shape[1])[:known]
        row[at] = truth[at]
    return hidden


def left_error(joint: JointScores, truth: np.ndarray, known: np.ndarray) -> float:
    return float(np.abs(joint.predict(known).mean - truth)[np.isnan(known)].mean())


@pytest.fixture(scope="module")
def fitted() -> JointScores:
    return JointScores().fit(low_rank(80, 1), None, BLOCKS)


def test_condition_equals_the_textbook() -> None:
    """Slow twin: each component by the inverse, weights by scipy's density."""
    from scipy.stats import multivariate_normal

    random = np.random.default_rng(0)
    roots = random.normal(size=(3, 6, 6))
    mixture = Components(
        (None, "f", "g"),
        np.array([0.2, 0.5, 0.3]),
        random.normal(size=(3, 6)),
        roots @ roots.swapaxes(1, 2) + np.eye(6),
    )
    rows, a, noise = random.normal(size=(2, 6)), np.array([1, 4]), np.full(6, 0.3)
    mean, covariance = condition(mixture, rows, a, noise, full=True)
    _, std = condition(mixture, rows, a, noise)
    for n, row in enumerate(rows):
        weights, means, inner = [], [], []
        for w, m, S in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
            Saa = S[np.ix_(a, a)] + 0.3 * np.eye(2)
            weights.append(w * multivariate_normal(m[a], Saa).pdf(row[a]))
            means.append(m + S[:, a] @ np.linalg.inv(Saa) @ (row[a] - m[a]))
            inner.append(S - S[:, a] @ np.linalg.inv(Saa) @ S[a])
        share = np.array(weights) / sum(weights)
        expected = share @ np.array(means)
        spread = sum(
            s * (S + np.outer(m - expected, m - expected)) for s, m, S in zip(share, means, inner, strict=True)
        )
        assert np.allclose(mean[n], expected)
        assert np.allclose(covariance[n], spread)
        assert np.allclose(std[n], np.sqrt(np.diag(spread)))


def test_known_scores_predict_a_low_rank_matrix(fitted: JointScores) -> None:
    truth = low_rank(60, 2)
    errors = [left_error(fitted, truth, hide(truth, k, 3)) for k in (0, 2, 6)]
    assert errors[0] > 1.7 * errors[1] > 1.7 * errors[2]
    assert errors[2] < 3.2  # the noise alone errs by 1.6, and the shrinkage costs
    known = hide(truth, 6, 3)
    assert np.allclose(
        fitted.predict(known).mean[np.isfinite(known)], np.clip(known[np.isfinite(known)], 0, 100), atol=1e-6
    )


@pytest.mark.parametrize("known", [0, 2, 6])
def test_intervals_cover(fitted: JointScores, known: int) -> None:
    truth = np.clip(low_rank(200, 4), 0, 100)
    rows = hide(truth, known, 5)
    answer = fitted.predict(rows)
    inside = ((answer.low <= truth) & (truth <= answer.high))[np.isnan(rows)].mean()
    assert 0.83 <= inside <= 0.97


def test_missing_scores_are_natural() -> None:
    scores = low_rank(80, 1)
    holes = np.where(np.random.default_rng(0).random(scores.shape) < 0.3, np.nan, scores)
    filled, _ = complete(holes, BLOCKS, 0.1, 0.5)
    hidden = np.isnan(holes)
    assert np.array_equal(filled[~hidden], scores[~hidden])
    plain = np.abs(np.nanmean(holes, axis=0) - scores)[hidden].mean()
    assert np.abs(filled - scores)[hidden].mean() < 0.45 * plain
    truth = low_rank(40, 2)
    whole = JointScores().fit(scores, None, BLOCKS)
    partial = JointScores().fit(holes, None, BLOCKS)
    known = hide(truth, 5, 3)
    assert left_error(partial, truth, known) < 1.3 * left_error(whole, truth, known)


def test_shuffled_columns_leave_no_skill() -> None:
    random = np.random.default_rng(0)
    mixed = random.permuted(low_rank(140, 1), axis=0)
    joint = JointScores().fit(mixed[:80], None, BLOCKS)
    plain = np.broadcast_to(mixed[:80].mean(axis=0), mixed[80:].shape)
    known = hide(mixed[80:], 6, 1)
    assert left_error(joint, mixed[80:], known) > 0.97 * np.abs(plain - mixed[80:])[np.isnan(known)].mean()


def test_families_help_and_may_be_told() -> None:
    random = np.random.default_rng(0)
    names = np.repeat(list("pqrs"), 12)
    centers = {name: random.uniform(20, 80, 15) for name in "pqrs"}
    scores = np.array([centers[name] for name in names]) + random.normal(size=(48, 15)) * 3
    joint = JointScores().fit(scores, names, BLOCKS)
    nothing = np.full((4, 15), np.nan)
    truth = np.array([centers[name] for name in "pqrs"])
    told = np.abs(joint.predict(nothing, list("pqrs")).mean - truth).mean()
    untold = np.abs(joint.predict(nothing).mean - truth).mean()
    assert told < 3
    assert untold > 3 * told
    assert left_error(joint, truth, hide(truth, 2, 0)) < 0.5 * untold
    assert np.isfinite(joint.settings_[1])


def test_family_out_is_wider_than_model_out() -> None:
    random = np.random.default_rng(1)
    names = np.repeat([f"f{i}" for i in range(10)], 5)
    centers = random.uniform(20, 80, (10, 15))
    scores = np.repeat(centers, 5, axis=0) + random.normal(size=(50, 15)) * 2
    known = hide(random.uniform(20, 80, (5, 15)), 3, 0)
    widths = []
    for out in ("model", "family"):
        answer = JointScores(left_out=out).fit(scores, names, BLOCKS).predict(known)
        widths.append((answer.high - answer.low)[np.isnan(known)].mean())
    assert widths[1] > 1.3 * widths[0]


def test_equal_rows_are_noticed_and_left_out_together() -> None:
    scores = low_rank(30, 1)
    doubled = np.vstack([scores, scores[:10]])
    joint = JointScores().fit(doubled, None, BLOCKS)
    assert joint.duplicates_ == [(i, 30 + i) for i in range(10)]
    of_row = {int(row): number for number, fold in enumerate(joint._folds()) for row in fold}
    assert all(of_row[first] == of_row[second] for first, second in joint.duplicates_)
    assert JointScores().fit(scores, None, BLOCKS).duplicates_ == []


def test_noise_of_known_scores_counts(fitted: JointScores) -> None:
    known = np.full((1, 15), np.nan)
    known[0, 0] = 80.0
    exact, vague = (fitted.predict(known, noise=np.full((1, 15), v)) for v in (0.0, 400.0))
    assert (vague.std >= exact.std - 1e-9).all()
    assert vague.std[0, 0] > 1
    mean, covariance = fitted.covariance(known[0], noise=np.full(15, 400.0))
    assert np.allclose(np.sqrt(np.diag(covariance)), vague.std[0])
    assert np.allclose(mean, vague.mean[0])


def test_refit_keeps_settings_and_order_does_not_matter(fitted: JointScores) -> None:
    scores = low_rank(80, 1)
    other = clone(fitted).fit(scores, None, BLOCKS).refit(scores[::-1])
    assert other.settings_ == fitted.settings_
    known = hide(low_rank(3, 9), 4, 0)
    assert np.allclose(other.predict(known).mean, fitted.predict(known).mean)


def test_shrunk_is_positive_definite_with_more_columns_than_models() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 15))
    matrix = shrunk(np.cov(x.T), BLOCKS, 0.1, 0.5)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    assert np.allclose(np.diag(matrix), np.maximum(np.diag(np.cov(x.T)), 0.25))


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (np.ones((2, 4)), "at least 3 models"),
        (np.full((5, 4), np.inf), "infinite"),
        (np.vstack([np.ones((1, 4)), np.full((4, 4), np.nan)]), "two models at least"),
        (np.vstack([np.ones((4, 4)), np.full((1, 4), np.nan)]), "row 4 has none"),
    ],
)
def test_bad_scores_end_in_one_sentence(scores: np.ndarray, sentence: str) -> None:
    with pytest.raises(VisualHeadsError, match=sentence):
        JointScores().fit(scores)


def test_one_valued_benchmark_does_not_break() -> None:
    scores = low_rank(30, 1)
    scores[:, 3] = 50.0
    known = hide(scores[:2], 4, 0)
    assert np.isfinite(JointScores().fit(scores, None, BLOCKS).predict(known).mean).all()


def test_wrong_number_of_columns_is_refused(fitted: JointScores) -> None:
    with pytest.raises(VisualHeadsError, match="15 columns"):
        fitted.predict(np.ones((1, 4)))


WIDE = "model,llm_billion_params,family,Art (MMMU),pope\nA,7,F,40,80.5\nB,,,,70\n"


def test_wide_file_becomes_a_score_table(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(WIDE)
    wide = read_wide_scores(path)
    assert wide.families == {"A": "F"}
    assert wide.frame[["model", "benchmark", "score"]].values.tolist() == [
        ["A", "Art (MMMU)", 40],
        ["A", "pope", 80.5],
        ["B", "pope", 70],
    ]
    table = read_results([path]).frame
    assert len(table) == 3
    assert set(table["source"]) == {"wide.csv"}
    assert set(table["scale"]) == {100.0}
    write_scores(table, tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(read_scores(tmp_path / "scores.csv"), table, check_dtype=False)
    assert [parent_benchmark(name) for name in ("Art (MMMU)", "pope")] == ["MMMU", "pope"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "first column"),
        ("name,a\nA,40\n", "first column is 'model'.* it lacks model"),
        ("model,family\nA,F\n", "no column of scores"),
        ("model,a,a\nA,1,2\n", "'a' stands there twice"),
        ("model,a\nA,40\nA,41\n", "lines 2 and 3"),
        ("model,a,b\nA,40\n", "line 2 has 2 cells"),
        ("model,a\nA,high\n", "'high' came for 'a' of A"),
        ("model,a\nA,140\n", "0 to 100"),
        ("model,a\nA,nan\n", "0 to 100"),
        ("model,a\nA,0.4\nB,0.5\n", "fractions"),
        ("model,a\nA,\n", "no score"),
    ],
)
def test_malformed_wide_files_end_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(text)
    with pytest.raises(VisualHeadsError, match=sentence):
        read_results([path])


def test_a_small_percentage_among_many_is_no_fraction() -> None:
    rows = [(m, f"b{i}", 50.0 + i, 100.0) for m in ("A", "B", "C") for i in range(25)]
    table = pd.DataFrame(rows, columns=["model", "benchmark", "score", "scale"])
    table.loc[0, "score"] = 0.88
    assert len(check_scores(table)) == 75
    with pytest.raises(VisualHeadsError, match="fraction"):
        check_scores(table[table["benchmark"] == "b0"])


@pytest.mark.skipif(not SHARED.is_file(), reason="../shared/data is not here")
def test_public_result_file() -> None:
    table = read_results([SHARED]).frame
    assert (table["model"].nunique(), table["benchmark"].nunique(), len(table)) == (108, 149, 16092)
