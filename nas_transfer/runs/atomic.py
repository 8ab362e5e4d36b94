"""Atomic writing: a file is either the old one or the whole new one, also after a crash."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "unknown"
_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>\d+){re.escape(_SUFFIX)}")
ABANDONED_SECONDS = 24 * 3600
"""Age from which a temporary file of another machine counts as abandoned."""


def temporary_beside(path: Path) -> Path:
    """A path in the same folder. Its name says which process writes it, so that `sweep` knows when it is abandoned."""
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}{_SUFFIX}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block ends without an exception.

    The folder is made if it is missing. After an exception the temporary file is removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        _write_through(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_through(path: Path) -> None:
    """Make sure that a file is on disk before it replaces another one, so that no crash leaves half of it."""
    if path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(paths: Iterator[Path]) -> None:
    """Remove the abandoned ones of these paths: temporary files and folders whose process has ended.

    This process must not be writing any of them.
    """
    for path in paths:
        named = _TEMPORARY.fullmatch(path.name)
        if named is None or not _is_abandoned(path, named["host"], int(named["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path, host: str, process: int) -> bool:
    if host == _HOST:
        return process == os.getpid() or not _runs(process)
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
