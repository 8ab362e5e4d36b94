"""SLURM jobs of a search: the id of the current one, those of an interrupted start, and the queue they wait in."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.errors import ConfigError
from nas_transfer.runs import read_started

logger = logging.getLogger(__name__)

QUEUE_SECONDS = 5.0
FIRST_REPORT_SECONDS = 60.0
"""Time after which waiting jobs are logged for the first time. Each further time takes twice as long."""
MOST_SILENT_LOOKS = 6
"""How often in a row SLURM may not answer before jobs count as ended."""

NEVER = {
    "PartitionTimeLimit": "the partition allows less time: lower hydra.launcher.timeout_min",
    "AssocMaxWallDurationPerJobLimit": "the account allows less time: lower hydra.launcher.timeout_min",
    "QOSMaxWallDurationPerJobLimit": "the quality of service allows less time: lower hydra.launcher.timeout_min",
    "PartitionNodeLimit": "the partition has not so many nodes, or not such large ones: ask for less",
    "BadConstraints": "no node has what the job asks for: lower hydra.launcher.gpus_per_node or cpus_per_task",
    "AccountNotAllowed": "the partition does not take the account: set hydra.launcher.account or partition",
    "InvalidAccount": "the account is not known: set hydra.launcher.account",
    "QOSNotAllowed": "the partition does not take the quality of service: set hydra.launcher.qos or partition",
    "InvalidQOS": "the quality of service is not known: set hydra.launcher.qos",
}
"""Reasons for which SLURM lets a job wait for ever, and what to do."""


def slurm_job() -> str | None:
    """The id of the SLURM job that runs this process, in the form of SLURM's commands; None outside SLURM."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def wait_for_jobs(folder: Path) -> None:
    """Wait for the SLURM jobs that an earlier start of this search left running, so that no trial runs twice."""
    for path, job in read_started(folder).items():
        logged = False
        while _runs(job):
            if not logged:
                logger.info("waiting for SLURM job %s, which an earlier start of this search left running", job)
                logged = True
            time.sleep(QUEUE_SECONDS)
        path.unlink()


def _runs(job: str) -> bool:
    """Whether a SLURM job is queued or running; False if SLURM does not answer or does not know the job."""
    text = _answer("squeue", "--noheader", "--jobs", job, "--format", "%T")
    return bool(text and text.strip())


def _answer(*command: str) -> str | None:
    """What a command of SLURM prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True)
class QueuedJob:
    """A job in SLURM's queue.

    Attributes:
        job: its id.
        state: such as ``PENDING`` or ``RUNNING``.
        reason: why it waits.
    """

    job: str
    state: str
    reason: str


def queue(jobs: Collection[str]) -> list[QueuedJob] | None:
    """Those of these jobs that wait or run; None if SLURM does not answer or has forgotten all of them."""
    text = _answer("squeue", "--noheader", "--array", "--jobs", ",".join(jobs), "--format", "%i|%T|%r")
    if text is None:
        return None
    return [QueuedJob(*line.split("|", 2)) for line in text.splitlines() if line.count("|") >= 2]


class QueueWatch:
    """Log which jobs of one start of a search wait in SLURM's queue and why, and end it if they will never start.

    Args:
        folder: where the launcher makes a folder for each job that this start submits.
        ask: looks into the queue.
        clock: the time in seconds.
    """

    def __init__(
        self, folder: Path, ask: Callable[[Collection[str]], list[QueuedJob] | None] = queue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._before = self._submitted()
        self._ask, self._clock = ask, clock
        self._start = self._next_look = clock()
        self._interval = FIRST_REPORT_SECONDS
        self._next_report = self._start + self._interval
        self._logged: set[str] = set()

    def _submitted(self) -> set[str]:
        names = (path.name for path in self._folder.glob("*"))
        return {name for name in names if re.fullmatch(r"\d+(_\d+)?", name)}

    @property
    def jobs(self) -> list[str]:
        """The ids of the jobs that were submitted since the watch began."""
        new = self._submitted() - self._before
        new -= {job.partition("_")[0] for job in new if "_" in job}  # an array, beside its members
        return sorted(new, key=lambda job: [int(part) for part in job.split("_")])

    def look(self) -> None:
        """Look into the queue if it is time to.

        Raises:
            ConfigError: a job will never start. The caller cancels all jobs.
        """
        now = self._clock()
        if now < self._next_look or not (jobs := self.jobs):
            return
        new = [job for job in jobs if job not in self._logged]
        if new:
            self._logged |= set(new)
            logger.info("submitted to SLURM: %s", ", ".join(new))
        queued = self._ask(jobs) or []
        waiting = [job for job in queued if job.state == "PENDING"]
        for job in waiting:
            if job.reason in NEVER:
                raise ConfigError(f"SLURM job {job.job} will never start ({job.reason}): {NEVER[job.reason]}")
        if waiting and now >= self._next_report:
            reasons = Counter(job.reason for job in waiting)
            logger.info(
                "%d of %d SLURM jobs wait since %d s: %s", len(waiting), len(jobs), now - self._start,
                ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common()),
            )  # fmt: skip
            self._interval *= 2
            self._next_report = now + self._interval
        # SLURM's controller is shared: look often at first, then at most once a minute
        self._next_look = now + (QUEUE_SECONDS if now - self._start < FIRST_REPORT_SECONDS else FIRST_REPORT_SECONDS)

    def wait(self) -> None:
        """Wait until no job is queued or running any more."""
        silent = 0
        while (jobs := self.jobs) and silent < MOST_SILENT_LOOKS:
            queued = self._ask(jobs)
            if queued == []:
                return
            silent = silent + 1 if queued is None else 0
            time.sleep(QUEUE_SECONDS)

    def cancel(self) -> None:
        """Cancel all jobs. Each worker that runs gives its trial back."""
        if jobs := self.jobs:
            logger.info("cancelling the SLURM jobs %s", ", ".join(jobs))
            _answer("scancel", *jobs)
