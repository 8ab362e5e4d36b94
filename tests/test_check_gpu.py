"""The script that checks the program on a GPU: it runs here on the CPU, and finds what is wrong."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.guard import HANG_SECONDS

SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as for a script there
import check_gpu  # noqa: E402
from gpu_checks.runner import Check  # noqa: E402
from gpu_checks.table import at_least, at_most, near, stated  # noqa: E402

BROKEN = """
import os
import time

from gpu_checks.table import near, stated


def right(context):
    yield near("a value", 1.0, 1.0, 0.0)


def wrong(context):
    yield near("another value", 1.0, 2.0, 0.5)


def raises(context):
    yield stated("before the error", 1.0, "s")
    raise ValueError("no such thing")


def dies(context):
    yield stated("before the end", 1.0, "s")
    time.sleep(0.2)
    os._exit(0)


def hangs(context):
    yield stated("before the wait", 1.0, "s")
    time.sleep(600)
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of checks."""
    (tmp_path / "broken_checks.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    return "broken_checks"


def verdicts(path: Path) -> list[tuple[str, str, str]]:
    return [(row["check"], row["measured"], row["verdict"]) for row in json.loads(path.read_text())["rows"]]


@pytest.mark.nightly
def test_all_checks_pass_on_a_cpu(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = [SCRIPTS / "check_gpu.sh", "--tiny", "--minutes", str(HANG_SECONDS // 60), "--json", table]
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything runs on the CPU" in done.stdout
    found = verdicts(table)
    assert {check for check, _, _ in found} == {check.name for check in check_gpu.CHECKS}
    for check, measured, verdict in found:
        assert verdict == "ok", f"{check}: {measured}"
        assert f"{check} " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "table.txt"]


@pytest.mark.nightly
def test_a_wrong_value_an_error_a_wait_and_an_ended_process_stop_no_other_check(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("wrong", "raises", "dies", "hangs", "right")
    seconds = dict.fromkeys(names, HANG_SECONDS) | {"hangs": 2}
    checks = [Check(name, f"{broken}:{name}", seconds=seconds[name]) for name in names]
    monkeypatch.setattr(check_gpu, "CHECKS", checks)
    minutes = ["--minutes", str(HANG_SECONDS // 60)]
    assert check_gpu.main(["--tiny", *minutes, "--json", str(tmp_path / "table.json")]) == 1
    assert verdicts(tmp_path / "table.json") == [
        ("wrong", "another value", "WRONG"),
        ("raises", "before the error", "ok"),
        ("raises", "the rest", "WRONG"),
        ("dies", "before the end", "ok"),
        ("dies", "the rest", "WRONG"),
        ("hangs", "before the wait", "ok"),
        ("hangs", "the rest", "unfinished"),
        ("right", "a value", "ok"),
    ]
    printed = capsys.readouterr().out
    assert "WRONG: ValueError: no such thing" in printed
    assert "WRONG: the process ended with exit code 0" in printed
    assert "unfinished: did not end within 2 s" in printed
    assert "4 ok, 3 WRONG, 1 unfinished, 0 skipped" in printed


def test_checks_without_time_are_skipped(tmp_path: Path) -> None:
    assert check_gpu.main(["--minutes", "0", "--json", str(tmp_path / "table.json")]) == 0
    assert {verdict for _, _, verdict in verdicts(tmp_path / "table.json")} == {"skipped"}


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.0, "ok"), (1.5, "ok"), (1.6, "WRONG"), (math.nan, "WRONG"), (math.inf, "WRONG")]
)
def test_a_value_is_right_within_its_difference_alone(value: float, verdict: str) -> None:
    assert near("it", value, 1.0, 0.5).verdict == verdict


def test_bounds_hold_for_numbers_alone() -> None:
    assert [at_least("it", value, 1.0).verdict for value in (1.0, 0.9, math.nan)] == ["ok", "WRONG", "WRONG"]
    assert [at_most("it", value, 1.0).verdict for value in (1.0, 1.1, math.nan)] == ["ok", "WRONG", "WRONG"]
    assert [stated("it", value, "s").verdict for value in (1.0, 0.0, math.inf)] == ["ok", "WRONG", "WRONG"]
