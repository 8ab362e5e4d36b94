"""An objective that takes time and tells nothing: it holds a search until a worker has joined."""

from __future__ import annotations

import time
from pathlib import Path

from nas_transfer.search.objectives.base import TrialSubnet

HOLD = "hold"
"""The file in the working directory that holds the search."""


class Pause:
    """Sleeps, and goes on sleeping while a file exists. The value is the same for all archs: no front depends on it.

    Args:
        direction: ``minimize`` or ``maximize``.
        seconds: how long it sleeps.
    """

    measured_first = True

    def __init__(self, direction: str, seconds: float) -> None:
        self.direction, self.seconds = direction, seconds

    def measure(self, subnet: TrialSubnet) -> float:
        """Sleep."""
        time.sleep(self.seconds)
        while Path(HOLD).exists():
            time.sleep(0.2)
        return 1.0
