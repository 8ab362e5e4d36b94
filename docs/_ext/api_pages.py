"""The API reference: a page for each public package, with its `__all__`, and the modules that one extends."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from config_reference import REPOSITORY
from pages import code, prose, table, write_pages

PACKAGE = REPOSITORY / "nas_transfer"
MODULES = (
    "arch",
    "space",
    "arch_files",
    "errors",
    "supernet.protocol",
    "supernet.cost",
    "supernet.readers",
    "tasks.task",
    "tasks.deployed",
    "tasks.training",
    "tasks.recipe",
    "search.objectives.base",
    "search.samplers.base",
)
"""Modules that programs use or that an extension implements; a missing one is left out."""


def public_packages() -> list[str]:
    """All packages without an underscore, in the order of the layers, as dotted names."""
    order = ["", "runs", "data", "supernet", "tasks", "search", "deploy", "report", "stages"]
    folders = [path.parent for path in PACKAGE.rglob("__init__.py")]
    names = [folder.relative_to(PACKAGE).as_posix() for folder in folders]
    names = ["" if name == "." else name for name in names if not any(part[0] == "_" for part in name.split("/"))]
    known = {name: place for place, name in enumerate(order)}
    names.sort(key=lambda name: (known.get(name.split("/")[0], len(order)), name))
    return [".".join(["nas_transfer", *name.split("/")]).rstrip(".") for name in names]


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without importing the module."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def modules_of(package: str) -> Iterator[tuple[str, str]]:
    """Name and first docstring line of a package's own modules."""
    folder = REPOSITORY / package.replace(".", "/")
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("_"):
            yield path.stem, first_line(path)


def exports(package: str) -> list[str]:
    """A package's `__all__`, empty if it has none."""
    return list(getattr(importlib.import_module(package), "__all__", []))


def automodule(name: str, elsewhere: Sequence[str] = ()) -> str:
    """A module's docstring and its public members, without those that are documented elsewhere."""
    excluded = f"\n   :exclude-members: {', '.join(elsewhere)}" if elsewhere else ""
    return f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:{excluded}\n```\n"


def documented_elsewhere(
    package: str, exported: Sequence[str], seen: dict[int, str], modules: Sequence[str]
) -> list[str]:
    """The exported names whose object has its entry on the page of a module or of an earlier package."""
    found = []
    for name in exported:
        value = getattr(importlib.import_module(package), name)
        if getattr(value, "__module__", package) in modules or seen.setdefault(id(value), package) != package:
            found.append(name)
    return found


def render() -> dict[str, str]:
    """All pages by file name, with an index."""
    pages, rows = {}, []
    extended = [f"nas_transfer.{name}" for name in MODULES if (PACKAGE / f"{name.replace('.', '/')}.py").is_file()]
    seen: dict[int, str] = {}
    for package in public_packages():
        exported = exports(package)
        elsewhere = documented_elsewhere(package, exported, seen, extended)
        summary = first_line(REPOSITORY / package.replace(".", "/") / "__init__.py")
        lines = [f"# {package}", "", automodule(package, elsewhere) if exported else prose(summary), ""]
        modules = list(modules_of(package))
        if modules:
            lines += ["## Modules", "", table(["module", "holds"], ((code(n), prose(t)) for n, t in modules), [25, 75])]
        pages[f"{package}.md"] = "\n".join(lines)
        rows.append((f"[{package}]({package}.md)", prose(summary)))
    for module in extended:
        pages[f"{module}.md"] = f"# {module}\n\n{automodule(module)}"
    details = [
        (f"[{module}]({module}.md)", prose(first_line(REPOSITORY / f"{module.replace('.', '/')}.py")))
        for module in extended
    ]
    toctree = ["```{toctree}", ":hidden:", "", *(name.removesuffix(".md") for name in pages), "```", ""]
    index = [
        "# Python API",
        "",
        "The command line is the main interface. These are the packages behind it, and the modules that an extension",
        "uses.",
        "",
        "## Modules to build on",
        "",
        table(["module", "holds"], details, [35, 65]),
        "## Packages",
        "",
        table(["package", "holds"], rows, [35, 65]),
        *toctree,
    ]
    return {"index.md": "\n".join(index), **pages}


def write(app: object) -> None:
    """Write the pages before Sphinx looks for documents."""
    write_pages(REPOSITORY / "docs/reference/api", render())


def setup(app) -> dict[str, bool]:  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
