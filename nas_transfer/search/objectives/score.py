"""The score of the task, or another of its metrics, on the search split."""

from __future__ import annotations

from nas_transfer.errors import ConfigError
from nas_transfer.search.objectives.base import Direction, TrialSubnet


class Score:
    """A metric as a fraction in 0-1.

    Args:
        direction: ``maximize``, or ``minimize`` for an error.
        key: name of a metric of the task; None for its `score_key`.
    """

    measured_first = False

    def __init__(self, direction: Direction, key: str | None) -> None:
        self.direction = direction
        self.key = key

    def measure(self, subnet: TrialSubnet) -> float:
        """The value of the metric.

        Raises:
            ConfigError: there is no metric of this name, or its value is no fraction.
        """
        key = self.key or subnet.task.score_key
        metrics = subnet.score()
        if key not in metrics:
            raise ConfigError(f"expected search.score_key to be one of {', '.join(metrics)}, got {key}")
        if self.direction == "maximize" and metrics[key] > 1:
            raise ConfigError(
                f"expected {key} as a fraction in 0-1, got {metrics[key]:g}: a percentage is on another scale"
            )
        return metrics[key]
