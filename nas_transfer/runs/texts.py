"""Numbers as text for people: durations, percentages, millions."""

from __future__ import annotations

from nas_transfer.runs.costs import SECONDS_PER_HOUR


def duration(seconds: float) -> str:
    """For people: 90 s, 12 min, 3.5 h."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * SECONDS_PER_HOUR else f"{seconds / SECONDS_PER_HOUR:.1f} h"
