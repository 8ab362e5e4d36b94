"""The result file: whole or not at all, plain JSON, and true about what made it."""

import json
import math
import subprocess
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nas_transfer.runs.result import PACKAGES, Result, git_revision, versions, write_json_atomically

DEFAULTS = ("versions", "git", "status")


def result() -> Result:
    """A result with every field that has no default set to something."""
    values: dict[str, Any] = {field.name: 1 for field in fields(Result) if field.name not in DEFAULTS}
    return Result(**values | {"arch": None, "score_key": "map", "score": 0.5, "metrics": {"map": 0.5}, "costs": {}})


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json_atomically(path, result().to_dict())
    assert json.loads(path.read_text()) == result().to_dict()
    assert result().to_dict()["status"] == "finished"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    path = tmp_path / "result.json"
    write_json_atomically(path, {"score": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomically(path, {"score": number})
    assert json.loads(path.read_text()) == {"score": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json_atomically(path, {"score": 0.5})
    code = (
        "import os, sys; from pathlib import Path; from nas_transfer.runs.result import write_json_atomically\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "write_json_atomically(Path(sys.argv[1]), {'score': 0.9})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert json.loads(path.read_text()) == {"score": 0.5}


def test_versions_are_the_installed_ones_and_nothing_is_imported_for_them() -> None:
    assert versions()["torch"] == metadata.version("torch")
    assert set(versions()) == set(PACKAGES)
    code = "import sys; from nas_transfer.runs.result import versions; versions(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_git_revision_is_that_of_the_checkout_and_says_when_it_was_changed(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    revision = git_revision(tmp_path)
    assert revision is not None
    assert head.startswith(revision)
    (tmp_path / "code.py").write_text("2\n")
    assert git_revision(tmp_path) == f"{revision}-dirty"


def test_a_package_installed_below_another_checkout_has_no_revision(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    package = tmp_path / ".venv" / "nas_transfer"
    package.mkdir(parents=True)
    (package / "code.py").write_text("1\n")
    assert git_revision(package) is None
