"""Score a finished run on the validation split."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.report.manifest import Result
from nas_transfer.stages.build import build_arch, build_data, build_task, build_trainer, build_weights, set_threads
from nas_transfer.stages.evaluation import evaluate_task, extract_calibrated
from nas_transfer.stages.results import make_result, write_predictions
from nas_transfer.tasks.checkpoint import checkpoint_arch, load_network

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path) -> Result | None:
    """Load, extract and recalibrate where the weights are a supernet's, and score.

    Raises:
        ConfigError: no weights, or an arch that the weights do not hold.
        NasTransferError: data or weights that cannot be used.
    """
    set_threads(cfg)
    table, checkpoint = build_weights(cfg)
    if checkpoint is None:
        raise ConfigError("expected weights=<a finished run's folder, or a file> to evaluate, got none")
    wanted = build_arch(cfg, table.space)
    arch = checkpoint_arch(checkpoint, table.space)
    if arch is not None and wanted != arch:
        logger.info("the weights are those of arch %s alone: arch=%s is not looked at", arch.short_id(), cfg.arch)
    data = build_data(cfg, arch, table.preprocessing)
    task = build_task(cfg, table, arch, data, total_steps=0)
    load_network(task, checkpoint)
    if arch is None and wanted is not None:
        # One net's weights hold its own statistics, which a data set without train images must do with.
        as_published = checkpoint.calibrated == wanted.to_dict()
        task = task.extract(wanted) if as_published else extract_calibrated(cfg, task, wanted, data)
    trainer = build_trainer(cfg, folder)
    metrics = evaluate_task(cfg, task, data, trainer)
    if not trainer.is_global_zero:
        return None
    write_predictions(folder, task)
    return make_result(cfg, task, metrics, devices=trainer.world_size)
