"""Train one subnet or the whole supernet, resumable at any batch. Used by pretrain and finetune.

Lightning sees a run as one epoch over a stream of batches, which passes over the dataset as often as needed. A resumed
run starts the stream at its next batch instead of at an epoch boundary, and the end of the stream ends the run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Result, TrainingSummary, files
from nas_transfer.runs.versions import versions
from nas_transfer.stages.common.analysis import write_analysis
from nas_transfer.stages.common.batch_size import with_batch_size
from nas_transfer.stages.common.build import (
    EndOnSignal,
    LastCheckpoint,
    build_arch,
    build_data,
    build_task,
    build_trainer,
    build_training_settings,
    build_weights,
    hold_run_inputs,
    last_checkpoint,
    set_threads,
)
from nas_transfer.stages.common.evaluation import evaluate_task
from nas_transfer.stages.common.repair import build_repairer
from nas_transfer.stages.common.results import make_result, write_predictions
from nas_transfer.stages.common.scoring import BestWeights, early_stopping, steps_between_scorings
from nas_transfer.stages.config.base import DataRunConfig
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.supernet.links import can_repair
from nas_transfer.tasks.checkpoint import (
    Checkpoint,
    checkpoint_arch,
    inherit,
    is_whole,
    load_checkpoint,
    load_network,
    load_subnet,
    save_checkpoint,
)
from nas_transfer.tasks.recipe import Recipe
from nas_transfer.tasks.task import Task
from nas_transfer.tasks.training import TaskModule

logger = logging.getLogger(__name__)


def train(config: TrainConfig, folder: Path) -> Result | None:
    """Train, evaluate, and write weights and predictions to `folder`.

    Raises:
        NasTransferError: the configuration, the data, the arch or the weights cannot be used.
    """
    set_threads(config.num_threads)
    table, parent = build_weights(config)
    arch = build_arch(config, table)
    _check_supernet(config, arch)
    config = with_batch_size(config, folder, table, arch)
    data = build_data(config.data, arch, table.preprocessing)
    hold_run_inputs(config, data)
    trainer = build_trainer(config, folder)
    steps_per_epoch = steps_of_epoch(config, data, trainer)
    total_steps = config.trainer.steps(steps_per_epoch)
    recipe = config.task.recipe.build()
    total_batch = data.batch_size * trainer.world_size * recipe.accumulate
    _log_effect_of_batch(recipe, config.trainer.max_steps, total_batch)
    task = build_task(config, table, arch, data)
    task.keeps_details = True
    last = last_checkpoint(folder)
    teacher = None if parent is None else _inherit(config, task, parent, data, trainer, resumed=last is not None)
    settings = build_training_settings(config, total_steps, total_batch)
    keep = parent is not None and _is_part(task, parent)
    module = TaskModule(task, replace(settings, keep_statistics=keep), teacher)
    accumulate = recipe.accumulate
    num_batches = total_steps * accumulate
    data.stream(num_batches, batches_per_step=accumulate)
    best = _best_weights(config, folder, task, parent, total_steps)
    every = steps_between_scorings(config.scoring.every, total_steps, steps_per_epoch, total_batch, data.num_val_images)
    if (config.scoring.use_best or config.scoring.patience) and (every is None or every >= total_steps):
        logger.warning(
            "scoring.use_best and scoring.patience change nothing: with scoring.every=%s, there is no score before the "
            "end of %d steps", config.scoring.every, total_steps,
        )  # fmt: skip
    # An interval beyond the end means never.
    trainer.val_check_interval = num_batches + 1 if best is None or every is None else every * accumulate
    trainer.callbacks[:] = [*trainer.callbacks, *_callbacks(config, folder, best)]
    name = "the supernet" if arch is SUPERNET else f"arch {arch.short_id()}"
    logger.info(
        "%s of %s on %d images: %d steps, %.1f epochs of %d",
        name, table.name, data.num_train_images, total_steps, total_steps / steps_per_epoch, steps_per_epoch,
    )  # fmt: skip
    if last is not None:
        logger.info("resuming from %s", last)
    trainer.fit(module, datamodule=data, ckpt_path=None if last is None else str(last), weights_only=True)
    seconds, steps = module.seconds, trainer.global_step
    metrics, summary = _evaluate(config, module, data, trainer, best)
    if not trainer.is_global_zero:
        return None
    images = steps * accumulate * data.batch_size * trainer.world_size
    result = make_result(
        config, task, metrics, seconds=seconds, images_seen=images, devices=trainer.world_size,
        training_macs=module.training_macs,
        on_accelerator=trainer.strategy.root_device.type != "cpu", samples_digest=module.samples_digest,
        provenance=() if parent is None else parent.lineage(),
    )  # fmt: skip
    result = replace(result, training=summary)
    save_checkpoint(
        folder / files.WEIGHTS, task, parent=parent, metrics=metrics, versions=result.versions,
        stage=result.stage, config_sha256=result.config_sha256,
    )  # fmt: skip
    write_predictions(config.sample_predictions, folder, task, data)
    write_analysis(config.sample_predictions, folder, module, data)
    return result


def _check_supernet(config: TrainConfig, arch: ArchOrSupernet) -> None:
    """Raise ConfigError for what a supernet cannot do: be scored on the way, or be searched on its training images."""
    split = config.data["split"]
    if arch is SUPERNET and isinstance(split, Mapping) and split["search_fraction"] == 1:
        raise ConfigError(
            "data.split.search_fraction=1 leaves no image on which a search could compare the archs of this supernet, "
            "which sees all of them: lower it, or set 0 to train on all of train without a search"
        )
    for name in ("patience", "use_best"):
        if arch is SUPERNET and getattr(config.scoring, name):
            raise ConfigError(
                f"scoring.{name} needs scores while training, which a supernet does not have: leave it out, or train "
                "one arch with arch=max"
            )


def _best_weights(
    config: TrainConfig, folder: Path, task: Task, parent: Checkpoint | None, total_steps: int
) -> BestWeights | None:
    """What keeps the best weights; None for a supernet, which has no statistics to be scored with on the way."""
    if task.is_supernet:
        return None
    same = versions()

    def save(path: Path, metrics: Mapping[str, float], step: int) -> None:
        save_checkpoint(
            path, task, parent=parent, metrics=metrics, versions=same, stage=config.stage.name,
            config_sha256=config.config_sha256, step=step,
        )  # fmt: skip

    return BestWeights(
        folder / files.BEST_WEIGHTS, save, task.score_key, total_steps, required=config.scoring.use_best
    )  # fmt: skip


def _evaluate(
    config: TrainConfig, module: TaskModule, data: DownstreamData, trainer: pl.Trainer, best: BestWeights | None
) -> tuple[dict[str, float], TrainingSummary | None]:
    """All metrics of the weights that the run ends with, and how the training ended; None if no score was defined."""
    steps, total_steps = trainer.global_step, module.settings.total_steps
    if steps < total_steps:
        logger.info(
            "early stopping at step %d of %d: %d scorings brought no better %s",
            steps, total_steps, config.scoring.patience, module.task.score_key,
        )  # fmt: skip
    metrics = evaluate_task(config, module, data, trainer)
    if best is None or best.step is None:
        return metrics, None
    weights: Literal["last", "best"] = "best" if config.scoring.use_best else "last"
    summary = TrainingSummary(steps, total_steps, best.score_key, best.step, best.score, weights)
    if weights == "best" and best.step != steps:
        metrics = _evaluate_best(config, module, data, trainer, best)
    logger.info("%s", summary)
    return metrics, summary


def _evaluate_best(
    config: TrainConfig, module: TaskModule, data: DownstreamData, trainer: pl.Trainer, best: BestWeights
) -> dict[str, float]:
    """Load the weights that scored best, and score them again for their predictions."""
    trainer.strategy.barrier()
    load_network(module.task, load_checkpoint(str(best.path), module.task.table))
    exchanging = (BestWeights, pl.callbacks.WeightAveraging)
    trainer.callbacks[:] = [callback for callback in trainer.callbacks if not isinstance(callback, exchanging)]
    module.metrics_step = -1
    return evaluate_task(config, module, data, trainer)


def _callbacks(config: TrainConfig, folder: Path, best: BestWeights | None) -> list[Callback]:
    """Callbacks that run after each step and each scoring."""
    callbacks: list[Callback] = [] if best is None else [best]
    if config.ema_decay is not None:
        callbacks.append(pl.callbacks.EMAWeightAveraging(decay=config.ema_decay))
    callbacks += early_stopping(config.scoring)
    # Last, so that a step's checkpoint holds what the others did after that step.
    last = LastCheckpoint(folder / files.LAST_CHECKPOINT, config.checkpoint_every_n_steps)
    return [*callbacks, last, EndOnSignal(last)]


def steps_of_epoch(config: DataRunConfig, data: DownstreamData, trainer: pl.Trainer) -> int:
    """Optimiser steps of one pass over the dataset, or over the part that `trainer.limit_train_batches` allows."""
    batches = data.batches_per_epoch(trainer.world_size)
    limit = config.trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    return max(1, batches // config.task.recipe.build().accumulate)


def _log_effect_of_batch(recipe: Recipe, max_steps: int | None, total_batch: int) -> None:
    """Log how a total batch other than that of the recipe changes the learning rate. The length is not changed."""
    usual = recipe.lr_batch
    if usual is None or usual == total_batch:
        return
    rate = recipe.lr * total_batch / usual
    logger.info("total batch %d instead of the recipe's %d: learning rate %.3g (linear rule)", total_batch, usual, rate)
    if max_steps is not None:
        same = round(max_steps * usual / total_batch)
        logger.info("trainer.max_steps=%d sees as many images as the recipe means with %d", same, total_batch)


def _is_part(task: Task, checkpoint: Checkpoint) -> bool:
    """Whether a task is another arch than the checkpoint's, which is one whole network of the task."""
    arch = task.arch
    return arch is not SUPERNET and is_whole(checkpoint, task) and arch != checkpoint_arch(checkpoint, task.space)


