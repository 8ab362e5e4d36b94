"""Training, the common part of pretrain and finetune: one subnet or the whole supernet, resumable at any batch.

To Lightning, a run is a single epoch over a stream of batches that goes through the data set as often as the run is
long. A resumed run then starts the stream at its own batch, with no epoch boundary to restart at, and the stream's
length ends it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.runs import Result, files
from nas_transfer.space import SUPERNET
from nas_transfer.stages.common.build import (
    build_arch,
    build_data,
    build_task,
    build_trainer,
    build_training_settings,
    build_weights,
    set_threads,
)
from nas_transfer.stages.common.evaluation import evaluate_task
from nas_transfer.stages.common.results import make_result, write_predictions
from nas_transfer.tasks.checkpoint import (
    Checkpoint,
    inherit,
    save_checkpoint,
)
from nas_transfer.tasks.task import Task
from nas_transfer.tasks.training import TaskModule

logger = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path) -> Result | None:
    """Train, evaluate, and leave weights and predictions in `folder`.

    Raises:
        NasTransferError: configuration, data, arch or weights that cannot be used.
    """
    set_threads(cfg)
    table, parent = build_weights(cfg)
    arch = build_arch(cfg, table.space)
    data = build_data(cfg, arch, table.preprocessing)
    trainer = build_trainer(cfg, folder)
    steps_per_epoch = steps_of_epoch(cfg, data, trainer)
    total_steps = steps_of_run(cfg, steps_per_epoch)
    total_batch = data.batch_size * trainer.world_size * cfg.task.recipe.accumulate
    _tell_of_the_batch(cfg, total_batch)
    task = build_task(cfg, table, arch, data)
    module = TaskModule(task, build_training_settings(cfg, total_steps, total_batch))
    if parent is not None:
        _inherit(task, parent)
    accumulate = cfg.task.recipe.accumulate
    num_batches = total_steps * accumulate
    data.stream(num_batches, batches_per_step=accumulate)
    every = max(1, round(cfg.trainer.check_val_every_n_epoch * steps_per_epoch * accumulate))
    # A supernet keeps no statistics to be scored with on the way: an interval beyond the end means never.
    trainer.val_check_interval = every if arch is not SUPERNET else num_batches + 1
    logger.info(
        "%s of %s on %d images: %d steps, %.1f epochs of %d",
        "the supernet" if arch is SUPERNET else f"arch {arch.short_id()}",
        table.name, data.num_train_images, total_steps, total_steps / steps_per_epoch, steps_per_epoch,
    )  # fmt: skip
    last = folder / files.LAST_CHECKPOINT
    if last.exists():
        logger.info("resuming from %s", last)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    seconds = module.seconds
    metrics = evaluate_task(cfg, module, data, trainer)
    if not trainer.is_global_zero:
        return None
    images = num_batches * data.batch_size * trainer.world_size
    result = make_result(
        cfg, task, metrics, seconds=seconds, images_seen=images, devices=trainer.world_size,
        samples_digest=module.samples_digest, provenance=() if parent is None else parent.lineage(),
    )  # fmt: skip
    save_checkpoint(
        folder / files.WEIGHTS, task, parent=parent, metrics=metrics, versions=result.versions,
        stage=result.stage, config_sha256=result.config_sha256,
    )  # fmt: skip
    write_predictions(cfg, folder, task, data)
    return result


def steps_of_epoch(cfg: DictConfig, data: Any, trainer: pl.Trainer) -> int:
    """Optimiser steps that see the data set once, or as much of it as `trainer.limit_train_batches` allows."""
    batches = data.batches_per_epoch(trainer.world_size)
    limit = cfg.trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    return max(1, batches // cfg.task.recipe.accumulate)


def steps_of_run(cfg: DictConfig, steps_per_epoch: int) -> int:
    """The run's length: whichever of `trainer.max_steps` and `trainer.max_epochs` is reached first."""
    bounds = []
    if cfg.trainer.max_steps is not None and cfg.trainer.max_steps > 0:
        bounds.append(cfg.trainer.max_steps)
    if cfg.trainer.max_epochs is not None and cfg.trainer.max_epochs > 0:
        bounds.append(max(1, round(cfg.trainer.max_epochs * steps_per_epoch)))
    if not bounds:
        raise ConfigError(
            "expected trainer.max_steps or trainer.max_epochs above 0 to say how long to train, "
            f"got {cfg.trainer.max_steps} and {cfg.trainer.max_epochs}"
        )
    return min(bounds)


def _tell_of_the_batch(cfg: DictConfig, total_batch: int) -> None:
    """Say what another total batch than the recipe's own changes: the rate, by the linear rule; not the length."""
    usual = cfg.task.recipe.lr_batch
    if usual is None or usual == total_batch:
        return
    rate = cfg.task.recipe.lr * total_batch / usual
    logger.info("total batch %d instead of the recipe's %d: learning rate %.3g (linear rule)", total_batch, usual, rate)
    if cfg.trainer.max_steps is not None:
        same = round(cfg.trainer.max_steps * usual / total_batch)
        logger.info("trainer.max_steps=%d sees as many images as the recipe means with %d", same, total_batch)


def _inherit(task: Task, checkpoint: Checkpoint) -> None:
    """Start from given weights and say what of them was taken over."""
    anew = inherit(task, checkpoint)
    if not checkpoint.is_of_kind(task):
        logger.info("weights of the body from %s; neck and head start anew", checkpoint.path)
    elif anew:
        logger.info("weights from %s, but for those with a row for each class: %s", checkpoint.path, ", ".join(anew))
    else:
        logger.info("weights of body, neck and head from %s", checkpoint.path)
