"""Try to break the program: kills, wrong configurations, malformed datasets, damaged files, run folders of strangers.

    python scripts/campaign.py [--seed 0] [--kills 60] [--configurations 300] [--datasets 150] [--damaged 40]
        [--strangers 20] [--minutes 60] [--table FILE]

Each attempt is drawn from the seed and its number, so the same command makes the same attempts. An attempt is a defect
if the program ends with a traceback, another exit code than expected, more than one line of error, or not at all; if it
takes what it must refuse; or if it leaves another result than without the attempt. The table is printed, and written to
FILE with the name of each defect. Needs the tests of a checkout.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hostile.attempts import Row
from hostile.datasets import dataset
from hostile.kinds import Attempt, configuration, damaged_file, kill, stranger
from hostile.stages import Ground

KINDS: dict[str, tuple[str, Attempt, int]] = {
    "kills": ("kills of all stages, each followed by the same command", kill, 60),
    "configurations": ("wrong configurations, drawn from the schema", configuration, 300),
    "datasets": ("malformed datasets, trained on or checked", dataset, 150),
    "damaged": ("damaged files of runs", damaged_file, 40),
    "strangers": ("run folders with a stranger's code", stranger, 20),
}
"""By the name of the option: what is tried, how, and how often."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attempts and print the table; returns 1 if there are defects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    for name, (title, _, count) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=title)
    parser.add_argument("--first", type=int, default=0, help="number of the first attempt of each kind")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no attempt begins")
    parser.add_argument("--table", type=Path, default=None, help="where the table is written")
    options = parser.parse_args(arguments)
    _import_everything()
    deadline = time.monotonic() + 60 * options.minutes
    rows = []
    with tempfile.TemporaryDirectory(prefix="campaign_") as folder:
        ground = Ground(Path(folder))
        for name, (title, attempt, _) in KINDS.items():
            row = Row(title)
            rows.append(row)
            for number in range(options.first, options.first + getattr(options, name)):
                if time.monotonic() > deadline:
                    break
                row.add(f"{name} {number}", _made(attempt, random.Random(f"{options.seed} {name} {number}"), ground))
    text = ascii_text(table_text(rows, options.seed))
    print(text)
    if options.table is not None:
        options.table.write_text(text + "\n")
    return int(any(row.defects for row in rows))


def _made(attempt: Attempt, draw: random.Random, ground: Ground) -> str:
    name, wrong = attempt(draw, ground)
    if wrong:
        print(ascii_text(f"DEFECT {name}: {wrong}"), file=sys.stderr, flush=True)
    return f"{name}: {wrong}" if wrong else ""


def table_text(rows: Sequence[Row], seed: int) -> str:
    """The rows as a table in Markdown, and the defects below it."""
    lines = ["| attempts | tried | clear | defects |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.kind} | {row.tried} | {row.tried - len(row.defects)} | {len(row.defects)} |" for row in rows]
    defects = [defect for row in rows for defect in row.defects]
    return "\n".join([*lines, "", f"seed {seed}, {len(defects)} defects", *(f"- {defect}" for defect in defects)])


def ascii_text(text: str) -> str:
    """A text that can be printed anywhere: values that were tried may hold halves of characters."""
    return text.encode("ascii", errors="backslashreplace").decode()


def _import_everything() -> None:
    """Import what the stages need, once for all forks."""
    import torch

    import nas_transfer.cli
    import nas_transfer.stages.check
    import nas_transfer.stages.evaluate
    import nas_transfer.stages.export
    import nas_transfer.stages.predict
    import nas_transfer.stages.profile
    import nas_transfer.stages.proxy
    import nas_transfer.stages.report  # noqa: F401

    torch.set_num_threads(1)  # no thread runs when a fork begins


if __name__ == "__main__":
    sys.exit(main())
