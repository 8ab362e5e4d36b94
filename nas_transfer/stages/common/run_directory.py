"""The folder of a run: the configuration it belongs to, and whether the run is finished."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.errors import RunError
from nas_transfer.runs import Manifest, Result, files, next_aside, read_manifest, read_result, require_same_files
from nas_transfer.runs.atomic import write_text
from nas_transfer.runs.lock import run_lock
from nas_transfer.runs.reading import START_ANEW, holds_tensors, is_present
from nas_transfer.stages.config.base import RunConfig

logger = logging.getLogger(__name__)

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # all 0 or unset in the process that writes


@dataclass(frozen=True)
class RunDirectory:
    """A folder that belongs to one configuration."""

    folder: Path

    def result(self) -> Result | None:
        """The result of a finished run; None if it is unfinished.

        Raises:
            RunError: the result cannot be read, or the weights of a finished training are missing or damaged.
        """
        result = read_result(self.folder)
        weights = self.folder / files.WEIGHTS
        if result is not None and result.samples_digest and not holds_tensors(weights):
            raise RunError(
                f"{weights} is missing or damaged, although the run is finished: delete {self.folder / files.RESULT} "
                "to go on from the last checkpoint, or use another name=..."
            )
        return result


def open_run(config: RunConfig, texts: Mapping[str, str]) -> RunDirectory:
    """Create the folder of a run, or open it if it belongs to the same configuration.

    Args:
        texts: the configuration files of a new run, by path in its folder.

    Raises:
        RunError: the folder holds a run of another configuration, or a result of unknown origin, or files
            that the run has read have changed. Nothing in it is changed.
    """
    folder = config.folder
    manifest = read_manifest(folder)
    if manifest is not None:
        _check_same(folder, manifest.config, config.identity)
        require_same_files(folder)
        if is_main_process():
            _write_texts(folder, {path: text for path, text in texts.items() if _is_lost(folder / path)})
        return RunDirectory(folder)
    if not is_main_process():
        return RunDirectory(folder)
    if (work := files.work_in(folder)) is not None:
        raise RunError(f"{folder} must be the folder of a run, got {work} without {files.RUN}: {START_ANEW}")
    _write_texts(folder, texts)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    Manifest(config.config_sha256, started, tuple(sys.argv[1:]), config.identity).write(folder)
    return RunDirectory(folder)


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    for path, text in texts.items():
        write_text(folder / path, text)


def _is_lost(path: Path) -> bool:
    """Whether one of a run's configuration files is missing or empty, as a crash may leave it."""
    return not is_present(path) or path.stat().st_size == 0


def set_aside(folder: Path) -> None:
    """Rename the folder of an earlier run to NAME.1, NAME.2 and so on; a folder without a run is left as it is.

    Raises:
        RunError: another process runs in it.
    """
    if not (folder / files.RUN).exists() and files.work_in(folder) is None:
        return
    with run_lock(folder):
        aside = next_aside(folder)
        folder.rename(aside)
    logger.info("the earlier run is kept in %s", aside)


def log_to(folder: Path) -> None:
    """Append the log of this process to ``log.txt`` in the folder of its run."""
    handler = logging.FileHandler(folder / files.LOG)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s] %(message)s"))
    logging.getLogger().addHandler(handler)


def _check_same(folder: Path, theirs: Mapping[str, object], ours: Mapping[str, object]) -> None:
    for key in sorted(set(theirs) | set(ours)):
        if theirs.get(key) != ours.get(key):
            raise RunError(
                f"{folder} holds a run with {key}={theirs.get(key)} (now {ours.get(key)}): "
                "use another name=... or remove name from the command"
            )


def is_main_process() -> bool:
    """Whether this is the only process or rank 0: Lightning's and SLURM's other ranks start with the same command."""
    return all(os.environ.get(variable, "0") == "0" for variable in RANKS)
