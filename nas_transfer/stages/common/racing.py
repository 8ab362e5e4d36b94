"""The race of the trials of a search, from the configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.search.objectives.base import Objective
from nas_transfer.search.objectives.score import Score
from nas_transfer.search.racing import LEAST_IMAGES, Race
from nas_transfer.stages.config.search import SCORE, SearchConfig
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)


def make_race(
    config: SearchConfig, task: Task, objectives: Mapping[str, Objective], data: DownstreamData
) -> Race | None:
    """The rules of ``search.race``; None without it.

    Args:
        task: the task of the search.
        objectives: the objectives of the search.
        data: holds the search split.

    Raises:
        ConfigError: the score cannot be compared image by image, or another objective is measured after it.
    """
    if config.search.race is None:
        return None
    score = objectives.get(SCORE)
    if not isinstance(score, Score) or score.direction != "maximize":
        raise ConfigError(
            f"search.race compares scores that are maximised, got the objectives {', '.join(objectives)}: add "
            "objective=[score,macs], or set search.race=null"
        )
    late = [name for name, objective in objectives.items() if not objective.measured_first and name != SCORE]
    if late:
        raise ConfigError(
            f"search.race needs all objectives but the score before any image is scored, got {', '.join(late)}, which "
            "come after: set search.race=null"
        )
    metric = score.key or task.score_key
    task.keep_tally(metric)  # raises for a metric without tallies
    num_images = len(data.search_dataloader().dataset)  # type: ignore[arg-type]  # all datasets have a length
    directions = {name: objective.direction for name, objective in objectives.items()}
    race = Race(config.search.race, config.folder, directions, SCORE, metric, num_images, config.seed)
    if not race.looks:
        logger.warning(
            "search.race drops no trial: the search split has %d images, trials are dropped after %d at the earliest",
            num_images, LEAST_IMAGES,
        )  # fmt: skip
    return race
