"""Progress as lines of a log, for jobs without a terminal."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from nas_transfer.runs.texts import duration

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0


class ProgressLog(Callback):
    """Log every half minute the step, the speed and the time left of a training."""

    def __init__(self) -> None:
        self.first_step = 0
        self.started = self.told = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Start counting at the first step of this process, also in a resumed run."""
        self.first_step = trainer.global_step
        self.started = self.told = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, *_: object) -> None:
        """Log, if half a minute has passed."""
        now, step, total = time.monotonic(), trainer.global_step, task.settings.total_steps
        if now - self.told < EVERY_SECONDS or step == self.first_step:
            return
        self.told = now
        rate = (now - self.started) / (step - self.first_step)
        loss = trainer.callback_metrics.get("train/loss")
        logger.info(
            "step %d of %d, %.2f s per step%s, %s left",
            step, total, rate, "" if loss is None else f", loss {float(loss):.3f}", duration(rate * (total - step)),
        )  # fmt: skip
