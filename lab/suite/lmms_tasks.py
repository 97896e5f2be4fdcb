"""What the YAML files in `lab/suite/tasks/` name. From the checkout's root: lmms-eval --include_path lab/suite/tasks."""

from __future__ import annotations

from typing import Any

from PIL import Image

from lab import suite
from lmms_visual_heads.harness.tasks import SceneTask


class SuiteTask(SceneTask):
    """A benchmark of the suite; its YAML's `dataset_name` says which."""

    def documents(self, name: str) -> list[dict[str, Any]]:
        """The documents of a benchmark, plain values without images."""
        return suite.documents(name)


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The document's picture, RGB."""
    return [suite.draw(doc)]
