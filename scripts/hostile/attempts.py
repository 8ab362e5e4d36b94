"""Commands of the program in forked processes, and the verdict on how each one ended."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

HANG_SECONDS = 900.0
"""After which a command counts as hanging: more than a hundred times what it takes."""
MORE_BYTES = 8 << 30
"""Memory that a command may use beyond that of the campaign."""
BAD_INPUT = 2


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, None for a hang, and what it printed."""

    code: int | None
    output: str
    errors: str


def run_command(
    folder: Path,
    arguments: Collection[str],
    *,
    kill_after: float | None = None,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """Run the program in a fork of this process, which has imported torch: that saves seconds.

    Args:
        folder: where it runs.
        kill_after: seconds after which it gets SIGKILL; None for never.
        prepare: called in the fork before the program.
    """
    streams = [folder / name for name in (".stdout", ".stderr")]
    for stream in streams:
        stream.write_bytes(b"")
    child = os.fork()
    if child == 0:
        os._exit(_main_in(folder, list(arguments), streams, prepare))
    started = time.monotonic()
    limit = HANG_SECONDS if kill_after is None else kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code: int | None = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - started > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = None if kill_after is None else -signal.SIGKILL
            break
        time.sleep(0.005)
    texts = [stream.read_text(errors="replace") for stream in streams]
    for stream in streams:
        stream.unlink()
    return Ended(code, *texts)


def _main_in(folder: Path, arguments: list[str], streams: list[Path], prepare: Callable[[], None] | None) -> int:
    """Run the program with these arguments in this process; returns its exit code."""
    code = 1
    try:
        for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.chdir(folder)
        sys.argv = ["nas_transfer", *arguments]
        if prepare is not None:
            prepare()
        from nas_transfer.cli import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def fault(ended: Ended, codes: Collection[int]) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    last = ended.errors.strip().splitlines()[-1:]
    if ended.code is None:
        return "hang"
    if "Traceback" in ended.errors or "Traceback" in ended.output:
        return f"traceback: {''.join(last)}"
    if ended.code not in codes:
        return f"exit code {ended.code}: {''.join(last)}"
    lines = ended.errors.strip().splitlines()
    if ended.code == BAD_INPUT and (len(lines) != 1 or not lines[0].startswith("error: ")):
        return f"{len(lines)} lines of errors: {''.join(lines[:1])}"
    return ""


@dataclass
class Row:
    """A kind of attempts: how many were made, and what was wrong with which."""

    kind: str
    tried: int = 0
    defects: list[str] = field(default_factory=list)

    def add(self, name: str, wrong: str) -> None:
        """Count an attempt."""
        self.tried += 1
        if wrong:
            self.defects.append(f"{name}: {wrong}"[:600])
