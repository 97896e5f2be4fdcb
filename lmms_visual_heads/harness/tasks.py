"""The functions that the YAML files in `tasks/` name: documents, prompt, image and score.

Documents carry no image; it is drawn, or opened, when the model asks for it. Scores are 0 or 1 per document. With
`VHEAD_DATA=FOLDER` the vhead tasks read the real LookTwice-QA from a folder made by `visual-heads data looktwice`; the
`scenes_*` tasks are always drawn.
"""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask
from PIL import Image

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.endings import in_one_sentence
from lmms_visual_heads.probe.documents import PROBE_DATA, documents, draw
from lmms_visual_heads.probe.looktwice import open_folder, read_image
from lmms_visual_heads.probe.questions import LETTER_POST_PROMPT
from lmms_visual_heads.probe.scoring import NOT_ANSWERED, is_correct

DATA_VARIABLE = "VHEAD_DATA"


def _data_folder() -> str:
    """The folder of real data, or an empty string for the drawn scenes."""
    return os.path.expanduser(os.environ.get(DATA_VARIABLE, "").strip())


def _task_documents(name: str) -> list[dict[str, Any]]:
    folder = _data_folder()
    return open_folder(folder).documents(name) if folder and name in PROBE_DATA else documents(name)


class SceneTask(ConfigurableTask):
    """A task whose documents are drawn scenes or those of `VHEAD_DATA`; its YAML's `dataset_name` says which."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(config={k: v for k, v in (config or {}).items() if k != "class"}, **kwargs)

    def documents(self, name: str) -> list[dict[str, Any]]:
        """The documents of a data set, plain values without images."""
        return _task_documents(name)

    @in_one_sentence
    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Build the documents in memory; nothing is fetched and nothing is cached on disk."""
        self.dataset = DatasetDict({"test": Dataset.from_list(self.documents(self.config.dataset_name))})
        self.dataset_no_image = self.dataset


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The document's image, RGB: a drawn one of 336 x 336, or the file in `VHEAD_DATA` in its own size."""
    if "image" not in doc:
        return [draw(doc)]
    folder = _data_folder()
    if not folder:
        raise VisualHeadsError(
            f"This task was built from {DATA_VARIABLE}, which is no longer set. Set it for the whole run."
        )
    return [read_image(folder, doc)]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """The question between the task's fixed phrases; multiple-choice options follow it, one a line.

    Options from `VHEAD_DATA` ask for a letter, although the task's own phrase asks for a word.
    """
    words = lmms_eval_specific_kwargs or {}
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", doc.get("choices") or [], strict=False))
    ending = LETTER_POST_PROMPT if options and "image" in doc else words.get("post_prompt", "")
    return f"{words.get('pre_prompt', '')}{doc['question']}{options}{ending}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1.0 where the answer is the document's, else 0.0; nothing for a document that was not answered."""
    if results[0] == NOT_ANSWERED:
        return {}
    return {"exact_match": float(is_correct(results[0], doc["answer"]))}
