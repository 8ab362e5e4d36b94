"""A run's folder: which configuration it belongs to, and whether the run is finished."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.errors import RunError
from nas_transfer.runs import Manifest, Result, files, read_manifest, read_result
from nas_transfer.stages.config.base import RunConfig

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # all 0 or unset in the process that writes


@dataclass(frozen=True)
class RunDirectory:
    """A folder that belongs to one configuration."""

    folder: Path

    def result(self) -> Result | None:
        """What a finished run wrote, None before that."""
        return read_result(self.folder)


def open_run(config: RunConfig, texts: Mapping[str, str]) -> RunDirectory:
    """Claim the run's folder, or find that it is this configuration's already.

    Args:
        texts: what a new run keeps of its configuration, by path in its folder.

    Raises:
        RunError: the folder holds another configuration's run or a result of unknown origin (nothing in it is changed),
            or any run with resume=never.
    """
    folder = config.folder
    manifest = read_manifest(folder)
    if manifest is not None:
        _check_same(folder, manifest.config, config.identity, config.resume)
        return RunDirectory(folder)
    if not is_main_process():
        return RunDirectory(folder)
    if (folder / files.RESULT).exists():
        raise RunError(
            f"{folder} holds {files.RESULT} without {files.RUN}, so that its origin is unknown: use another name=..."
        )
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    Manifest(config.config_sha256, started, tuple(sys.argv[1:]), config.identity).write(folder)
    return RunDirectory(folder)


def log_to(folder: Path) -> None:
    """Append this process's log to ``log.txt`` in the run's folder; done once the folder is known to be the run's."""
    handler = logging.FileHandler(folder / files.LOG)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s] %(message)s"))
    logging.getLogger().addHandler(handler)


def _check_same(folder: Path, theirs: Mapping[str, object], ours: Mapping[str, object], resume: str) -> None:
    for key in sorted(set(theirs) | set(ours)):
        if theirs.get(key) != ours.get(key):
            raise RunError(
                f"{folder} holds a run with {key}={theirs.get(key)} (now {ours.get(key)}): "
                "choose another name=... or leave name out"
            )
    if resume == "never" and is_main_process():
        raise RunError(f"{folder} holds a run, which resume=never forbids: use resume=auto or another name=...")


def is_main_process() -> bool:
    """Whether this is the only process or rank 0: Lightning's and SLURM's other ranks start with the same command."""
    return all(os.environ.get(variable, "0") == "0" for variable in RANKS)
