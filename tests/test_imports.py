"""Imports follow the direction in which data flows."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nas_transfer"
LAYERS = {
    "errors": 0, "ranges": 0,
    "paths": 1, "runs": 2, "arch": 3, "space": 4, "arch_files": 5, "data": 6, "supernet": 6, "tasks": 7, "search": 8,
    "deploy": 9, "report": 10, "stages": 11, "sweeper": 12, "cli": 13, "api": 14, "__main__": 14, "__version__": -1,
}  # fmt: skip
MAY_KNOW_HYDRA = {"api", "cli", "sweeper", "stages", "__main__"}
DOOR = {"nas_transfer.api.network", "nas_transfer.api.running"}
"""What the package gives by name, imported when it is first asked for."""
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


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path) -> dict[str, set[str]]:
    """The modules of a package that each of them imports, inside functions and under TYPE_CHECKING too."""
    files = {module_name(path, root): path for path in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= members & files.keys()
                if members - files.keys():  # something that the module itself defines
                    imported.add(node.module)
        graph[name] = imported & files.keys()
    return graph


def cycles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The sets of nodes that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        stack, seen = list(graph[start]), set()
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack += graph.get(node, ())
        reached[start] = seen
    return {
        frozenset(other for other in reached[node] if node in reached.get(other, ()))
        for node in graph
        if node in reached[node]
    }


def contracted(graph: Mapping[str, set[str]], prefix: str) -> dict[str, set[str]]:
    """The graph of a package's direct children, each of which stands for all modules in it."""

    def child(name: str) -> str:
        return ".".join(name.split(".")[: prefix.count(".") + 2])

    found: dict[str, set[str]] = {}
    for name, imported in graph.items():
        if name.startswith(f"{prefix}."):
            others = {child(other) for other in imported if other.startswith(f"{prefix}.")}
            found.setdefault(child(name), set()).update(others - {child(name)})
    return found


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
        assert {name for name in imported_modules(path) if name.startswith("nas_transfer")} <= DOOR
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


def test_no_module_imports_itself_through_others() -> None:
    assert cycles(import_graph(PACKAGE)) == set()


def test_no_part_of_the_supernets_imports_itself_through_others() -> None:
    graph = contracted(import_graph(PACKAGE), "nas_transfer.supernet")
    assert {f"nas_transfer.supernet.{name}" for name in ("mbconv", "weights", "networks")} <= graph.keys()
    assert cycles(graph) == set()


def test_the_graph_counts_lazy_imports_and_finds_cycles(tmp_path: Path) -> None:
    root = tmp_path / "nas_transfer"
    (root / "part").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "part" / "__init__.py").write_text("from nas_transfer.part.a import A\n")
    (root / "part" / "a.py").write_text("def run():\n    from nas_transfer.part import b\n")
    (root / "part" / "b.py").write_text("if TYPE_CHECKING:\n    import nas_transfer.part.a\n")
    (root / "part" / "c.py").write_text("from nas_transfer.part import A\n")
    graph = import_graph(root)
    assert graph["nas_transfer.part.c"] == {"nas_transfer.part"}
    assert cycles(graph) == {frozenset({"nas_transfer.part.a", "nas_transfer.part.b"})}


@pytest.mark.parametrize(
    "module",
    [
        "space",
        "arch_files",
        "supernet",
        "supernet.mbconv",
        "supernet.shufflenet",
        "supernet.resnet",
        "supernet.convnext",
        "supernet.weights.layout",
        "supernet.cost",
        "cli",
        "stages.common.run_directory",
        "stages.config.entry",
        "runs.result",
        "report.page",
    ],
)
def test_a_light_module_does_not_load_torch(module: str) -> None:
    code = f"import sys, nas_transfer.{module}; sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
