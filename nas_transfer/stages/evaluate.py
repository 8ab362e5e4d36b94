"""Score a finished run on the validation split."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.report.manifest import Result
from nas_transfer.stages.build import build_arch, build_data, build_table, build_task, build_trainer, set_threads
from nas_transfer.stages.evaluation import evaluate_task, extract_calibrated
from nas_transfer.stages.results import make_result, write_predictions
from nas_transfer.tasks.checkpoint import checkpoint_arch, load_checkpoint, load_network

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path) -> Result | None:
    """Load, extract and recalibrate where the weights are a supernet's, and score.

    Raises:
        ConfigError: no weights, or an arch that the weights do not hold.
        NasTransferError: data or weights that cannot be used.
    """
    if cfg.weights is None:
        raise ConfigError("expected weights=<a finished run's folder> to evaluate, got none")
    set_threads(cfg)
    table = build_table(cfg)
    wanted = build_arch(cfg, table.space)
    checkpoint = load_checkpoint(Path(cfg.weights))
    arch = checkpoint_arch(checkpoint, table.space)
    if arch is not None and wanted != arch:
        logger.info("the weights are those of arch %s alone: arch=%s is not looked at", arch.short_id(), cfg.arch)
    data = build_data(cfg, arch)
    task = build_task(cfg, table, arch, data, total_steps=0)
    load_network(task, checkpoint)
    if arch is None and wanted is not None:
        task = extract_calibrated(cfg, task, wanted, data)
    trainer = build_trainer(cfg, folder)
    metrics = evaluate_task(cfg, task, data, trainer)
    if not trainer.is_global_zero:
        return None
    write_predictions(folder, task)
    return make_result(cfg, task, metrics, devices=trainer.world_size)
