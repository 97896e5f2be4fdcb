"""Head statistics against a slow float64 twin, and the properties that the design names."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmms_visual_heads import schema
from lmms_visual_heads.statistics.heads import HEAD_STATISTICS, head_statistics
from lmms_visual_heads.tables import HEAD_COLUMNS

NAN = float("nan")
NONE = torch.empty(0, dtype=torch.long)
FIRST = torch.tensor([0])


def slow_twin(
    row: list[float],
    visual: list[int],
    patches: list[int],
    sinks: list[int],
    region: list[bool] | None,
    base: list[int],
) -> dict[str, float]:
    """One head in plain float64 arithmetic, straight from the definitions."""
    if not all(map(math.isfinite, row)):
        return dict.fromkeys(HEAD_STATISTICS, NAN)
    weight = math.fsum(row[k] for k in visual)
    on_patches = math.fsum(row[k] for k in patches)
    out = dict.fromkeys(HEAD_STATISTICS, NAN)
    out["image_attention"] = weight
    out["newline_attention"] = math.fsum(row[k] for k in visual if k not in patches)
    out["sink_attention"] = math.fsum(row[k] for k in sinks)
    if on_patches > 0 and len(patches) >= 2:
        shares = [row[k] / on_patches for k in patches]
        entropy = -math.fsum(p * math.log(p) for p in shares if p > 0)
        out["focus"] = max(0.0, math.log(len(patches)) - entropy)
        out["concentration"] = min(1.0, max(0.0, 1 - entropy / math.log(len(patches))))
        out["visual_head_score"] = weight * out["concentration"]
    if region is not None:
        chosen = [k for k, inside in zip(patches, region, strict=True) if inside]
        out["region_attention"] = math.fsum(row[k] for k in chosen)
        if patches:
            out["region_share"] = len(chosen) / len(patches)
        if base:
            out["region_attention_base"] = math.fsum(row[k] for k in chosen if k in base)
            out["region_attention_tiles"] = math.fsum(row[k] for k in chosen if k not in base)
    return out


def compute(
    rows: Tensor, visual: list, patches: list, sinks: list, region: list | None, base: list
) -> dict[str, Tensor]:
    def positions(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.long)

    return head_statistics(
        rows,
        positions(visual),
        positions(patches),
        positions(sinks),
        None if region is None else torch.tensor(region, dtype=torch.bool),
        positions(base) if base else None,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple:
    n_keys = draw(st.integers(2, 24))
    weights = st.one_of(st.just(0.0), st.floats(2**-20, 1.0, width=32), st.floats(2**-100, 2**-70, width=32))
    heads = []
    for _ in range(draw(st.integers(1, 4))):
        raw = draw(st.lists(weights, min_size=n_keys, max_size=n_keys))
        total = sum(raw)
        row = [value / total for value in raw] if total > 1e-19 else [1.0] + [0.0] * (n_keys - 1)
        if draw(st.integers(0, 9)) == 0:
            row[draw(st.integers(0, n_keys - 1))] = draw(st.sampled_from([NAN, math.inf, -math.inf]))
        heads.append(row)
    visual = sorted(draw(st.sets(st.integers(1, n_keys - 1))))
    patches = [k for k in visual if draw(st.integers(0, 4))]
    region = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=len(patches), max_size=len(patches))))
    base = patches[: draw(st.integers(0, len(patches)))]
    return heads, visual, patches, [0, 1][: draw(st.integers(1, 2))], region, base


@settings(max_examples=300, deadline=None)
@given(cases())
def test_equals_slow_twin(case: tuple) -> None:
    heads, visual, patches, sinks, region, base = case
    rows = torch.tensor(heads, dtype=torch.float32)[None]
    before = rows.clone()
    found = compute(rows, visual, patches, sinks, region, base)
    assert torch.equal(rows.nan_to_num(), before.nan_to_num()), "inputs are never written to"
    assert tuple(found) == HEAD_STATISTICS
    assert {value.dtype for value in found.values()} == {torch.float32}
    for h, row in enumerate(rows[0].tolist()):
        for name, expected in slow_twin(row, visual, patches, sinks, region, base).items():
            assert float(found[name][0, h]) == pytest.approx(expected, abs=1e-5, nan_ok=True), name


def row_of(values: list[float]) -> Tensor:
    return torch.tensor(values)[None, None]


def one(rows: Tensor, n_patches: int, **more: Tensor) -> dict[str, float]:
    """Statistics of one head whose patch tokens are keys 1 .. n_patches."""
    patches = torch.arange(1, n_patches + 1)
    return {name: float(value[0, 0]) for name, value in head_statistics(rows, patches, patches, FIRST, **more).items()}


def test_even_attention_has_neither_concentration_nor_focus() -> None:
    for n in (2, 16, 576, 2880):
        found = one(row_of([0.4] + [0.6 / n] * n), n)
        assert found["image_attention"] == pytest.approx(0.6, abs=1e-5)
        assert found["sink_attention"] == pytest.approx(0.4)
        assert found["concentration"] == pytest.approx(0, abs=1e-6)
        assert found["focus"] == pytest.approx(0, abs=1e-5)
        assert found["concentration"] >= 0
        assert found["focus"] >= 0


def test_one_token_has_concentration_one() -> None:
    values = [0.5] + [0.0] * 576
    values[77] = 0.5
    found = one(row_of(values), 576)
    assert found["concentration"] == 1
    assert found["focus"] == pytest.approx(math.log(576))
    assert found["visual_head_score"] == pytest.approx(0.5)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=12), st.integers(2, 5))
def test_focus_does_not_change_when_patches_are_split(weights: list[float], parts: int) -> None:
    total = sum(weights)
    whole = [0.0] + [w / total for w in weights]
    split = [0.0] + [w / total / parts for w in weights for _ in range(parts)]
    assert one(row_of(whole), len(weights))["focus"] == pytest.approx(
        one(row_of(split), len(weights) * parts)["focus"], abs=1e-5
    )


def test_missing_is_missing() -> None:
    unseen = one(row_of([1.0, 0.0, 0.0]), 2)
    assert unseen["image_attention"] == 0
    assert all(math.isnan(unseen[name]) for name in ("concentration", "focus", "visual_head_score"))
    single = one(row_of([0.5, 0.5]), 1)
    assert single["image_attention"] == 0.5
    assert all(math.isnan(single[name]) for name in ("concentration", "focus", "visual_head_score"))
    assert all(math.isnan(single[name]) for name in single if name.startswith("region"))


def test_attention_on_newlines_only_leaves_concentration_missing() -> None:
    found = head_statistics(row_of([0.2, 0.0, 0.0, 0.8]), torch.tensor([1, 2, 3]), torch.tensor([1, 2]), FIRST)
    assert float(found["newline_attention"]) == pytest.approx(0.8)
    assert float(found["image_attention"]) == pytest.approx(0.8)
    assert math.isnan(float(found["concentration"]))


def test_a_row_that_is_not_finite_is_missing_and_spoils_no_other_head() -> None:
    rows = torch.full((2, 2, 5), 0.2)
    rows[0, 1, 3] = NAN
    rows[1, 0, 0] = math.inf
    found = compute(rows, [1, 2], [1, 2], [0], [True, False], [1])
    for values in found.values():
        assert values.isnan().tolist() == [[False, True], [True, False]]


def test_even_attention_has_region_lift_zero() -> None:
    n = 24
    region = torch.arange(n) % 5 == 0
    found = one(row_of([0.1] + [0.9 / n] * n), n, region=region)
    patch_attention = found["image_attention"] - found["newline_attention"]
    assert found["region_attention"] == pytest.approx(patch_attention * found["region_share"], abs=1e-6)


def test_region_parts_add_up() -> None:
    rows = torch.rand(3, 4, 30)
    rows /= rows.sum(-1, keepdim=True)
    patches = list(range(2, 28))
    found = compute(rows, patches, patches, [0], [k % 3 == 0 for k in patches], patches[:10])
    parts = found["region_attention_base"] + found["region_attention_tiles"]
    torch.testing.assert_close(parts, found["region_attention"])


def test_names_are_columns_of_the_head_table() -> None:
    columns = {column.name for column in HEAD_COLUMNS}
    assert set(HEAD_STATISTICS) <= columns
    assert set(schema.PROFILE_STATISTICS) <= set(HEAD_STATISTICS)


def test_region_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="one entry per patch token, 2; got shape"):
        head_statistics(
            row_of([0.5, 0.2, 0.3]), torch.tensor([1, 2]), torch.tensor([1, 2]), FIRST, torch.tensor([True])
        )


def test_no_visual_tokens() -> None:
    found = head_statistics(row_of([0.5, 0.5]), NONE, NONE, FIRST, torch.empty(0, dtype=torch.bool))
    assert float(found["image_attention"]) == 0
    assert math.isnan(float(found["concentration"]))
    assert math.isnan(float(found["region_share"]))


def test_rows_of_one_document_out_of_a_batch() -> None:
    """A view with gaps gives what its copy gives, and patches with gaps what a permutation without gaps gives."""
    torch.manual_seed(0)
    batch = torch.rand(3, 4, 5, 40).softmax(-1)
    patches = torch.arange(3, 33)
    for document in range(4):
        view = head_statistics(batch[:, document], patches, patches, FIRST)
        copy = head_statistics(batch[:, document].clone(), patches, patches, FIRST)
        assert all(torch.equal(view[name].nan_to_num(), copy[name].nan_to_num()) for name in HEAD_STATISTICS)
    order = torch.cat([torch.tensor([0]), torch.arange(1, 40, 2), torch.arange(2, 40, 2)])
    scattered = torch.arange(1, 40, 2)
    gaps = head_statistics(batch[:, 0], scattered, scattered, FIRST)
    close = head_statistics(batch[:, 0][..., order], torch.arange(1, 21), torch.arange(1, 21), FIRST)
    for name in HEAD_STATISTICS:
        torch.testing.assert_close(gaps[name], close[name], equal_nan=True, atol=1e-6, rtol=0)
