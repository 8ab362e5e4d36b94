"""Load a trained task and score it on the validation split."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.arch_files import LARGEST, SMALLEST
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs.phases import Phase
from nas_transfer.stages.common.build import (
    build_arch,
    build_blank,
    build_data,
    build_task,
    build_weights,
    evaluation_device,
)
from nas_transfer.stages.common.repair import extract_repaired
from nas_transfer.stages.config.base import DataRunConfig
from nas_transfer.tasks.checkpoint import Checkpoint, checkpoint_arch, is_whole, load_network
from nas_transfer.tasks.task import Task
from nas_transfer.tasks.training import ScoringModule

logger = logging.getLogger(__name__)

PIXELS_OF_BATCH = 2**19
"""Layers run faster on large batches of small images: 45 of 96 x 120 pixels, and no more than usual of 512 x 1024."""


def load_trained(config: DataRunConfig) -> tuple[Task, DownstreamData, Checkpoint]:
    """The task of the network that ``weights=`` names, its data and its weights.

    Of the weights of a supernet, ``arch=`` chooses a subnet, whose BatchNorm statistics are measured. Of those of one
    whole network, it chooses a subnet that is repaired.

    Raises:
        ConfigError: there are no weights, or they do not hold the arch.
        NasTransferError: the data or the weights cannot be used.
    """
    table, checkpoint = build_weights(config)
    if checkpoint is None:
        raise ConfigError(
            f"stage={config.stage.name} needs weights, got none: add weights=<a finished run's folder, or a file>"
        )
    wanted, blank = build_arch(config, table), build_blank(config, table)
    arch = checkpoint_arch(checkpoint, blank.space)
    data = build_data(config.data, arch, table.preprocessing)
    if arch is not SUPERNET and wanted != arch and config.arch != LARGEST:  # the default, unless one was named
        if wanted is SUPERNET or not is_whole(checkpoint, blank):
            logger.info("the weights are those of arch %s alone: arch=%s is ignored", arch.short_id(), config.arch)
        elif wanted == blank.largest_at(wanted):
            arch = wanted  # the same weights at another input size
        else:
            return extract_repaired(config, table, checkpoint, wanted, data), data, checkpoint
    task = build_task(config, table, arch, data)
    load_network(task, checkpoint)
    if arch is SUPERNET and wanted is not SUPERNET:
        # The weights of one net hold its BatchNorm statistics, which suffice without training images.
        as_published = checkpoint.calibrated == wanted.to_dict()
        task = task.extract(wanted) if as_published else extract_calibrated(config, task, wanted, data)
    return task, data, checkpoint


def evaluate_task(
    config: DataRunConfig, module: ScoringModule, data: DownstreamData, trainer: pl.Trainer
) -> dict[str, float]:
    """All metrics on the validation split, as fractions.

    For a supernet, the largest and the smallest subnet are extracted, recalibrated and scored. Their metrics are named
    ``max/<name>`` and ``min/<name>``, and those of the largest also ``<name>``.
    """
    task = module.task
    if not task.is_supernet:
        return validate(module, data, trainer)
    space = task.space
    metrics: dict[str, float] = {}
    for name, arch in ((LARGEST, space.largest()), (SMALLEST, space.smallest())):
        scores = validate(ScoringModule(extract_calibrated(config, task, arch, data)), data, trainer)
        logger.info("%s subnet: %s %.2f %%", name, task.score_key, 100 * scores[task.score_key])
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
        if name == LARGEST:
            metrics |= scores
    return metrics


def validate(module: ScoringModule, data: DownstreamData, trainer: pl.Trainer) -> dict[str, float]:
    """The metrics of a subnet on the validation split; those of the last validation if it was not trained since."""
    if module.metrics_step < 0 or module.metrics_step != trainer.global_step:
        trainer.validate(module, data.val_dataloader(), verbose=False)
    score_key = module.task.score_key
    if score_key not in module.metrics:
        raise ConfigError(
            f"{score_key} is undefined without annotations in the validation split: annotate it, or raise "
            "trainer.limit_val_batches"
        )
    return module.metrics


def score_alone(task: Task, data: DownstreamData) -> dict[str, float]:
    """The metrics of a subnet on the validation split without a trainer: those of `validate` in float32."""
    task.eval()
    task.ground_truth = data.val_ground_truth
    with torch.inference_mode():
        for batch in data.val_dataloader():
            task.update_metrics(task.on_device(batch))
        return task.compute_metrics()


def evaluation_batch(task: Task, data: DownstreamData) -> int:
    """Images in a batch for BatchNorm statistics and for the scores of trials.

    Those of a training, but at least as many as have `PIXELS_OF_BATCH` at the largest input size. Pairs at least,
    because on one image the BatchNorm of a globally pooled branch has no variance.
    """
    height, width = task.input_size(task.space.largest())
    return max(2, data.batch_size, PIXELS_OF_BATCH // (height * width))


def extract_calibrated(config: DataRunConfig, supernet: Task, arch: Arch, data: DownstreamData) -> Task:
    """The task of one subnet of a supernet, its BatchNorm statistics recalibrated on images of train.

    The statistics are measured on the device that evaluates; the subnet is returned on that of the supernet, which
    is the CPU before and after Lightning's work.
    """
    subnet = supernet.extract(arch).to(evaluation_device(config.trainer.accelerator))
    batches = data.calibration_dataloader(config.calibration_images, evaluation_batch(supernet, data))
    subnet.calibrate(Phase(batches, "BatchNorm statistics", "batches"))
    return subnet.to(supernet.device)
