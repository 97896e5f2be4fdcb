"""Original checkpoints against what the original code computed: ../shared/oracle (skipped where it is missing)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_visual_heads import load_model
from lmms_visual_heads.geometry.layout import unpadded_grid
from lmms_visual_heads.schema import QUERIES
from lmms_visual_heads.statistics.heads import head_statistics
from tests.builders.paths import ORACLE

CASES = sorted(path.relative_to(ORACLE / "groundtruth") for path in ORACLE.glob("groundtruth/*/*.npz"))
LOGITS, ROWS = 1e-4, 1e-5
RECORDED = {"first_generated": "decode1", "last_prompt": "prefill_last"}

pytestmark = [
    pytest.mark.skipif(not CASES, reason="no ground truth of the original code: ../shared/oracle is missing"),
]


@cache
def loaded(name: str) -> Any:
    torch.set_num_threads(1)
    return load_model(ORACLE / "ckpts" / name, device="cpu", dtype="float32")


@cache
def recorded_case(path: Path) -> tuple[Any, dict[str, Any], Any, Any]:
    """The model, what was recorded, the image, and our encoding."""
    model = loaded(path.parent.name)
    with np.load(ORACLE / "groundtruth" / path, allow_pickle=False) as file:
        recorded = {key: file[key] for key in file.files}
    image = Image.open(ORACLE / "images" / str(recorded["image_file"]))
    return model, recorded, image, model.encode(str(recorded["question"]), [image])


@pytest.fixture(params=CASES, ids=str)
def one(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any], Any, Any]:
    return recorded_case(request.param)


def off_by(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max())


def test_prompt_tokens_and_positions(one) -> None:
    model, recorded, _, encoded = one
    assert model.description["conversation"] == str(recorded["conv_mode"])
    assert encoded.prompt == str(recorded["prompt"])
    expanded = []
    for token in recorded["input_ids"].tolist():
        expanded += [model.image_token_id] * int(recorded["n_image_tokens"]) if token == -200 else [token]
    assert encoded.input_ids.tolist() == expanded
    assert len(encoded) == int(recorded["expanded_len"])
    assert encoded.visual_positions.tolist() == recorded["image_positions"].tolist()
    patches = sorted({*recorded["base_positions"].tolist(), *recorded["hires_positions"].tolist()})
    assert encoded.patch_positions.tolist() == patches
    if "unpadded_grid_hw" in recorded:
        assert encoded.base_positions.tolist() == recorded["base_positions"].tolist()
        layout = model.encoder.layout(encoded.image_sizes[0][::-1])
        assert layout.tiles == tuple(recorded["unpadded_grid_hw"].tolist())


def test_pixels_are_the_same_numbers(one) -> None:
    _, recorded, _, encoded = one
    assert off_by(encoded.inputs["pixel_values"].squeeze(0), recorded["pixel_values"]) == 0


def test_image_features(one) -> None:
    model, recorded, _, encoded = one
    seen = {}

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen["embeddings"] = kwargs["inputs_embeds"][0]

    hook = model.model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.inference_mode():
        model.model(**encoded.inputs)
    hook.remove()
    assert off_by(seen["embeddings"][encoded.visual_positions], recorded["image_features"]) < 1e-5


def test_logits_and_greedy_tokens(one) -> None:
    model, recorded, _, encoded = one
    output = model.model.generate(
        **encoded.inputs,
        **model.generation_settings({"max_new_tokens": 4}),
        output_logits=True,
        return_dict_in_generate=True,
    )
    scores = torch.cat(output.logits)
    assert scores.shape == recorded["step_scores"].shape
    assert off_by(scores, recorded["step_scores"]) < LOGITS
    assert off_by(scores[0], recorded["prefill_logits"]) < LOGITS
    assert output.sequences[0, len(encoded) :].tolist() == recorded["output_ids"].tolist()
    assert set(model.end_token_ids) == set(recorded["terminators"].tolist())
    for query in (*QUERIES, None):
        generation = model.generate([encoded], query=query, max_new_tokens=4)[0]
        assert generation.token_ids == recorded["output_ids"].tolist()


@pytest.mark.parametrize("query", QUERIES)
def test_rows_and_their_sums(one, query: str) -> None:
    model, recorded, image, _ = one
    name = RECORDED[query]
    boxes = recorded["bboxes"].tolist()
    rows = model.attention_rows(image, str(recorded["question"]), query=query, boxes=boxes)
    assert off_by(rows.values, recorded["attn_" + name]) < ROWS
    numbers = head_statistics(
        rows.values,
        rows.visual_positions,
        rows.patch_positions,
        rows.sink_positions,
        torch.isin(rows.patch_positions, rows.region_positions),
        rows.base_positions,
    )
    assert off_by(numbers["image_attention"], recorded["imatt_sum_" + name]) < ROWS
    base = torch.tensor(recorded["base_positions"])
    ours = rows.region_positions[torch.isin(rows.region_positions, base)]
    # padded models see the padded square; the base view of tiles is the stretched original
    mask, total = (
        ("bbox_mask", "reatt_sum_") if rows.base_positions is not None else ("bbox_mask_padded", "reatt_sum_padded_")
    )
    assert ours.tolist() == base[torch.tensor(recorded[mask]).bool()].tolist()
    assert off_by(rows.values[..., ours].sum(-1), recorded[total + name]) < ROWS
    which = "region_attention_base" if rows.base_positions is not None else "region_attention"
    assert off_by(numbers[which], recorded[total + name]) < ROWS


@pytest.mark.parametrize("name", sorted({str(path.parent) for path in CASES}))
def test_a_left_padded_batch_gives_the_same(name: str) -> None:
    """Nothing here pads, but who does gets the same logits and rows."""
    cases = [recorded_case(path) for path in CASES if str(path.parent) == name]
    model = cases[0][0]
    if model.description["image_aspect"] == "anyres":
        cases = [one for one in cases if one[3].inputs["pixel_values"].shape[1] == 5]
    length = max(len(one[3]) for one in cases)
    ids = torch.full((len(cases), length), model.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, (_, _, _, encoded) in enumerate(cases):
        ids[i, length - len(encoded) :] = encoded.input_ids
        mask[i, length - len(encoded) :] = 1
    pixels = {
        key: torch.cat([one[3].inputs[key] for one in cases])
        for key in ("pixel_values", "image_sizes")
        if key in cases[0][3].inputs
    }
    output = model.model.generate(
        input_ids=ids,
        attention_mask=mask,
        **pixels,
        max_new_tokens=2,
        do_sample=False,
        output_attentions=True,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=list(model.end_token_ids),
        pad_token_id=model.pad_token_id,
    )
    for i, (_, recorded, _, encoded) in enumerate(cases):
        assert off_by(output.logits[0][i], recorded["prefill_logits"]) < LOGITS
        rows = torch.stack([layer[i, :, -1] for layer in output.attentions[0]])
        assert off_by(rows[..., length - len(encoded) :], recorded["attn_prefill_last"]) < ROWS


def test_unpadding_rounds_as_the_original() -> None:
    """28 sizes at real scale for which transformers' un-padding keeps another number of rows or columns."""
    for size in json.loads((ORACLE / "unpad_rounding_sizes_336.json").read_text()):
        width, height = size["size"]
        columns, rows = (edge // 14 for edge in size["pinpoint"])
        assert list(unpadded_grid((height, width), (rows, columns), "original")) == size["orig_hw"]
        assert list(unpadded_grid((height, width), (rows, columns), "huggingface")) == size["hf_hw"]
