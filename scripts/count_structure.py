"""Count what makes the code easy or hard to read: sizes, types, configuration and run files.

python scripts/count_structure.py [docs/reference/structure.txt]      prints the counts, and writes them to the file
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "nas_transfer"
READS_HYDRA = ("cli.py", "sweeper.py", "stages/config/", "stages/common/ray_jobs.py")
"""Where Hydra's own objects are read, its plugins included; elsewhere only a stage's entry takes one."""
ENTRY = "run"
MOST_PARAMETERS = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print the counts, and write them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    file = parser.parse_args().file
    text = "\n".join(f"{name:<58}{value}" for name, value in counts()) + "\n"
    print(text, end="")
    if file is not None:
        file.write_text(text)


def counts() -> list[tuple[str, str]]:
    """Each count with its name."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    functions = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, Function)]
    lengths = [node.end_lineno - node.lineno + 1 for _, node in functions if node.end_lineno is not None]
    lines = {path: len(path.read_text().splitlines()) for path in trees}
    return [
        ("files", str(len(trees))),
        ("lines", str(sum(lines.values()))),
        ("lines of the longest file", f"{max(lines.values())} ({_name(max(lines, key=lambda path: lines[path]))})"),
        ("functions", str(len(functions))),
        ("lines of a function, median", f"{statistics.median(lengths):g}"),
        ("lines of the longest function", str(max(lengths))),
        ("functions below a stage's entry with a DictConfig", _listed(configured(functions))),
        ("uses of Any", str(sum(uses_of_any(tree) for tree in trees.values()))),
        ("files outside runs/ that name a file of a run folder", _listed(naming_run_files(trees))),
        ("constructors with more than 10 parameters", _listed(long_constructors(trees))),
    ]


def _listed(names: list[str]) -> str:
    return f"{len(names)}{': ' if names else ''}{', '.join(names)}"


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def configured(functions: list[tuple[Path, Function]]) -> list[str]:
    """Functions with a parameter of type DictConfig that are neither a stage's entry nor part of reading."""
    found = []
    for path, node in functions:
        name = _name(path)
        is_entry = name.startswith("stages/") and name.count("/") == 1 and node.name == ENTRY
        if is_entry or name.startswith(READS_HYDRA):
            continue
        if any("DictConfig" in ast.unparse(argument.annotation) for argument in arguments(node) if argument.annotation):
            found.append(f"{name}:{node.name}")
    return found


def arguments(node: Function) -> list[ast.arg]:
    """All parameters of a function."""
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def uses_of_any(tree: ast.AST) -> int:
    """How often the name `Any` is used, imports aside."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def run_file_names() -> set[str]:
    """The names that nas_transfer/runs/files.py gives, as far as they are unmistakable."""
    tree = ast.parse((PACKAGE / "runs" / "files.py").read_text())
    names = set()
    for statement in tree.body:
        for node in ast.walk(statement) if isinstance(statement, ast.Assign) else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return {name for name in names if "." in name.strip(".") and not name.startswith("/")}


def naming_run_files(trees: dict[Path, ast.Module]) -> list[str]:
    """Files outside runs/ with such a name in a string that is no docstring and no message."""
    names = run_file_names()
    return [
        _name(path)
        for path, tree in trees.items()
        if not _name(path).startswith("runs/") and any(text in names for text in strings(tree))
    ]


def strings(tree: ast.Module) -> Iterator[str]:
    """Every string that stands alone in code or ends a path; docstrings are statements of their own."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value.rpartition("/")[2]


def long_constructors(trees: dict[Path, ast.Module]) -> list[str]:
    """Classes whose `__init__` takes more than ten parameters; a dataclass has no written one."""
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found += [
                    f"{_name(path)}:{node.name}"
                    for method in node.body
                    if isinstance(method, Function) and method.name == "__init__"
                    if len(arguments(method)) - 1 > MOST_PARAMETERS
                ]
    return found


if __name__ == "__main__":
    main()
