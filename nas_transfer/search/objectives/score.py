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
        """The metric; ConfigError naming the metrics that there are, if it is not one of them."""
        key = self.key or candidate.subnet.score_key
        metrics = candidate.score()
        if key not in metrics:
            raise ConfigError(f"expected search.objectives.score.key to be one of {', '.join(metrics)}, got {key}")
        return metrics[key]
