"""Validate a dataset and estimate the training time."""

from __future__ import annotations

import logging
import os
import resource
import statistics
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from rich.progress import track

from nas_transfer.arch import ArchOrSupernet
from nas_transfer.data.check_text import PROBLEMS, check_text
from nas_transfer.data.inspection import Inventory, Seen, leaks, part_findings, search_findings, see_all, summarise
from nas_transfer.errors import NasTransferError
from nas_transfer.runs import Check, TrainingEstimate, files
from nas_transfer.stages.common.build import (
    build_arch,
    build_bare_trainer,
    build_data,
    build_task,
    build_training_settings,
    build_weights,
    make_data,
    set_threads,
)
from nas_transfer.stages.common.training import steps_of_epoch
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import CheckConfig
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, inherit
from nas_transfer.tasks.training import TaskModule

logger = logging.getLogger(__name__)

WARMUP_STEPS, LEAST_STEPS, MOST_STEPS = 2, 2, 20
"""Numbers of untimed steps, and of timed steps at least and at most."""
ENOUGH_SECONDS = 15.0
"""Timed seconds after which no further step is timed."""
MOST_THREADS = 4


def run(cfg: DictConfig, folder: Path) -> None:
    """Read, count, time and print; there is no `result.json`, so that the same command checks the data again.

    Raises:
        ConfigError: the length of the training is missing.
        NasTransferError: there is no data, or the weights cannot be read.
    """
    config = read_config(cfg, CheckConfig)
    set_threads(config.num_threads)
    start = time.monotonic()
    table, parent = build_weights(config)
    arch = build_arch(config, table)
    factor = build_task(config, table, arch, None).resize_factor
    data = make_data(config.data, arch, table.preprocessing)
    inventories = data.inventories()
    seen = {part: _see(config, part, inventory) for part, inventory in inventories.items()}
    findings = [finding for part in seen for finding in part_findings(part, inventories[part], seen[part], factor)]
    if "train" in inventories:
        findings += search_findings(inventories["train"])
    findings += leaks(seen, inventories["train"].search if "train" in inventories else ())
    counts = Counter(finding.kind for finding in findings)
    seconds = time.monotonic() - start
    training: TrainingEstimate | str
    broken = counts["broken"]
    if broken and not config.data["skip_broken"]:
        training = f"images must be readable, got {broken} broken: repair or remove them, or set data.skip_broken=true"
    else:
        training = _training(config, table, parent, arch)
    check = Check(
        task=config.task.name,
        root=str(data.root),
        parts={part: summarise(inventories[part], seen[part]) for part in seen},
        counts=dict(counts),
        num_problems=sum(finding.kind in PROBLEMS for finding in findings),
        findings=tuple(findings),
        seconds=seconds,
        training=None if isinstance(training, str) else training,
        not_timed=training if isinstance(training, str) else "",
        form="; ".join(dict.fromkeys(inventory.form for inventory in inventories.values())),
    )
    check.write(folder)
    print(check_text(check))
    print(f"details: {folder / files.CHECK}")


def _see(config: CheckConfig, part: str, inventory: Inventory) -> list[Seen]:
    threads = config.num_workers or min(MOST_THREADS, os.cpu_count() or 1)
    return list(
        track(
            see_all(inventory, threads),
            f"reading {part}",
            total=len(inventory.files),
            transient=True,
            disable=not (config.trainer.enable_progress_bar and sys.stdout.isatty()),
        )
    )


def _training(
    config: CheckConfig, table: SupernetTable, parent: Checkpoint | None, arch: ArchOrSupernet
) -> TrainingEstimate | str:
    """How long training takes, or the reason for which training fails."""
    try:
        return _timed_training(config, table, parent, arch)
    except (NasTransferError, torch.OutOfMemoryError) as error:
        return _sentence(error)
    except RuntimeError as error:
        logger.warning("training failed", exc_info=True)
        return _sentence(error)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class StepTimes(Callback):
    """Records when each optimiser step ends, and stops the training after enough timed steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.steps = 0

    @property
    def seconds(self) -> list[float]:
        """The duration of each timed step."""
        return np.diff(self.ends[WARMUP_STEPS - 1 :]).tolist()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Record the time after a step that the device has completed."""
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        timed = self.seconds
        trainer.should_stop = len(timed) >= LEAST_STEPS and sum(timed) >= ENOUGH_SECONDS


def _timed_training(
    config: CheckConfig, table: SupernetTable, parent: Checkpoint | None, arch: ArchOrSupernet
) -> TrainingEstimate:
    """Train a few steps on one device as the training stage would, and extrapolate to the whole run."""
    on_one_device = replace(config.trainer, devices=1, num_nodes=1, strategy="auto")
    config = replace(config, trainer=on_one_device)
    data = build_data(config.data, arch, table.preprocessing)
    steps = WARMUP_STEPS + MOST_STEPS
    trainer = build_bare_trainer(config.trainer, steps)
    epoch = steps_of_epoch(config, data, trainer)
    total = config.trainer.steps(epoch)
    accumulate = config.task.recipe.build().accumulate
    task = build_task(config, table, arch, data)
    if parent is not None:
        inherit(task, parent)
    data.stream(steps * accumulate, batches_per_step=accumulate)
    times = StepTimes()
    trainer.callbacks.append(times)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    settings = build_training_settings(config, total, data.batch_size * accumulate)
    trainer.fit(TaskModule(task, settings).train(), datamodule=data)
    seconds = statistics.median(times.seconds)  # other work on the machine disturbs single steps
    return TrainingEstimate(
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        arch=config.arch,
        batch=data.batch_size * accumulate,
        step_seconds=seconds,
        steps_timed=len(times.seconds),
        steps=total,
        epochs=total / epoch,
        hours=seconds * total / 3600,
        peak_memory_gb=(torch.cuda.max_memory_reserved() if on_gpu else _peak_bytes()) / 1e9,
    )


def _peak_bytes() -> int:
    """Peak memory of this process in bytes, without its data loading processes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # in kilobytes, except on macOS
