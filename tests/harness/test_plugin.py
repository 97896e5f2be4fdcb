"""What lmms-eval finds: the model, its tasks, and that nothing here can break another plugin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmms_visual_heads.harness import plugin


class FakeManager:
    """Stands in for lmms-eval's TaskManager."""

    def initialize_tasks(self, include_path: Any = None, include_defaults: bool = True) -> list[str]:
        return list(include_path)


class OtherManager:
    def initialize_tasks(self) -> list[str]:
        return []


@pytest.mark.parametrize("given", [None, "mine", Path("mine"), ["mine"]])
def test_the_task_folder_joins_the_include_path(given: Any) -> None:
    class Manager(FakeManager):
        pass

    plugin.add_task_folder(Manager)
    plugin.add_task_folder(Manager)
    found = Manager().initialize_tasks(given)
    assert found == ([] if given is None else ["mine"]) + [str(plugin.tasks_folder())]
    assert found == Manager().initialize_tasks(found)


def test_an_unknown_task_manager_is_left_alone() -> None:
    with pytest.raises(TypeError, match="include_path"):
        plugin.add_task_folder(OtherManager)


def test_a_changed_lmms_eval_costs_a_warning_and_not_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import lmms_eval.tasks

    monkeypatch.setattr(lmms_eval.tasks, "TaskManager", OtherManager)
    with pytest.warns(UserWarning, match=r"pass --include_path .*tasks to find them"):
        manifest = plugin.register()
    assert manifest.model_id == "visual_heads_llava"


def test_the_entry_point_loads_nothing_heavy() -> None:
    script = (
        "import sys; from importlib.metadata import entry_points;"
        "[e] = [e for e in entry_points(group='lmms_eval.models') if e.name == 'visual_heads']; e.load();"
        "assert not {'torch', 'transformers', 'pandas', 'lmms_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_task_file_is_a_task_or_a_group_of_them() -> None:
    from lmms_eval.tasks import TaskManager

    plugin.register()
    manager = TaskManager("ERROR", include_defaults=False)
    folder = plugin.tasks_folder()
    groups = {
        name: yaml.safe_load((folder / f"{name}.yaml").read_text())["task"]
        for name in ("vhead", "vhead_visual", "scenes")
    }
    members = [task for tasks in groups.values() for task in tasks]
    files = {path.stem for path in plugin.tasks_folder().glob("*.yaml")} - {"_template"}
    assert files == set(groups) | set(members) == set(manager.task_index)
    assert len(members) == len(set(members)) == 11


def test_chance_and_metric_in_the_task_files_are_those_of_the_data() -> None:
    from lmms_visual_heads.probe.documents import DATA_NAMES, PROBE_DATA, benchmark_facts

    for name in DATA_NAMES:
        task = f"{'vhead' if name in PROBE_DATA else 'scenes'}_{name}"
        text = (plugin.tasks_folder() / f"{task}.yaml").read_text()
        config = yaml.safe_load(text.replace("!function ", ""))
        facts = benchmark_facts(name)
        assert config["dataset_name"] == name
        assert config["metadata"]["primary_metric"] == facts.primary_metric
        assert config["metadata"]["chance"] == round(facts.chance, 4)
