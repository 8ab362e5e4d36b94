"""Train on a classification dataset, from random or given weights."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.runs import Result
from nas_transfer.stages.common.training import train
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import TrainConfig


def run(cfg: DictConfig, folder: Path) -> Result | None:
    """Train the supernet or one arch; ConfigError for a task that does not pretrain."""
    config = read_config(cfg, TrainConfig)
    if not getattr(config.task.build.target, "pretrains", False):
        raise ConfigError(
            f"stage=pretrain needs a classification task, got task={config.task.name}: use stage=finetune"
        )
    return train(config, folder)
