"""What a configuration that was read back from a run folder may name, so that it runs no code of strangers.

Classes are those that ``conf/`` names for networks and data, those that the command itself names, and those of the
modules under ``trust``. References lead to other keys, and in paths of data to environment variables.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from types import ModuleType
from typing import NoReturn

from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.config.factory import TARGET

FOLDERS = ("task", "supernet", "data", "recipe", "arch_sampling", "detector", "head")
"""Folders of ``conf/`` whose files make up the groups that are read back."""
ARGUMENTS, PARTIAL = "_args_", "_partial_"
DRAWING = "nas_transfer.data.synthetic.shapes.draw_shapes"
"""The only function among the targets; it writes files."""
DATA_PATHS = ("data.root", "data.sources.")
_NAMED = re.compile(rf"{TARGET}: *([\w.]+)")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_REFERENCE = re.compile(r"\$\{([^}]*)")
_KEY, _VARIABLE = re.compile(r"[\w.\[\]]+"), re.compile(r"oc\.env: *[\w.]+(, *[\w./~-]*)?")


@dataclass(frozen=True)
class Trust:
    """What the user vouches for.

    Attributes:
        modules: names of modules whose classes may be built.
        targets: classes that the command itself names.
    """

    modules: tuple[str, ...]
    targets: frozenset[str]


def trust_of(modules: object, composed: object) -> Trust:
    """The trust of a command.

    Args:
        modules: the value of the key ``trust``.
        composed: the groups that the command composed.

    Raises:
        ConfigError: a name that is not that of a module.
    """
    names = [modules] if isinstance(modules, str) else list(modules) if isinstance(modules, list) else []
    for name in names:
        if not _DOTTED.fullmatch(f"{name}._"):
            raise ConfigError(f"trust must name modules such as trust=[grades], got {name!r}")
    return Trust(tuple(map(str, names)), frozenset(str(node[TARGET]) for _, node in _targets(composed, "")))


def require_plain_values(content: object, file: Path) -> None:
    """Refuse other values than numbers and texts, and other references than to keys, before anything is resolved.

    Raises:
        ConfigError: it names the value.
    """
    for key, value in _values(content, ""):
        if isinstance(value, str):
            for reference in _REFERENCE.findall(value):
                of_path = key.startswith(DATA_PATHS) and _VARIABLE.fullmatch(reference)
                if "\\" in value or not (_KEY.fullmatch(reference) or of_path):
                    _refuse(f"{key} in {file} must be a plain value or refer to another key, got {value!r}")
        elif value is not None and not isinstance(value, int | float):
            _refuse(f"{key} in {file} must be a number or a text, got {type(value).__name__}")


def require_trusted(content: object, file: Path, trust: Trust) -> None:
    """Refuse every class that nobody vouches for, in a resolved configuration. Nothing else is imported.

    Raises:
        ConfigError: it names the class and says what to do.
    """
    for key, value in _values(content, ""):
        if "${" in str(value):
            _refuse(f"{key} in {file} must be a plain value, got {value!r}")
    questioned = []
    for path, node in _targets(content, ""):
        name = str(node[TARGET])
        if ARGUMENTS in node:
            _refuse(f"{path}.{ARGUMENTS} in {file} cannot be used")
        if name == DRAWING and not (path == "data.draw" and node.get(PARTIAL) is True and "root" not in node):
            _refuse(f"{path} in {file} must not draw a dataset elsewhere than in data.root")
        if name not in own_targets() | trust.targets:
            questioned.append((path, name))
    for path, name in questioned:  # names first: nothing is imported beside a name that is refused
        if not (_DOTTED.fullmatch(name) and any(name.startswith(f"{module}.") for module in trust.modules)):
            module = name.rpartition(".")[0] if _DOTTED.fullmatch(name) else "MODULE"
            raise ConfigError(
                f"{path}.{TARGET} in {file} names {name}, which is not part of this program: if you trust whoever "
                f"made the run, add trust=[{module}]"
            )
    for path, name in questioned:
        if not _defined_in(name, trust.modules):
            raise ConfigError(
                f"{path}.{TARGET} in {file} names {name}, which trust=[{','.join(trust.modules)}] does not define: "
                "name the module that does"
            )


def require_folder_name(name: object, key: str, file: Path) -> str:
    """A name that makes one folder below another; ConfigError for anything else, such as ``..``."""
    if isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\x00-\x1f]", name):
        return name
    _refuse(f"{key} in {file} must be the name of a folder, got {name!r}")


def _refuse(fault: str) -> NoReturn:
    raise ConfigError(f"{fault}: use the folder of another run")


def require_inside(content: object, file: Path) -> None:
    """Refuse sources of data that are not below ``data.root``, in a resolved configuration."""
    sources = content.get("sources") if isinstance(content, Mapping) else None
    for key, value in _values(sources, "data.sources"):
        text = str(value)
        if PurePath(text).is_absolute() or ".." in PurePath(text).parts:
            raise ConfigError(
                f"{key} in {file} must lie in data.root, got {text!r}: add {key}=... to the command, or leave "
                "data.root out"
            )


def require_drawn_nearby(data: object, file: Path) -> None:
    """Refuse to draw a dataset elsewhere than in the usual place, in resolved ``data``.

    That is below the working directory or ``$NAS_TRANSFER_DATA``; a dataset that was drawn earlier can be anywhere.
    """
    if not isinstance(data, Mapping) or data.get("draw") is None:
        return
    root = os.path.abspath(os.path.expanduser(str(data.get("root"))))
    usual = [os.getcwd(), *filter(None, [os.environ.get("NAS_TRANSFER_DATA")])]
    if any(root.startswith(os.path.join(os.path.abspath(folder), "")) for folder in usual):
        return
    if not os.path.isdir(root) or not os.listdir(root):
        raise ConfigError(
            f"data.root in {file} is {root}, where no dataset is: add data.root=FOLDER, where it is or where it may be "
            "drawn"
        )


@cache
def own_targets() -> frozenset[str]:
    """The classes that ``conf/`` names for networks and data."""
    files = [file for folder in FOLDERS for file in (conf_dir() / folder).rglob("*.yaml")]
    return frozenset(name for file in files for name in _NAMED.findall(file.read_text(encoding="utf-8")))


def _defined_in(name: str, modules: Collection[str]) -> bool:
    """Whether a trusted module defines this name itself, instead of importing it. Imports trusted modules alone."""
    module = next(module for module in modules if name.startswith(f"{module}."))
    try:
        found: object = importlib.import_module(module)
        for part in name[len(module) + 1 :].split("."):
            inner = f"{found.__name__}.{part}" if isinstance(found, ModuleType) else ""
            if inner and not hasattr(found, part):
                importlib.import_module(inner)
            found = getattr(found, part)
            home = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
            if not (home == module or str(home).startswith(f"{module}.")):
                return False
    except (ImportError, AttributeError):
        return False
    return callable(found)


def _targets(node: object, path: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Each mapping with a target, with its dotted key."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield path, node
        for name, child in node.items():
            yield from _targets(child, f"{path}.{name}" if path else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{path}[{index}]")


def _values(node: object, path: str) -> Iterator[tuple[str, object]]:
    """Each value that is no mapping and no list, and the name of each key, with its dotted key."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            inner = f"{path}.{name}" if path else str(name)
            yield inner, name
            yield from _values(child, inner)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _values(child, f"{path}[{index}]")
    else:
        yield path, node
