"""Train on a classification data set, from random or given weights."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.runs import Result
from nas_transfer.stages.common.training import train

CLASSIFICATION = "nas_transfer.tasks.classification."


def run(cfg: DictConfig, folder: Path) -> Result | None:
    """Train the supernet or one arch; ConfigError for a task that is not a classification."""
    if not cfg.task.build._target_.startswith(CLASSIFICATION):
        raise ConfigError(
            f"expected a classification task to pretrain on, got task={cfg.task.name}: use stage=finetune"
        )
    return train(cfg, folder)
