"""How fast a supernet and a single network train, and how much memory they take."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from gpu_checks.context import Context
from gpu_checks.networks import CLASSES, build_task
from gpu_checks.table import Row, stated
from nas_transfer.arch import SUPERNET
from nas_transfer.tasks.recipe import ArchSampling, Recipe
from nas_transfer.tasks.training import TaskModule, TrainingSettings

WARMUP_STEPS = 3


class Timer(Callback):
    """Times the steps after the first ones."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Note the time once the device has done the step."""
        self.context.synchronise()
        self.ends.append(time.perf_counter())

    @property
    def step_seconds(self) -> float:
        """The mean of the timed steps."""
        timed = self.ends[WARMUP_STEPS - 1 :]
        return (timed[-1] - timed[0]) / (len(timed) - 1)


def check_training_speed(context: Context) -> Iterator[Row]:
    """Images a second and memory of a sandwich of four archs and of the largest arch alone, in float32 and bfloat16."""
    supernet, side, size, steps = ("bignas_nano", 48, 4, 4) if context.tiny else ("bignas", 224, 64, 13)
    table = context.table(supernet)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.randint(256, (size, 3, side, side), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(CLASSES, (size,), generator=generator),
        "sample_ids": torch.arange(size),
    }
    for name, arch in (("sandwich of 4", SUPERNET), ("max alone", table.space.largest())):
        for precision in ("32-true", "bf16-mixed"):
            task = build_task(context, supernet, arch)
            context.peak_mib()
            timer = Timer(context)
            trainer = pl.Trainer(
                accelerator="gpu" if context.on_gpu else "cpu", devices=1, precision=precision, max_steps=steps,
                callbacks=[timer], logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, limit_val_batches=0,
            )  # fmt: skip
            trainer.fit(TaskModule(task, _settings(steps)).train(), DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
            yield stated(f"{supernet}, {name}, {precision}, batch {size}", size / timer.step_seconds, "images/s")
            peak = context.peak_mib()
            if peak is not None:
                yield stated(f"{supernet}, {name}, {precision}: peak memory", peak, "MiB")


def _settings(steps: int) -> TrainingSettings:
    recipe = Recipe(
        optimizer="sgd", lr=0.01, lr_batch=None, momentum=0.9, weight_decay=1e-5, schedule="constant", final_factor=0.0,
        milestones=(), warmup_steps=0, warmup_factor=1.0, clip_norm=1.0, accumulate=1, drop_path=0.0,
    )  # fmt: skip
    return TrainingSettings(recipe, ArchSampling("sandwich", 2, None, 1.0), seed=0, total_steps=steps)
