"""Run checks one after the other in a process of their own, each within its time.

One process runs all checks, since importing torch takes seconds. It is replaced by a new one when a check takes too
long, ends the process or leaves the GPU unusable; the results of other checks are kept.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from gpu_checks.context import Context
from gpu_checks.table import Row, Table, skipped, unfinished, wrong

START_SECONDS = 120.0
"""Until a new process has imported torch."""
OUTPUT = "output.txt"


@dataclass(frozen=True)
class Check:
    """A check with its time limit.

    Attributes:
        name: in the table.
        function: ``module:name`` of a function that takes a `Context` and yields rows as they are known. What it raises
            is a wrong result. It is named, so that only the process that runs it imports torch.
        seconds: after which it is ended, since it probably waits for something. A CPU has no limit but that of all
            checks, unless they are tiny.
    """

    name: str
    function: str
    seconds: float = 600.0

    def run(self, context: Context) -> Iterator[Row]:
        """The rows of the check."""
        module, _, name = self.function.partition(":")
        function: Callable[[Context], Iterator[Row]] = getattr(import_module(module), name)
        return function(context)


@dataclass(frozen=True)
class _Machine:
    facts: Mapping[str, str]
    on_gpu: bool


@dataclass(frozen=True)
class _Started:
    check: str


@dataclass(frozen=True)
class _Ended:
    check: str


def run_checks(checks: Sequence[Check], table: Table, folder: Path, *, tiny: bool, seconds: float) -> None:
    """Run the checks in order and add their rows to the table.

    Args:
        checks: with names that differ.
        table: gets all rows.
        folder: for all files.
        tiny: smaller networks and fewer steps.
        seconds: for all checks; what is not done by then is skipped.
    """
    deadline = time.monotonic() + seconds
    pending = list(checks)
    while pending and time.monotonic() < deadline:
        _run_process(pending, table, folder, tiny, deadline)
    for check in pending:
        table.add(check.name, skipped("all", f"the {seconds:.0f} s for all checks were over"))


def _run_process(pending: list[Check], table: Table, folder: Path, tiny: bool, deadline: float) -> None:
    """Run checks in a new process until it ends; removes those that are done from `pending`."""
    spawn = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_work, args=(list(pending), folder, tiny, sender))
    process.start()
    sender.close()
    limit = time.monotonic() + START_SECONDS
    running, limited = False, tiny
    try:
        while pending:
            check = pending[0]
            until = min(limit, deadline)
            if not receiver.poll(max(0.0, until - time.monotonic())):
                if until == deadline:
                    table.add(check.name, skipped("the rest", "the time for all checks was over"))
                else:
                    table.add(check.name, unfinished("the rest", f"did not end within {check.seconds:.0f} s"))
                pending.pop(0)
                return
            message = receiver.recv()
            if isinstance(message, _Machine):
                table.print_head(message.facts)
                limited = tiny or message.on_gpu
            elif isinstance(message, _Started):
                limit, running = time.monotonic() + check.seconds if limited else deadline, True
            elif isinstance(message, _Ended):
                limit, running = time.monotonic() + START_SECONDS, False
                pending.pop(0)
            else:
                table.add(check.name, message)
    except EOFError:  # the process is gone, on purpose after an error that leaves the GPU unusable
        process.join()
        if running or process.exitcode != 0:
            reason = f"the process ended with exit code {process.exitcode}: {_last_line(folder / OUTPUT)}"
            table.add(pending.pop(0).name, wrong("the rest", reason))
    finally:
        _end(process)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all that it started, as far as they still run."""
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "")


def _work(checks: Sequence[Check], folder: Path, tiny: bool, sender: Connection) -> None:
    """The body of the process: run the checks and send what they yield."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # a spawned process would spawn data loading processes too
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.chdir(folder)
    context = Context(folder, tiny)
    sender.send(_Machine(context.machine(), context.on_gpu))
    for check in checks:
        sender.send(_Started(check.name))
        # Where a check stands that takes too long.
        faulthandler.dump_traceback_later(max(1.0, check.seconds - 2), repeat=True)
        usable = True
        try:
            for row in check.run(context):
                sender.send(row)
        except Exception as error:
            traceback.print_exc()
            sender.send(wrong("the rest", f"{type(error).__name__}: {error}"))
            usable = "CUDA error" not in str(error) and "device-side assert" not in str(error)
        faulthandler.cancel_dump_traceback_later()
        sender.send(_Ended(check.name))
        if not usable:
            return
        gc.collect()
        context.release_memory()
