"""Atomic writing: a file is the old one or the whole new one."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from nas_transfer.runs.atomic import replacing, write_json, write_text


def test_a_new_file_and_its_folder_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "deep/folder/a.txt", "ä\n")
    assert (tmp_path / "deep/folder/a.txt").read_text(encoding="utf-8") == "ä\n"


def test_an_exception_in_the_middle_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="disk"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise RuntimeError("disk is full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"score": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"score": number})
    assert json.loads(path.read_text()) == {"score": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"score": 0.5})
    code = (
        "import os, sys; from pathlib import Path; from nas_transfer.runs.atomic import write_json\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "write_json(Path(sys.argv[1]), {'score': 0.9})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert json.loads(path.read_text()) == {"score": 0.5}
