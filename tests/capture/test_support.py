"""What is refused before anything is measured: decoders whose attention would be another one under the capture's name."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlavaConfig

from lmms_visual_heads.capture.support import check_config, check_decoder
from lmms_visual_heads.errors import VisualHeadsError

SPARSE = ("deepseek_v32", "glm_moe_dsa", "dots3_note", "minimax_m3_vl", "hy_v4", "glm5_next", "axk2", "mistral_large4")
"""Families of the installed transformers that build their top-k mask for "eager" and "sdpa" only."""


def config_of(family: str) -> Any:
    try:
        return AutoConfig.for_model(family)
    except (ValueError, KeyError):
        pytest.skip(f"the installed transformers has no {family}")


@pytest.mark.parametrize("family", SPARSE)
def test_sparse_attention_is_refused_by_name(family: str) -> None:
    config = config_of(family)
    with pytest.raises(VisualHeadsError, match=r"attends to chosen keys only \(index_topk"):
        check_config(config)


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
def test_a_llava_over_sparse_attention_is_refused_too(family: str) -> None:
    text = config_of(family)
    with pytest.raises(
        VisualHeadsError, match=rf"llava attends to chosen keys only \(index_topk = {text.index_topk}\)"
    ):
        check_config(LlavaConfig(text_config=text))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "phi3", "gemma3_text"])
def test_dense_decoders_pass(family: str) -> None:
    check_config(LlavaConfig(text_config=config_of(family)))


class ChecksTwo(nn.Module):
    """Like the attention modules that build a mask for two names only."""

    config = SimpleNamespace(_attn_implementation="sdpa")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.config._attn_implementation in ("eager", "sdpa"):
            return x + 1
        return x


class Compares(ChecksTwo):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.config._attn_implementation == "sdpa" else x + 1


class OnlyEager(ChecksTwo):
    """As GPT-2 does: what is not eager is treated alike, so stock SDPA and ours are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if self.config._attn_implementation == "eager" else x


class OtherNames(nn.Module):
    """Only asks for kernels that are never used here, or for the registry's own lookup."""

    config = SimpleNamespace(_attn_implementation="sdpa")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if self.config._attn_implementation == "flash_attention_2" else x


@pytest.mark.parametrize(
    ("kind", "refused"),
    [(ChecksTwo, True), (Compares, True), (OnlyEager, False), (OtherNames, False), (nn.Linear, False)],
)
def test_a_decoder_that_tests_for_the_name_is_refused(kind: type, refused: bool) -> None:
    inner = nn.Sequential(nn.Linear(2, 2) if kind is nn.Linear else kind())
    model = SimpleNamespace(get_decoder=lambda: inner, config=SimpleNamespace(model_type="own"))
    if refused:
        with pytest.raises(VisualHeadsError, match=rf"own has a decoder \({kind.__name__}\) that tests for the name"):
            check_decoder(model)
    else:
        check_decoder(model)


@pytest.mark.parametrize("family", SPARSE)
def test_the_installed_code_of_these_families_is_recognised(family: str) -> None:
    """The second guard, by code: it would hold for a family whose config has other words."""
    from lmms_visual_heads.capture.support import _NAME_TEST

    config_of(family)
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    with open(module.__file__, encoding="utf-8") as source:
        assert _NAME_TEST.search(source.read())
