"""The structure holds: import direction, light imports, module sizes; nothing knows the laboratory."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.paths import ROOT

PACKAGE = ROOT / "lmms_visual_heads"
LAB = ROOT / "lab"
SHARED = {"errors", "schema", "names", ""}
LEFT_SIDE = {"capture", "statistics", "geometry", "checkpoints", "probe"}
MAY_IMPORT = {
    "capture": set(),
    "statistics": set(),
    "geometry": set(),
    "checkpoints": {"capture", "statistics", "geometry"},
    "probe": set(),
    "tables": set(),
    "features": {"tables"},
    "prediction": {"features", "tables"},
    "report": {"prediction", "features", "tables"},
    "harness": LEFT_SIDE | {"tables"},
    "demo": LEFT_SIDE | {"tables", "features", "prediction", "report", "harness"},
    "cli": LEFT_SIDE | {"tables", "features", "prediction", "report", "harness", "demo"},
}
"""Room -> rooms that it may import, beside errors, schema and names."""
RIGHT_SIDE = ("tables", "features", "prediction", "report")


def modules(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem.replace("__init__", "")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, by its full name; of `from a import b` both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the rooms"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported_rooms(path: Path) -> set[str]:
    inside = (name.split(".") for name in imported(path))
    found = {parts[1] for parts in inside if parts[0] == "lmms_visual_heads" and len(parts) > 1}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_follow_the_data_flow(path: Path) -> None:
    own = room(path)
    if own in SHARED:
        assert imported_rooms(path) <= SHARED
        return
    assert imported_rooms(path) <= MAY_IMPORT[own] | {own} | SHARED


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_of_the_product_knows_the_laboratory_or_the_tests(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"lab", "tests"}


@pytest.mark.parametrize("path", [*modules(), *modules(LAB)], ids=name_of)
def test_no_module_is_over_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_every_room_is_declared() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(MAY_IMPORT)


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_package_and_its_command_are_light_to_import() -> None:
    assert not {"torch", "pandas", "sklearn", "transformers", "matplotlib"} & loaded_after(
        "import lmms_visual_heads.cli"
    )


def test_the_right_side_never_loads_torch() -> None:
    names = [name_of(path) for of in RIGHT_SIDE for path in modules(PACKAGE / of)]
    assert not {"torch", "transformers", "lmms_eval"} & loaded_after("\n".join(f"import {name}" for name in names))


def test_only_the_harness_knows_lmms_eval() -> None:
    for path in modules():
        if room(path) != "harness":
            assert not {name.split(".")[0] for name in imported(path)} & {"lmms_eval", "lm_eval"}, path


@pytest.mark.parametrize("module", ["lmms_visual_heads.cli.fit", "lab.study.run"])
def test_a_deprecated_name_in_our_own_code_is_an_error(module: str) -> None:
    """As pyproject.toml has it; in other code it is a warning."""
    code = "import warnings; warnings.warn('old name', DeprecationWarning, stacklevel=1)"
    with pytest.raises(DeprecationWarning, match="old name"):
        exec(code, {"__name__": module})
    with pytest.warns(DeprecationWarning, match="old name"):
        exec(code, {"__name__": "elsewhere"})


def imports_of(folder: Path) -> dict[str, set[str]]:
    """Module -> modules of the same tree that it imports, at the top, under TYPE_CHECKING or inside a function."""
    names = {name_of(path): path for path in modules(folder)}
    graph = {}
    for name, path in names.items():
        wanted = imported(path)
        # `from a import b` names a as well as a.b: the package itself counts only where it is asked for its own names.
        inside = {
            one
            for one in wanted
            if one in names and not any(other in names and other.startswith(f"{one}.") for other in wanted)
        }
        graph[name] = inside - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    reached: dict[str, set[str]] = {}

    def reach(start: str) -> set[str]:
        if start not in reached:
            seen, waiting = set(), [start]
            while waiting:
                for other in graph[waiting.pop()] - seen:
                    seen.add(other)
                    waiting.append(other)
            reached[start] = seen
        return reached[start]

    groups = {
        frozenset(other for other in reach(name) if name in reach(other)) for name in graph if name in reach(name)
    }
    return sorted(sorted(group) for group in groups)


CIRCLES_LEFT = [
    ["lab.capture_cost.real_shapes", "lab.capture_cost.run"],
    ["lab.score_matrix.page", "lab.score_matrix.score_matrix"],
]
"""Must only shrink."""


@pytest.mark.parametrize("folder", [PACKAGE, LAB], ids=["product", "laboratory"])
def test_no_module_imports_itself_through_others(folder: Path) -> None:
    assert [group for group in circles(imports_of(folder)) if group not in CIRCLES_LEFT] == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in [*modules(), *modules(LAB)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1 and name != "Training"} == {}
