"""Where a training is: a bar on a terminal, and lines of the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import CustomBarColumn
from rich.progress import ProgressColumn, TextColumn, TimeRemainingColumn

from nas_transfer.runs.phases import EVERY_SECONDS
from nas_transfer.runs.texts import duration
from nas_transfer.tasks.training import TaskModule

logger = logging.getLogger(__name__)


class ProgressLog(Callback):
    """Log every half minute the step, the speed and the time left of a training, and the batch of a validation.

    Args:
        what: what trains, such as ``warm-up``; empty for the training of a run.
        total_steps: the step at which it ends; None for the length of the learning-rate schedule.
    """

    def __init__(self, what: str = "", total_steps: int | None = None) -> None:
        self.what = f"{what}: " if what else ""
        self.total_steps = total_steps
        self.first_step = 0
        self.started = self.told = self.scoring_since = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Start counting at the first step of this process, also in a resumed run."""
        self.first_step = trainer.global_step
        self.started = self.told = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: object) -> None:
        """Log, if half a minute has passed."""
        now, step = time.monotonic(), trainer.global_step
        total = self.total_steps or task.settings.total_steps
        if now - self.told < EVERY_SECONDS or step == self.first_step:
            return
        self.told = now
        rate = (now - self.started) / (step - self.first_step)
        loss = trainer.callback_metrics.get("train/loss")
        logger.info(
            "%sstep %d of %d, %.2f s per step%s, %s left",
            self.what, step, total, rate, "" if loss is None else f", loss {float(loss):.3f}",
            duration(rate * (total - step)),
        )  # fmt: skip

    def on_validation_start(self, *_: object) -> None:
        """Start counting the batches of a validation."""
        self.scoring_since = self.told = time.monotonic()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, batch: object, index: int, *_: object
    ) -> None:
        """Log, if half a minute has passed."""
        now, total = time.monotonic(), int(sum(trainer.num_val_batches))
        if now - self.told >= EVERY_SECONDS and total:
            self.told = now
            left = (now - self.scoring_since) / (index + 1) * (total - index - 1)
            logger.info("%sscoring: batch %d of %d, %s left", self.what, index + 1, total, duration(left))


class TrainingBar(RichProgressBar):
    """Lightning's bar with the step of the run and the time left; log lines appear above it."""

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """Name, bar, steps and time left."""
        module = trainer.lightning_module
        accumulates = isinstance(module, TaskModule) and module.settings.recipe.accumulate > 1
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(complete_style=self.theme.progress_bar, finished_style=self.theme.progress_bar_finished),
            TextColumn(f"{{task.completed}} of {{task.total}} {'batches' if accumulates else 'steps'}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        ]

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    @property
    def validation_description(self) -> str:
        """The name of the bar of a validation."""
        return "scoring "

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The loss, without the number of the log."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in metrics.items() if name != "v_num"}

    def _init_progress(self, trainer: pl.Trainer) -> None:
        before = sys.stdout
        super()._init_progress(trainer)
        _redirect(before, sys.stdout)

    def _stop_progress(self) -> None:
        before = sys.stdout
        super()._stop_progress()
        _redirect(before, sys.stdout)


def _redirect(before: object, after: object) -> None:
    """Let the log write to the stream by which rich has replaced standard output: its lines then spare the bar."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before and before is not after:
            handler.setStream(after)
