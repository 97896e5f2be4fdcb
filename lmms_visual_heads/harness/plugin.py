"""What lmms-eval finds through the entry-point group `lmms_eval.models`.

`register` and `register_any` are called while `lmms_eval.models` is being imported, inside one try/except for all plugins:
they import nothing heavy and never raise. Besides the models they make lmms-eval find our task folder, for which there is
no entry point:
`TaskManager.initialize_tasks` gets the folder added to its `include_path`.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

MODEL_ID = "visual_heads_llava"
ANY_MODEL_ID = "visual_heads_hf"


def tasks_folder() -> Path:
    """Folder of the task YAML files: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parent / "tasks"


def add_task_folder(task_manager_class: Any) -> None:
    """Let every `TaskManager` index our task folder too. Calling it twice changes nothing more.

    Raises
    ------
    TypeError
        If this lmms-eval's `initialize_tasks` has no parameter `include_path`.
    """
    original = task_manager_class.initialize_tasks
    if getattr(original, "_adds_visual_heads", False):
        return
    if "include_path" not in inspect.signature(original).parameters:
        raise TypeError("TaskManager.initialize_tasks has no parameter include_path")

    @functools.wraps(original)
    def initialize_tasks(self: Any, include_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        if include_path is None:
            paths = []
        elif isinstance(include_path, str | os.PathLike):
            paths = [str(include_path)]
        else:
            paths = [str(path) for path in include_path]
        ours = str(tasks_folder())
        if ours not in paths:
            paths.append(ours)
        return original(self, paths, *args, **kwargs)

    initialize_tasks._adds_visual_heads = True  # type: ignore[attr-defined]
    task_manager_class.initialize_tasks = initialize_tasks


def register() -> Any:
    """Manifest of `visual_heads_llava` for lmms-eval's model registry."""
    return _manifest(MODEL_ID, "lmms_visual_heads.harness.model.VisualHeadsLlava", "vhead_llava")


def register_any() -> Any:
    """Manifest of `visual_heads_hf`; an entry point gives one manifest, so this model has its own."""
    return _manifest(ANY_MODEL_ID, "lmms_visual_heads.harness.any_model.VisualHeadsHf", "vhead_hf")


def _manifest(model_id: str, class_path: str, alias: str) -> Any:
    from lmms_eval.models.registry_v2 import ModelManifest

    try:
        from lmms_eval.tasks import TaskManager

        add_task_folder(TaskManager)
    except Exception as error:  # noqa: BLE001 - an exception here would remove every other plugin's models, too
        warnings.warn(
            f"lmms-visual-heads could not add its tasks to this lmms-eval ({error!r}); "
            f"pass --include_path {tasks_folder()} to find them.",
            stacklevel=2,
        )
    return ModelManifest(model_id=model_id, simple_class_path=class_path, aliases=(alias,))
