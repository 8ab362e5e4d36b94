"""``data.batch_size=auto``: the largest batch that fits into the memory of a GPU, found by Lightning's tuner."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner import Tuner

from nas_transfer.arch import ArchOrSupernet
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs.batch_size import FoundBatchSize, read_batch_size
from nas_transfer.stages.common.build import (
    build_bare_trainer,
    build_data,
    build_task,
    build_training_settings,
)
from nas_transfer.stages.config.factory import AUTO
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.training import TaskModule

logger = logging.getLogger(__name__)

LEAST_STEPS_PER_EPOCH = 8
"""Larger batches would leave an epoch fewer steps than this: too few for a recipe that counts epochs."""
TRIED_STEPS = 3
STREAM_BATCHES = 1 << 30


def with_batch_size(config: TrainConfig, folder: Path, table: SupernetTable, arch: ArchOrSupernet) -> TrainConfig:
    """The configuration with a number in the place of ``auto``, found once for a run and kept in its folder.

    On a CPU, it is the batch of the recipe: more memory makes no step cheaper there, and nothing warns before the
    memory is used up.

    Raises:
        ConfigError: there are several devices, or the recipe names no batch on a CPU.
    """
    if config.data["batch_size"] != AUTO:
        return config
    if not config.trainer.single_device:
        raise ConfigError("data.batch_size=auto needs one device: find it with trainer.devices=1, then name the number")
    found = read_batch_size(folder)
    if found is None:
        found = _found(config, folder, table, arch)
        found.write(folder)
    logger.info("data.batch_size=auto: %d on %s", found.batch_size, found.device)
    return replace(config, data=config.data.with_values(batch_size=found.batch_size))


def _found(config: TrainConfig, folder: Path, table: SupernetTable, arch: ArchOrSupernet) -> FoundBatchSize:
    trainer = build_bare_trainer(config.trainer, TRIED_STEPS, folder=folder)
    recipe = config.task.recipe.build()
    data = build_data(config.data.with_values(batch_size=1), arch, table.preprocessing)
    most = max(1, data.batches_per_epoch(1) // LEAST_STEPS_PER_EPOCH)  # of batches of one
    device = trainer.strategy.root_device
    if device.type != "cuda":
        if recipe.lr_batch is None:
            raise ConfigError(
                "data.batch_size=auto needs a GPU, or a recipe with task.recipe.lr_batch, got neither: name a number"
            )
        return FoundBatchSize(
            max(1, min(most, recipe.lr_batch // recipe.accumulate)),
            "a CPU, as the recipe says" if device.type == "cpu" else f"{device.type}, as the recipe says",
        )
    logger.info("data.batch_size=auto: trying batches of up to %d samples", most)
    task = build_task(config, table, arch, data)
    module = TaskModule(task, build_training_settings(config, TRIED_STEPS, 1))
    return FoundBatchSize(largest_batch(trainer, module, data, most), torch.cuda.get_device_name(device))


def largest_batch(trainer: pl.Trainer, module: TaskModule, data: DownstreamData, most: int) -> int:
    """The largest power of two, up to `most`, of samples whose training steps fit into memory."""
    limit = 1 << (most.bit_length() - 1)
    data.stream(STREAM_BATCHES, batches_per_step=1)
    found = Tuner(trainer).scale_batch_size(
        module.train(), datamodule=data, steps_per_trial=TRIED_STEPS, init_val=1, max_val=2 * limit
    )  # Lightning does not try the largest value itself
    return max(1, min(int(found or 1), limit))
