"""Route C: score each candidate after a short training of its own on the task, from inherited weights.

Every candidate starts from the same file, ``warm_start.pt``: the inherited body, and a neck and head that were trained
once behind it while it was frozen. What one candidate learns, no other one sees, so that a score does not depend on
what was tried before (Lu et al. 2020, NSGANetV2, arXiv 2007.10396, trains candidates from inherited weights likewise).
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.report.manifest import write_json_atomically
from nas_transfer.search.evaluate import CandidateEvaluator
from nas_transfer.stages.build import build_bare_trainer, build_data, build_task, set_threads
from nas_transfer.stages.run_directory import config_sha256
from nas_transfer.stages.search import SPENT, Spent, evaluate_job, evaluator_of, supernet_weights
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.base import Task
from nas_transfer.tasks.checkpoint import Checkpoint, inherit, load_checkpoint, load_network, save_checkpoint

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path) -> None:
    """Train and evaluate the archs of one job; the first job makes the warm start."""
    evaluate_job(cfg, folder, build_proxy_evaluator)


def build_proxy_evaluator(cfg: DictConfig) -> CandidateEvaluator:
    """The evaluator whose candidates are trained before they are scored.

    Raises:
        ConfigError: a number of steps below 0.
        NasTransferError: data or weights that cannot be used.
    """
    for name in ("steps", "warmup_steps"):
        if not isinstance(cfg.proxy[name], int) or cfg.proxy[name] < 0:
            raise ConfigError(f"expected proxy.{name} of at least 0 training steps, got {cfg.proxy[name]}")
    set_threads(cfg)
    table, checkpoint = supernet_weights(cfg)
    data = build_data(cfg, None, table.preprocessing)
    file = Path(cfg.run_dir) / cfg.stage.prepares
    if not file.is_file():
        _make_warm_start(cfg, table, checkpoint, data, file)
    steps = cfg.proxy.steps
    supernet = _supernet(cfg, table, data, steps)
    load_network(supernet, load_checkpoint(str(file), table))
    train = partial(train_briefly, cfg, data=data, steps=steps) if steps else None
    return evaluator_of(cfg, supernet, data, train=train)


def _supernet(cfg: DictConfig, table: SupernetTable, data: Any, steps: int) -> Task:
    """A supernet whose subnets, cut out of it, have a recipe of so many steps."""
    total_batch = data.batch_size * cfg.task.recipe.accumulate
    return build_task(cfg, table, None, data, total_steps=steps, total_batch=total_batch)


def train_briefly(cfg: DictConfig, task: Task, *, data: Any, steps: int) -> int:
    """Train a task for so many steps as fine-tuning does; returns how many images it saw.

    Every call sees the same batches: they depend on the seed and the step alone.
    """
    device, batches = task.device, steps * task.recipe.accumulate
    data.stream(batches, batches_per_step=task.recipe.accumulate)
    build_bare_trainer(cfg).fit(task.train(), datamodule=data)
    task.to(device)  # Lightning leaves it on the CPU
    return batches * data.batch_size


def _make_warm_start(cfg: DictConfig, table: SupernetTable, checkpoint: Checkpoint, data: Any, file: Path) -> None:
    """Inherit, and train what starts anew (neck, head, last layer) behind the frozen body, all archs by turns."""
    task = _supernet(cfg, table, data, cfg.proxy.warmup_steps)
    anew = inherit(task, checkpoint)
    spent = Spent()
    if anew and cfg.proxy.warmup_steps:
        logger.info("warm-up of neck and head behind the frozen body: %d steps", cfg.proxy.warmup_steps)
        task.body.requires_grad_(False)
        start = time.monotonic()
        images = train_briefly(cfg, task, data=data, steps=cfg.proxy.warmup_steps)
        spent = Spent(time.monotonic() - start, "cuda" if torch.cuda.is_available() else "cpu", images)
        logger.info("warm-up: %d images in %.0f s", images, spent.seconds)
    write_json_atomically(file.with_suffix(SPENT), asdict(spent))
    save_checkpoint(
        file, task, parent=checkpoint, metrics={}, versions={}, stage=cfg.stage.name, config_sha256=config_sha256(cfg)
    )
