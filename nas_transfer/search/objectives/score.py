"""The task's score, or any other of its metrics, on the search split."""

from __future__ import annotations

from nas_transfer.errors import ConfigError
from nas_transfer.search.objectives.base import Candidate, Direction


class Score:
    """A metric as a fraction in 0-1.

    Args:
        direction: ``maximize``, or ``minimize`` for an error.
        key: of the task's metrics; None for its `score_key`.
    """

    measured_first = False

    def __init__(self, direction: Direction, key: str | None) -> None:
        self.direction = direction
        self.key = key

    def measure(self, candidate: Candidate) -> float:
        """The metric; ConfigError if there is none of this name, or if it is no fraction."""
        key = self.key or candidate.subnet.score_key
        metrics = candidate.score()
        if key not in metrics:
            raise ConfigError(f"expected search.score_key to be one of {', '.join(metrics)}, got {key}")
        if self.direction == "maximize" and metrics[key] > 1:
            raise ConfigError(
                f"expected {key} as a fraction in 0-1, got {metrics[key]:g}: a percentage is on another scale"
            )
        return metrics[key]
