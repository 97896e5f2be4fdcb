"""What one answered request becomes in the tables: numbers of a model -> the columns of heads and answers. Pure functions.

Shapes: L layers, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.statistics.answers import AnswerStatistics, answer_text


def of_heads(statistics: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], float | None]:
    """Columns of the head table, and the share of the patch area that lies in the document's region.

    Parameters
    ----------
    statistics : mapping of str to Tensor [L, H]
        From `VisualModel.head_statistics`.

    Returns
    -------
    dict of str to array [L, H], float or None
        All columns but `region_share`, which is one number per document; None where there is no region.
    """
    numbers = dict(statistics)
    shares = numbers.pop("region_share")
    known = shares[~shares.isnan()]
    arrays = torch.stack(list(numbers.values())).cpu().numpy()  # one copy from the device
    return dict(zip(numbers, arrays, strict=True)), float(known[0]) if len(known) else None


def of_answer(answer: AnswerStatistics | None, text: str) -> dict[str, Any] | None:
    """Columns of the answer table; None in a run without answers. A scored continuation has statistics and no text."""
    if answer is None:
        return None
    return dataclasses.asdict(answer) | {"answer": answer_text(text) if answer.n_answer_tokens else None}


def of_tokens(encoded: Encoded) -> dict[str, int]:
    """Numbers of tokens of a document's prompt."""
    return {
        "n_prompt_tokens": len(encoded),
        "n_visual_tokens": len(encoded.visual_positions),
        "n_patch_tokens": len(encoded.patch_positions),
    }
