"""Imports follow the direction in which data flows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nas_transfer"
LAYERS = {
    "errors": 0, "paths": 1, "runs": 2, "space": 3, "arch_files": 4, "data": 5, "supernet": 5, "tasks": 6, "search": 7,
    "deploy": 8, "report": 9, "stages": 10, "sweeper": 11, "cli": 12, "__main__": 13, "__version__": -1,
}  # fmt: skip
MAY_KNOW_HYDRA = {"cli", "sweeper", "stages", "__main__"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "nas_transfer":  # the part stands after `import`
                names |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                names.add(module)
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(part: str, modules: set[str]) -> list[str]:
    found = []
    for module in modules:
        head, *rest = module.split(".")
        if head in ("hydra", "omegaconf") and part not in MAY_KNOW_HYDRA:
            found.append(f"{part} imports {module}")
        if head != "nas_transfer" or not rest:
            continue
        other = rest[0]
        if other != part and LAYERS[other] >= LAYERS[part]:
            found.append(f"{part} imports {module}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_layers_below_its_own(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert imported_modules(path) == set()
    else:
        assert violations(part, imported_modules(path)) == []


def test_the_check_finds_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "sly.py").write_text("from nas_transfer import stages\n")
    assert violations("tasks", imported_modules(tmp_path / "sly.py"))
    assert violations("data", {"nas_transfer.supernet.cost"})
    assert violations("tasks", {"nas_transfer.stages.common.build"})
    assert violations("tasks", {"omegaconf"})
    assert violations("space", {"nas_transfer.arch_files"})
    assert not violations("stages", {"hydra", "nas_transfer.tasks.task", "nas_transfer.runs.result"})


@pytest.mark.parametrize(
    "module",
    [
        "space",
        "arch_files",
        "supernet.mbconv.table",
        "supernet.cost",
        "cli",
        "stages.common.run_directory",
        "runs.result",
        "report.page",
    ],
)
def test_a_light_module_does_not_load_torch(module: str) -> None:
    code = f"import sys, nas_transfer.{module}; sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
