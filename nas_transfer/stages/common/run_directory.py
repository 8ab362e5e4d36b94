"""A run's folder: which configuration it belongs to, and whether the run is finished."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_transfer.errors import RunError
from nas_transfer.runs.result import RESULT_FILE, RUN_FILE, write_json_atomically
from nas_transfer.stages.config.base import RunConfig

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # all 0 or unset in the process that writes


@dataclass(frozen=True)
class RunDirectory:
    """A folder that belongs to one configuration."""

    folder: Path

    def result(self) -> dict[str, Any] | None:
        """What a finished run wrote, None before that."""
        path = self.folder / RESULT_FILE
        return json.loads(path.read_text()) if path.is_file() else None


def open_run(config: RunConfig, files: Mapping[str, str]) -> RunDirectory:
    """Claim the run's folder, or find that it is this configuration's already.

    Args:
        files: texts that a new run keeps of its configuration in ``.hydra``, by file name.

    Raises:
        RunError: the folder holds another configuration's run or a result of unknown origin (nothing in it is changed),
            or any run with resume=never.
    """
    folder = config.folder
    path = folder / RUN_FILE
    if path.is_file():
        _check_same(folder, json.loads(path.read_text()).get("config", {}), config.identity, config.resume)
        return RunDirectory(folder)
    if not _is_main_process():
        return RunDirectory(folder)
    if (folder / RESULT_FILE).exists():
        raise RunError(f"{folder} holds {RESULT_FILE} without {RUN_FILE}, so that its origin is unknown: use name=...")
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / ".hydra" / name).write_text(text)
    content = {
        "config_sha256": config.config_sha256,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv[1:],
        "config": config.identity,
    }
    write_json_atomically(path, content)
    return RunDirectory(folder)


def log_to(folder: Path) -> None:
    """Append this process's log to ``log.txt`` in the run's folder; done once the folder is known to be the run's."""
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s] %(message)s"))
    logging.getLogger().addHandler(handler)


def _check_same(folder: Path, theirs: Mapping[str, object], ours: Mapping[str, object], resume: str) -> None:
    for key in sorted(set(theirs) | set(ours)):
        if theirs.get(key) != ours.get(key):
            raise RunError(
                f"{folder} holds a run with {key}={theirs.get(key)} (now {ours.get(key)}): "
                "choose another name=... or leave name out"
            )
    if resume == "never" and _is_main_process():
        raise RunError(f"{folder} holds a run, which resume=never forbids: use resume=auto or another name=...")


def _is_main_process() -> bool:
    """Whether this is the only process or rank 0: Lightning's and SLURM's other ranks start with the same command."""
    return all(os.environ.get(variable, "0") == "0" for variable in RANKS)
