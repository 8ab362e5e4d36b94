"""Run a stage from Python, and read what it left as records.

A stage runs in a process of its own, exactly as from the command line, so that the global state of Hydra and torch, the
threads and the memory of the calling program stay as they are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from nas_transfer import cli
from nas_transfer.errors import ConfigError, NasTransferError, RunError
from nas_transfer.paths import PACKAGE, conf_dir
from nas_transfer.runs import Analysis, Check, Front, Result, files, read_analysis, read_check, read_front, read_result

ERROR = "error: "
MOST_LETTERS = 4000
"""Largest number of characters of a traceback that an error quotes."""


@dataclass(frozen=True)
class Run:
    """A run folder, with the content of its files as records.

    Attributes:
        folder: folder of the run.
    """

    folder: Path

    @property
    def result(self) -> Result:
        """The content of ``result.json``: score, metrics, costs, time.

        Raises:
            RunError: the run is not finished, or its stage writes no result.
        """
        result = read_result(self.folder)
        if result is None:
            raise RunError(
                f"{self.folder / files.RESULT} does not exist: the run is unfinished, or its stage writes no result"
            )
        return result

    @property
    def analysis(self) -> Analysis:
        """What the net of a training or an evaluation is good at: classes, curves, confusions, worst images.

        Raises:
            RunError: the run has no analysis: it is unfinished, of a supernet, or of another stage.
        """
        analysis = read_analysis(self.folder)
        if analysis is None:
            raise RunError(f"{self.folder / files.ANALYSIS} does not exist: finetune or evaluate one arch to get it")
        return analysis

    @property
    def front(self) -> Front:
        """The front of a search; RunError for the run of another stage."""
        return read_front(self.folder)

    @property
    def check(self) -> Check:
        """The findings of ``stage=check``; RunError for the run of another stage."""
        return read_check(self.folder)


def run(*overrides: str, quiet: bool = False) -> Run:
    """Run one stage as ``python -m nas_transfer`` does, and wait for it.

    A finished run is not repeated, and an interrupted one continues.

    Args:
        overrides: arguments of the command line, such as ``"stage=proxy"`` and ``"task=small_det"``.
        quiet: whether to hide what the stage prints.

    Returns:
        The run folder with its records.

    Raises:
        NasTransferError: the sentence that the command line would end with.
        RuntimeError: the stage ended with a traceback, which is quoted.
    """
    folder = run_folder(overrides)
    command = [sys.executable, "-m", "nas_transfer", *overrides]
    paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        code = _follow(process, quiet)
        errors.seek(0)
        text = errors.read()
    if code == cli.EXIT_BAD_INPUT and ERROR in text:
        raise NasTransferError(text.rpartition(ERROR)[2].strip())
    if code:
        raise RuntimeError(f"{' '.join(command[1:])} ended with exit code {code}:\n{text[-MOST_LETTERS:]}")
    return Run(folder)


def _follow(process: subprocess.Popen[str], quiet: bool) -> int:
    """Print what a process prints until it ends; its exit code. Ctrl-C is passed on to it."""
    try:
        for line in process.stdout or ():
            if not quiet:
                print(line, end="")
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def run_folder(overrides: Sequence[str]) -> Path:
    """The folder of the run with these arguments of the command line.

    Raises:
        ConfigError: a flag, or an argument that the configuration does not take.
    """
    flags = [override for override in overrides if override.startswith("-")]
    if flags:
        raise ConfigError(f"run takes overrides such as 'stage=proxy', got the flag {flags[0]}: use the command line")
    return Path(str(composed(overrides).run_dir))


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration with these arguments of the command line; ConfigError where it does not take one."""
    with cli.sentences(overrides), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


def front(folder: str | Path) -> Front:
    """The trials that a search left in its run folder; `Front.rows` gives them as a list of plain dicts.

    Raises:
        RunError: there is no front, or it cannot be used.
    """
    return read_front(Path(folder))
