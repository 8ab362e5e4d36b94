"""The SLURM jobs of a search: which one this process is, and waiting for those that an earlier start left running."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from pathlib import Path

from nas_transfer.runs import read_started

logger = logging.getLogger(__name__)

QUEUE_SECONDS = 5.0


def slurm_job() -> str | None:
    """The id of the SLURM job that this process runs in, as SLURM's commands take it."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def wait_for_jobs(folder: Path) -> None:
    """Wait until no SLURM job of an earlier start of this search runs: what it evaluates need not be done twice."""
    for path, job in read_started(folder).items():
        logged = False
        while _runs(job):
            if not logged:
                logger.info("waiting for SLURM job %s, which an earlier start of this search left running", job)
                logged = True
            time.sleep(QUEUE_SECONDS)
        path.unlink()


def _runs(job: str) -> bool:
    """Whether a SLURM job is queued or running; False where SLURM does not answer or does not know it any more."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())
