"""One process at a time runs in a folder, and what a killed one was writing there is removed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nas_transfer.errors import RunError
from nas_transfer.runs.atomic import ABANDONED_SECONDS, temporary_beside
from nas_transfer.runs.lock import run_lock

HOLDER = (
    "import sys; from pathlib import Path; from nas_transfer.runs.lock import run_lock\n"
    "with run_lock(Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()"
)


def test_a_second_process_is_refused_until_the_first_one_ends_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=r"another process runs in .*mine: wait until it ends"), run_lock(folder):
            pass
        first.kill()
        first.wait()
    with run_lock(folder):
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"file.mine cannot be written \(Not a directory\)"),
        run_lock(tmp_path / "file/mine"),
    ):
        pass


def test_temporary_files_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = temporary_beside(tmp_path / "deep" / "result.json").name
    names = {
        "dead": own.replace(f".{os.getpid()}.", f".{dead.pid}."),
        "left by an earlier process of this number": own,
        "alive": own.replace(f".{os.getpid()}.", f".{os.getppid()}."),
        "of another machine": own.replace(f".{os.getpid()}.", ".1.").replace(".json.", ".json.other-"),
        "of another machine, long ago": own.replace(f".{os.getpid()}.", ".2.").replace(".json.", ".json.other-"),
        "of the user": ".result.json.swp",
        "no temporary file": f"result.json.{socket.gethostname()}.{dead.pid}.tmp",
    }
    (tmp_path / "deep").mkdir()
    for name in names.values():
        (tmp_path / "deep" / name).write_text("half")
    long_ago = tmp_path / "deep" / names["of another machine, long ago"]
    os.utime(long_ago, (0, long_ago.stat().st_mtime - ABANDONED_SECONDS - 60))
    with run_lock(tmp_path):
        left = {path.name for path in (tmp_path / "deep").iterdir()}
    kept = ("alive", "of another machine", "of the user", "no temporary file")
    assert left == {names[key] for key in kept}
