"""Resolve the value of ``arch`` on the command line: a reserved word, an arch file, or the name of one in a folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import ArchError
from nas_transfer.space import SearchSpace

ARCH_FILE_SUFFIXES = (".yaml", ".yml", ".json")
LARGEST = "max"
SMALLEST = "min"


def resolve_arch(text: str, space: SearchSpace, arch_folders: Sequence[Path]) -> ArchOrSupernet:
    """The arch that a text selects.

    Args:
        text: ``supernet``, ``max``, ``min``, the path of an existing .yaml, .yml or .json file, or a name that stands
            for ``<name>.yaml`` (or .yml, .json) in the first folder that contains such a file.
        space: the space that the arch must belong to.
        arch_folders: searched for named archs, in order.

    Returns:
        `SUPERNET` for ``supernet``, otherwise the arch.

    Raises:
        ArchError: there is no arch of that name or path, the file cannot be read, or the arch is not in the space.
    """
    if text == SUPERNET.value:
        return SUPERNET
    if text == LARGEST:
        return space.largest()
    if text == SMALLEST:
        return space.smallest()
    path = find_arch_file(text, arch_folders)
    try:
        content = path.read_text(encoding="utf-8")
        mapping = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (OSError, ValueError, yaml.YAMLError) as err:
        reason = " ".join(str(err).split())
        raise ArchError(f"the arch file {path} cannot be read: {reason}") from err
    try:
        return space.from_dict(mapping)
    except ArchError as err:
        raise ArchError(f"{err} (in {path})") from err


def is_arch_file(text: str) -> bool:
    """Whether a text selects an arch by a file rather than by a reserved word."""
    return text not in (SUPERNET.value, LARGEST, SMALLEST)


def find_arch_file(text: str, arch_folders: Sequence[Path]) -> Path:
    """The file that holds the arch of this path or name; see `resolve_arch`. ArchError if there is none."""
    path = Path(text)
    if path.suffix in ARCH_FILE_SUFFIXES and path.is_file():
        return path
    if text and path.name == text:
        for folder in arch_folders:
            for suffix in ARCH_FILE_SUFFIXES:
                candidate = folder / (text + suffix)
                if candidate.is_file():
                    return candidate
    if path.suffix in ARCH_FILE_SUFFIXES and path.name != text:
        raise ArchError(
            f"the arch file {path} does not exist: a finished search writes archs/picked.yaml and others to its folder"
        )
    known = [SUPERNET.value, LARGEST, SMALLEST, *known_arch_names(arch_folders)]
    nearest = difflib.get_close_matches(path.stem, known, n=5, cutoff=0.5)
    folders = ", ".join(str(folder) for folder in arch_folders) or "no folder"
    raise ArchError(
        f"arch must be 'supernet', 'max', 'min', an existing .yaml or .json file, or the name of an arch in "
        f"{folders}, got {text!r}: try {' or '.join(nearest or known)}"
    )


def known_arch_names(arch_folders: Sequence[Path]) -> list[str]:
    """The names of all arch files in these folders, sorted; missing folders are skipped."""
    return sorted(
        {
            path.stem
            for folder in arch_folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path.suffix in ARCH_FILE_SUFFIXES
        }
    )
