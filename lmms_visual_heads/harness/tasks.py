"""The functions that the YAML files in `tasks/` name: documents, prompt, image and score of the drawn scenes.

Documents carry no image; it is drawn when the model asks for it. Scores are 0 or 1 per document.
"""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask
from PIL import Image

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.endings import in_one_sentence
from lmms_visual_heads.scenes.documents import documents, draw
from lmms_visual_heads.scenes.scoring import is_correct


class SceneTask(ConfigurableTask):
    """A task whose documents are made by `scenes.documents`; its YAML's `dataset_name` says which."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(config={k: v for k, v in (config or {}).items() if k != "class"}, **kwargs)

    @in_one_sentence
    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Build the documents in memory; nothing is fetched and nothing is cached on disk."""
        if os.environ.get("VHEAD_DATA"):
            raise VisualHeadsError(
                f"This version draws its own scenes and cannot read other data yet; VHEAD_DATA is set to "
                f"{os.environ['VHEAD_DATA']!r}. Unset VHEAD_DATA."
            )
        self.dataset = DatasetDict({"test": Dataset.from_list(documents(self.config.dataset_name))})
        self.dataset_no_image = self.dataset


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The document's image, RGB, 336 x 336."""
    return [draw(doc)]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """The question between the task's fixed phrases; multiple-choice options follow it, one a line."""
    words = lmms_eval_specific_kwargs or {}
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", doc.get("choices") or [], strict=False))
    return f"{words.get('pre_prompt', '')}{doc['question']}{options}{words.get('post_prompt', '')}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1.0 where the answer is the document's, else 0.0."""
    return {"exact_match": float(is_correct(results[0], doc["answer"]))}
