"""A log tells where a training is, at the pace of its own steps."""

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nas_transfer.stages.common.progress import ProgressLog


def test_a_line_every_half_minute_with_the_rate_of_this_processs_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    task: Any = SimpleNamespace(settings=SimpleNamespace(total_steps=400))
    trainer: Any = SimpleNamespace(global_step=100, callback_metrics={})  # resumed
    progress = ProgressLog()
    clock[0] += 500  # until data and network are there
    progress.on_train_start(trainer, task)
    for _ in range(60):
        clock[0] += 1
        progress.on_train_batch_end(trainer, task)  # the first of two batches a step
        clock[0] += 1
        trainer.global_step += 1
        trainer.callback_metrics["train/loss"] = torch.tensor(0.5)
        progress.on_train_batch_end(trainer, task)
    assert [record.getMessage() for record in caplog.records] == [
        f"step {100 + done} of 400, 2.00 s per step, loss 0.500, {left} left"
        for done, left in ((15, "570 s"), (30, "540 s"), (45, "510 s"), (60, "480 s"))
    ]
