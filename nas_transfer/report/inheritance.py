"""What runs inherited: the files that their weights descend from, who made these and under which licence."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_transfer.report.collect import WARM_START_FILE, WEIGHTS_FILE, Run

ENTRIES = ("file", "sha256", "format", "licence", "stage", "task", "config_sha256")


@dataclass(frozen=True)
class Ancestor:
    """A file that weights descend from.

    Attributes:
        file: where it lay.
        sha256: of its content.
        format: of its layout.
        licence: of public weights, empty for the program's own.
        stage: that trained it, empty for public weights.
        counted_in: the run among the reported ones that made it, None if its cost is not theirs.
        heirs: the runs that descend from it.
    """

    file: str
    sha256: str
    format: str
    licence: str
    stage: str
    counted_in: Path | None
    heirs: tuple[Path, ...]


def ancestors(runs: Sequence[Run]) -> tuple[list[Ancestor], list[tuple[Path, str]]]:
    """Every file that the runs' weights descend from, and (file, reason) of the weights that cannot be read."""
    made = {digest: run.folder for digest, run in runs_by_digest(runs).items()}
    entries: dict[str, dict[str, str]] = {}
    heirs: dict[str, list[Path]] = {}
    unread: list[tuple[Path, str]] = []
    for run in runs:
        for name in (WEIGHTS_FILE, WARM_START_FILE):
            path = run.folder / name
            if not path.is_file():
                continue
            try:
                chain = read_provenance(path)
            except ValueError as error:
                unread.append((path, str(error)))
                continue
            for entry in chain:
                key = entry["sha256"] or entry["file"]
                entries.setdefault(key, entry)
                heirs.setdefault(key, []).append(run.folder)
    found = [
        Ancestor(
            entry["file"], entry["sha256"], entry["format"], entry["licence"], entry["stage"],
            made.get(entry["config_sha256"]) if entry["config_sha256"] else None, tuple(heirs[key]),
        )
        for key, entry in entries.items()
    ]  # fmt: skip
    return found, unread


def runs_by_digest(runs: Sequence[Run]) -> dict[str, Run]:
    """Finished runs by the hash of their configuration."""
    return {
        str(run.manifest["config_sha256"]): run
        for run in runs
        if run.result is not None and run.manifest.get("config_sha256")
    }


def read_provenance(path: Path) -> list[dict[str, str]]:
    """The chain of files, oldest first, that weights descend from; the tensors stay on disk.

    Raises:
        ValueError: the file cannot be read, or holds no such chain.
    """
    import torch  # here: a report without weights needs none

    try:
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot be read: {str(error).strip().splitlines()[0][:200]}") from error
    chain = content.get("provenance") if isinstance(content, dict) else None
    if not isinstance(chain, list) or not all(isinstance(entry, dict) for entry in chain):
        raise ValueError("holds no provenance")
    return [{key: str(entry.get(key) or "") for key in ENTRIES} for entry in chain]
