"""Scoring a trained task on the split that reports quote, and what of it goes into `result.json`."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.space import LARGEST, SMALLEST, Arch
from nas_transfer.tasks.base import Task

logger = logging.getLogger(__name__)


def evaluate_task(cfg: DictConfig, task: Task, data: Any, trainer: pl.Trainer) -> dict[str, float]:
    """All metrics on the validation split, as fractions.

    A supernet is scored by its largest and smallest subnet, each extracted and with recalibrated BatchNorm statistics;
    their metrics are named ``max/<name>`` and ``min/<name>``, and the largest one's also ``<name>``.
    """
    if task.arch is not None:
        return validate(task, data, trainer)
    space = task.table.space
    metrics: dict[str, float] = {}
    for name, arch in ((LARGEST, space.largest()), (SMALLEST, space.smallest())):
        scores = validate(extract_calibrated(cfg, task, arch, data), data, trainer)
        logger.info("%s subnet: %s %.4f", name, task.score_key, scores[task.score_key])
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
        if name == LARGEST:
            metrics |= scores
    return metrics


def validate(task: Task, data: Any, trainer: pl.Trainer) -> dict[str, float]:
    """A subnet's metrics on the validation split; those of the last validation if nothing changed since."""
    if task.metrics_step < 0 or task.metrics_step != trainer.global_step:
        trainer.validate(task, data.val_dataloader(), verbose=False)
    if task.score_key not in task.metrics:
        raise ConfigError(
            f"expected a validation split on which {task.score_key} is defined, got none: "
            "it has no annotation, or trainer.limit_val_batches left none"
        )
    return task.metrics


def extract_calibrated(cfg: DictConfig, supernet: Task, arch: Arch, data: Any) -> Task:
    """The task of one subnet of a supernet, its BatchNorm statistics recalibrated on images of train."""
    subnet = supernet.extract(arch)
    # Pairs at least: on one image the BatchNorm of a globally pooled branch has no variance.
    subnet.calibrate(data.calibration_dataloader(cfg.calibration_images, max(2, data.batch_size)))
    return subnet
