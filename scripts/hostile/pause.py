"""An objective that takes time and tells nothing."""

from __future__ import annotations

import time

from nas_transfer.search.objectives.base import TrialSubnet


class Pause:
    """Sleeps, and has the same value for all archs, so that no front depends on it.

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
        return 1.0
