"""The jobs of a run on SLURM."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from pathlib import Path


def submitted_jobs(run: Path) -> set[str]:
    """The ids of all jobs that a search has submitted."""
    return {path.name for path in (run / ".submitit").glob("*/*") if re.fullmatch(r"\d+(_\d+)?", path.name)}


def running_jobs(jobs: Collection[str]) -> list[str]:
    """Those of these jobs that run."""
    if not jobs:
        return []
    command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i", "--jobs", ",".join(sorted(jobs))]
    done = subprocess.run(command, capture_output=True, text=True)
    return sorted(set(done.stdout.split()) & set(jobs))
