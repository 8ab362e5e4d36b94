"""The campaign knows a defect when it sees one, and a small slice of it finds none."""

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.guard import HANG_SECONDS

SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as for a script there
import campaign  # noqa: E402
from hostile.attempts import Ended, Row, fault  # noqa: E402
from hostile.kinds import DAMAGES, text_of  # noqa: E402

SENTENCE = "error: a file is missing\n"


@pytest.mark.parametrize(
    ("ended", "codes", "wrong"),
    [
        (Ended(0, "done", ""), (0,), ""),
        (Ended(0, "done", "a warning\n"), (0, 2), ""),
        (Ended(2, "", SENTENCE), (0, 2), ""),
        (Ended(2, "", SENTENCE), (0,), "exit code 2"),
        (Ended(0, "", ""), (2,), "exit code 0"),
        (Ended(-11, "", ""), (0, 2), "exit code -11"),
        (Ended(None, "", ""), (0, 2), "hang"),
        (Ended(2, "", f"a warning\n{SENTENCE}"), (2,), "2 lines of errors"),
        (Ended(2, "", ""), (2,), "0 lines of errors"),
        (Ended(2, "", "failed\n"), (2,), "1 lines of errors"),
        (Ended(1, "", "Traceback (most recent call last):\nKeyError: 'x'\n"), (0, 1, 2), "traceback: KeyError: 'x'"),
        (Ended(2, "Traceback (most recent call last)", SENTENCE), (2,), "traceback"),
    ],
)
def test_a_command_that_ends_otherwise_than_it_must_is_a_defect(ended: Ended, codes: tuple[int], wrong: str) -> None:
    assert fault(ended, codes).startswith(wrong)
    assert bool(fault(ended, codes)) == bool(wrong)


def test_the_table_counts_attempts_and_names_defects() -> None:
    row = Row("kills")
    for number, wrong in enumerate(("", "hang", "")):
        row.add(f"kill {number}", wrong)
    text = campaign.table_text([row], 3)
    assert "| kills | 3 | 2 | 1 |" in text
    assert "seed 3, 1 defects\n- kill 1: hang" in text
    assert campaign.ascii_text("a\ud800") == "a\\ud800"


def test_values_are_written_as_the_command_line_reads_them() -> None:
    values = {None: "null", True: "true", 1.5: "1.5", math.inf: "inf", "word": "'word'", "": "''"}
    assert [text_of(value) for value in values] == list(values.values())
    assert text_of([1, {"key": math.nan}]) == "[1,{key: nan}]"


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_every_damage_changes_a_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    DAMAGES[damage](path, random.Random(0))
    assert not path.is_file() or path.read_bytes() != bytes(range(200))


@pytest.mark.nightly
def test_a_small_campaign_finds_no_defect(tmp_path: Path) -> None:
    counts = {"kills": 1, "configurations": 4, "datasets": 3, "damaged": 2, "strangers": 1}
    options = [text for name, count in counts.items() for text in (f"--{name}", str(count))]
    command = [sys.executable, SCRIPTS / "campaign.py", *options, "--seed", "1", "--minutes", str(HANG_SECONDS // 60)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [int(cells[2]) for cells in rows] == list(counts.values())
    assert [int(cells[4]) for cells in rows] == [0] * len(counts)
