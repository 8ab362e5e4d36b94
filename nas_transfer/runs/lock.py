"""Locks of a run folder: one process at a time runs a stage in it, and one at a time asks for a trial."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas_transfer.errors import BusyError, RunError
from nas_transfer.runs import files
from nas_transfer.runs.atomic import sweep

logger = logging.getLogger(__name__)

_THREADS = threading.Lock()
"""Held with every `short_lock`: locks of the operating system do not exclude threads of one process."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder, and remove what killed processes were writing in it. The folder is made if it is missing.

    The operating system releases the lock when this process ends. Processes that it starts do not hold it.

    Raises:
        BusyError: another process holds the lock.
        RunError: the folder cannot be written, or it holds what is neither a file nor a folder.
    """
    path = folder / files.LOCK
    _refuse_pipes(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): use another runs=... or name=...") from error
    with stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise _busy(folder) from error
        except OSError as error:  # the file system knows no locks
            logger.warning("%s cannot be locked (%s): run only one command in it at a time", folder, error)
        if not _is_same_file(stream.fileno(), path):  # the folder was renamed meanwhile, by a start with resume=never
            raise _busy(folder)
        sweep(folder.rglob(".*"))
        yield


def is_running(folder: Path) -> bool:
    """Whether another process of this machine runs a stage in a run folder."""
    path = folder / files.LOCK
    if not path.is_file():
        return False
    try:
        with path.open("a") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return os.access(path, os.W_OK)  # otherwise it is a folder of someone else, whose lock cannot be tried
    except OSError:  # the file system knows no locks
        return False
    return False


@contextmanager
def short_lock(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, and hold it until the block ends. It excludes processes and threads.

    The operating system releases the lock when this process dies.

    Raises:
        RunError: the file system knows no locks.
    """
    with _THREADS, path.open("a") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise RunError(
                f"{path} cannot be locked ({error.strerror}), and workers need locks: put the run on another file "
                "system, or leave search.workers out"
            ) from error
        yield


def _refuse_pipes(folder: Path) -> None:
    """Raise RunError for a pipe, a device or a socket in a run folder: opening one may wait for ever."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            mode = path.stat().st_mode
        except OSError:  # a link to nothing, or a file that another process has removed
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise RunError(f"{path} is neither a file nor a folder: remove it, or use another name=...")


def _busy(folder: Path) -> BusyError:
    return BusyError(f"another process runs in {folder}: wait until it ends, or choose another name=...")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