def _is_public_part(config: TrainConfig, task: Task, checkpoint: Checkpoint) -> bool:
    """Whether the body of a task is repaired as a part of the body of one public network."""
    arch, largest = task.arch, task.space.largest()
    if arch is SUPERNET or not checkpoint.is_public_net or config.repair_views is None:
        return False
    body = set(task.table.space.names) - set(task.table.classifier_genes)
    return can_repair(task.table) and any(arch[name] != largest[name] for name in body)


def _inherit(
    config: TrainConfig, task: Task, checkpoint: Checkpoint, data: DownstreamData, trainer: pl.Trainer, *, resumed: bool
) -> Task | None:
    """Start from given weights, and log which of them are used.

    A subnet of one whole network starts repaired. It imitates the whole network, which is returned, with the share of
    ``task.sampling.distillation``. So does the body of a subnet of one public network, which imitates nothing.
    """
    arch, share = task.arch, config.task.sampling.build().distillation
    device = trainer.strategy.root_device if trainer.strategy.root_device.type == "cuda" else None
    if _is_part(task, checkpoint) and arch is not SUPERNET:
        if arch == task.largest_at(arch):
            inherit(task, checkpoint)
            logger.info("the whole network of %s at another input size", checkpoint.path)
            return load_subnet(task, checkpoint) if share else None
        if config.repair_views is None:
            raise ConfigError(
                f"a part of the whole network in {checkpoint.path} is repaired, got repair_views=null: name a number"
            )
        repairer = build_repairer(config, task.table, checkpoint, data, device=device)
        if not resumed:  # otherwise the state of the training replaces it
            task.network.load_state_dict(repairer.extract(arch).cpu().network.state_dict())
            logger.info("arch %s is cut out of %s and repaired", arch.short_id(), checkpoint.path)
        return repairer.whole if share else None
    untrained = inherit(task, checkpoint)
    if _is_public_part(config, task, checkpoint) and arch is not SUPERNET and not resumed:
        body = build_repairer(config, task.table, checkpoint, data, body_alone=True, device=device).body(arch)
        task.body.load_state_dict(body.state_dict())
        logger.info("the body of arch %s is cut out of %s and repaired", arch.short_id(), checkpoint.path)
    if not checkpoint.is_of_kind(task):
        logger.info("weights of the body from %s; neck and head start untrained", checkpoint.path)
    elif untrained:
        logger.info(
            "weights from %s, except tensors with a row for each class: %s", checkpoint.path, ", ".join(untrained)
        )
    else:
        logger.info("weights of body, neck and head from %s", checkpoint.path)
    return None
