"""The structure holds: import direction, light imports, module sizes, the README's tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lmms_visual_heads"
README = PACKAGE.parent / "README.md"
SHARED = {"errors", "schema", "names", ""}
MAY_IMPORT = {
    "capture": set(),
    "statistics": set(),
    "geometry": set(),
    "checkpoints": {"capture", "statistics", "geometry"},
    "scenes": set(),
    "tables": set(),
    "features": {"tables"},
    "prediction": {"features", "tables"},
    "report": {"prediction", "features", "tables"},
    "harness": {"capture", "statistics", "geometry", "checkpoints", "scenes", "tables"},
    "cli": {
        "capture", "statistics", "geometry", "checkpoints", "scenes", "tables",
        "features", "prediction", "report", "harness", "demo",
    },
}  # fmt: skip
RIGHT_SIDE = ("tables", "features", "prediction", "report")


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "checkpoints_data" not in p.parts)


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem.replace("__init__", "")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = (
                [node.module or ""]
                if node.module != "lmms_visual_heads"
                else [f"lmms_visual_heads.{alias.name}" for alias in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("lmms_visual_heads."):
                found.add(name.split(".")[1])
    return found - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_data_flow(path: Path) -> None:
    own = room(path)
    if own in SHARED:
        assert imported_rooms(path) <= {"errors", "schema", "names"}
        return
    assert imported_rooms(path) <= MAY_IMPORT[own] | {own, "errors", "schema", "names"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_is_over_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_stands_in_the_readme_tree(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    name = path.name if path.name != "__init__.py" else f"{path.parent.name}/"
    assert name in README.read_text().split("## The tree", 1)[1].split("\n## ", 1)[0]


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_and_its_command_are_light_to_import() -> None:
    assert not {"torch", "pandas", "sklearn", "transformers", "matplotlib"} & loaded_after(
        "import lmms_visual_heads.cli"
    )


def test_the_right_side_never_loads_torch() -> None:
    names = [
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts)
        for r in RIGHT_SIDE
        for p in (PACKAGE / r).rglob("*.py")
    ]
    loaded = loaded_after("\n".join(f"import {n.removesuffix('.__init__')}" for n in names))
    assert not {"torch", "transformers", "lmms_eval"} & loaded


def test_only_the_harness_knows_lmms_eval() -> None:
    for path in modules():
        if room(path) == "harness":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not any(n.split(".")[0] in ("lmms_eval", "lm_eval") for n in names), path
