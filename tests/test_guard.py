"""No verdict of a test depends on the speed of the machine."""

import re
from pathlib import Path

LIMITS = re.compile(
    r"timeout=\d|\.join\(\d|(monotonic|perf_counter|process_time)\(\) [-+] [\w.]+ <|monotonic\(\) \+ \d|< deadline"
)
ALLOWED = {"test_guard.py"}
SKIPS = 'subprocess.run(["sinfo"]'
"""Asks whether there is a cluster at all, and skips."""


def test_no_test_waits_for_a_number_of_seconds_but_for_what_hangs() -> None:
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(Path(__file__).parent.rglob("*.py"))
        if path.name not in ALLOWED
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if LIMITS.search(line) and SKIPS not in line
    ]
    assert found == []
