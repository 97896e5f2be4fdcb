"""`visual_heads_hf`: `visual_heads_llava` for any image-text-to-text model whose visual tokens are marked in `input_ids`.

Same answers, tables and errors; regions are missing, because where a visual token's patch lies is not known.
"""

from __future__ import annotations

from dataclasses import asdict

from lmms_visual_heads.checkpoints.any_model import load_any, refuse_llava_settings
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness import processes
from lmms_visual_heads.harness.arguments import Arguments
from lmms_visual_heads.harness.model import VisualHeadsLlava
from lmms_visual_heads.harness.plugin import ANY_MODEL_ID


class VisualHeadsHf(VisualHeadsLlava):
    """Any checkpoint that transformers loads as image-text-to-text; arguments as for `visual_heads_llava`.

    Raises
    ------
    VisualHeadsError
        As `VisualHeadsLlava`; for `conversation=`, `image_aspect=`, `model_base=`, `peft=` and `knockout=`; and for families
        whose rows cannot be right (`load_model`).
    """

    model_id = ANY_MODEL_ID

    def _load(self, asked: Arguments) -> VisualModel:
        refuse_llava_settings(asdict(asked))
        if asked.knockouts:
            raise VisualHeadsError(
                f"Knocking out heads needs a family whose layers are known to let it; {self.model_id} loads any, and "
                f"knockout={asked.knockout} came. Leave knockout out, or run a LLaVA checkpoint with visual_heads_llava."
            )
        return load_any(
            asked.pretrained,
            device=asked.device or processes.device(asked.device_map),
            device_map=asked.device_map,
            dtype=asked.dtype,
            revision=asked.revision,
            quantization=asked.quantization,
        )
