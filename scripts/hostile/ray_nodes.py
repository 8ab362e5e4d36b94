"""A Ray cluster of several nodes on this machine, on the loopback interface alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 300.0
STOP_SECONDS = 60.0
HOST = "127.0.0.{}"  # Ray replaces 127.0.0.1 by the address of the machine
SCRIPTS = Path(__file__).resolve().parent.parent
NODE = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]


def children(parents: set[int]) -> Iterator[tuple[int, str]]:
    """The processes of these parents, with their command lines."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if int(parent) in parents and state != "Z":
            yield int(path.name), command


@contextmanager
def ray_nodes(count: int, cpus: int) -> Iterator[tuple[str, Path]]:
    """Start nodes, and stop them when the block ends.

    Args:
        count: number of nodes.
        cpus: CPUs that each one claims to have.

    Yields:
        The address of the cluster, and its folder, which the command line of each of its processes names.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray_"))  # short: names of sockets have at most 107 characters
    with socket.socket() as free:
        free.bind((HOST.format(2), 0))
        port = free.getsockname()[1]
    address = f"{HOST.format(2)}:{port}"
    head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    processes = []
    try:
        for number in range(count):
            options = head if number == 0 else [f"--address={address}", f"--temp-dir={folder}"]
            options = [*options, f"--node-ip-address={HOST.format(number + 2)}"]
            processes.append(_started(folder / f"{number}.txt", *options, *NODE, f"--num-cpus={cpus}"))
            _wait_for_node(folder / f"{number}.txt", processes[-1])
        yield address, folder
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def raylets(folder: Path) -> set[int]:
    """The processes that manage the nodes of the cluster in this folder."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            program, _, rest = (path / "cmdline").read_text(errors="replace").partition("\0")
        except OSError:
            continue
        if Path(program).name == "raylet" and str(folder) in rest:
            found.add(int(path.name))
    return found


def _started(log: Path, *options: str) -> subprocess.Popen[bytes]:
    ray = Path(sys.executable).parent / "ray"
    # by default, workers get a niceness of 15, and are killed where the whole machine has little memory left
    environment = {
        **os.environ, "RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0",
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)]),
    }  # fmt: skip
    with log.open("wb") as stream:
        return subprocess.Popen([str(ray), "start", *options], stdout=stream, stderr=stream, env=environment)


def _wait_for_node(log: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(log.read_text(errors="replace"))
        time.sleep(0.5)
