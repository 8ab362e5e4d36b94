"""Run jobs through a launcher while something else is watched: the queue of a cluster, or the progress of a study."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nas_transfer.runs import Job
from nas_transfer.search.loop import Launch

Answer = TypeVar("Answer")

WATCH_SECONDS = 1.0


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class WorkerLauncher:
    """Starts workers.

    Attributes:
        launch: runs jobs to their end.
        stop: ends all of them.
    """

    launch: Launch
    stop: Callable[[], None] = _nothing

    def run(self, jobs: Sequence[Job], watch: Callable[[], None]) -> Sequence[str | None]:
        """Run jobs to their end, and call `watch` about once a second; an exception of `watch` ends the jobs."""
        return while_watched(lambda: self.launch(jobs), watch, self.stop)


def while_watched(call: Callable[[], Answer], watch: Callable[[], None], stop: Callable[[], None]) -> Answer:
    """Make a call in another thread, and call `watch` about once a second until it has returned.

    Args:
        call: the call. Its exception is raised here.
        watch: may raise an exception, which ends the wait.
        stop: called after an exception in this thread, such as KeyboardInterrupt.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(WATCH_SECONDS)
            watch()
    except BaseException:
        stop()
        raise
    if errors:
        raise errors[0]
    return answers[0]
