"""One optimiser step of a supernet: against static subnets, and in mixed precision with clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from gpu_checks.context import Context, exact_float32
from gpu_checks.networks import CLASSES, build_task, gradients_of
from gpu_checks.table import Row, at_least, near
from nas_transfer.arch import SUPERNET
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.recipe import ArchSampling, Recipe
from nas_transfer.tasks.training import TaskModule, TrainingSettings

SUPERNET_NAME = "bignas_nano"
CLIP_NORM = 0.1
LEAST_COSINE = {"bf16-mixed": 0.95, "16-mixed": 0.99}
"""Of a step's direction with that of float32: bfloat16 keeps 8 bits of each value, float16 keeps 11."""
FIRST_SCALE = 2.0**16
"""Of torch's GradScaler."""
LABELS_ALONE = ArchSampling("sandwich", num_random=2, macs=None, distillation=0.0)
DISTILLED = ArchSampling("sandwich", num_random=1, macs=None, distillation=1.0)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        update: by which all weights changed: (number of weights,).
        loss: of the largest arch.
        scale: of the losses after the step, 1 without scaling.
    """

    update: Tensor
    loss: float
    scale: float


def check_sandwich_step(context: Context) -> Iterator[Row]:
    """A step of a sandwich against the sum of static subnets, and in each precision against float32 when clipped."""
    images = _batch(16 if context.tiny else 64, 64 if context.tiny else 96)
    with exact_float32():
        yield _against_static_subnets(context, images)
        clipped = _step(context, images, "32-true", clip_norm=CLIP_NORM)
        unclipped = _step(context, images, "32-true")
        yield at_least("norm of the gradients that are clipped", unclipped.update.norm().item(), 2 * CLIP_NORM)
        yield near("32-true: norm of a clipped step", clipped.update.norm().item(), CLIP_NORM, 1e-3 * CLIP_NORM)
        yield from _mixed(context, images, "bf16-mixed", clipped)
        yield from _mixed(context, images, "16-mixed", clipped)


def _batch(size: int, side: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(256, (size, 3, side, side), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(CLASSES, (size,), generator=generator),
        "sample_ids": torch.arange(size),
    }


def _against_static_subnets(context: Context, batch: Batch) -> Row:
    """The squared norm of a sandwich's gradient G against the sum of <g, G> over the gradients g of static subnets.

    Each <g, G> is taken over the weights of a subnet, so that a gradient that reaches a wrong weight changes the sum.
    """
    task = build_task(context, SUPERNET_NAME, SUPERNET)
    archs = LABELS_ALONE.draw(task.space, 0, 0, lambda archs: [0.0] * len(archs))
    statics = [task.extract(arch).train() for arch in archs]
    before = _weights(task)
    _fit(context, TaskModule(task, _settings(LABELS_ALONE, None)), batch, "32-true")
    task.to(context.device)
    whole = before - _weights(task)
    for parameter, part in zip(
        task.network.parameters(), whole.split([p.numel() for p in task.network.parameters()]), strict=True
    ):
        parameter.grad = part.view_as(parameter).to(context.device)
    holder = gradients_of(task)
    total = 0.0
    on_device = {name: tensor.to(context.device) for name, tensor in batch.items()}
    for arch, static in zip(archs, statics, strict=True):
        losses, _ = static.losses(on_device, regularise=False, teacher=None)
        torch.stack(list(losses.values())).sum().backward()
        pairs = zip(static.network.parameters(), holder.extract(arch).network.parameters(), strict=True)
        total += sum((own.grad.double() * part.double()).sum().item() for own, part in pairs if own.grad is not None)
    square = whole.double().square().sum().item()
    return near("32-true: sandwich / its static subnets", square / total, 1.0, 1e-3)


def _mixed(context: Context, batch: Batch, precision: str, exact: Step) -> Iterator[Row]:
    """Rows of a clipped step in mixed precision against that in float32."""
    step = _step(context, batch, precision, clip_norm=CLIP_NORM)
    scale = FIRST_SCALE
    while precision == "16-mixed" and step.update.norm() == 0 and scale > 1:
        scale /= 8  # the scaler left the step out because a gradient was infinite, as it should; try a smaller scale
        step = _step(context, batch, precision, clip_norm=CLIP_NORM, scale=scale)
    cosine = torch.nn.functional.cosine_similarity(step.update.double(), exact.update.double(), dim=0).item()
    yield near(f"{precision}: loss", step.loss, exact.loss, 0.05 * exact.loss)
    # Clipped before they are unscaled, gradients would be smaller by the scale.
    yield near(f"{precision}: norm of a clipped step", step.update.norm().item(), CLIP_NORM, 1e-2 * CLIP_NORM)
    yield at_least(f"{precision}: cosine of the step with float32's", cosine, LEAST_COSINE[precision])
    if precision == "16-mixed":
        yield near("16-mixed: scale after a step", math.log2(step.scale), math.log2(scale), 0.0, "log2")


def _step(
    context: Context, batch: Batch, precision: str, *, clip_norm: float | None = None, scale: float = FIRST_SCALE
) -> Step:
    task = build_task(context, SUPERNET_NAME, SUPERNET)
    before = _weights(task)
    module = TaskModule(task, _settings(DISTILLED, clip_norm))
    trainer = _fit(context, module, batch, precision, scale)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return Step(
        update=_weights(task) - before,
        loss=float(trainer.callback_metrics["train/loss"]),
        scale=1.0 if scaler is None else scaler.get_scale(),
    )


def _settings(sampling: ArchSampling, clip_norm: float | None) -> TrainingSettings:
    """Plain SGD at rate 1, with which a step is the gradient."""
    recipe = Recipe(
        optimizer="sgd", lr=1.0, lr_batch=None, momentum=0.0, weight_decay=0.0, schedule="constant", final_factor=0.0,
        milestones=(), warmup_steps=0, warmup_factor=1.0, clip_norm=clip_norm, accumulate=1, drop_path=0.0,
    )  # fmt: skip
    return TrainingSettings(recipe, sampling, seed=0, total_steps=1)


def _fit(context: Context, module: TaskModule, batch: Batch, precision: str, scale: float = FIRST_SCALE) -> pl.Trainer:
    """Train for one step."""
    device = context.device.type
    # Lightning scales losses by itself on a GPU alone, and without a choice of the first scale.
    by_hand = precision == "16-mixed" and (device == "cpu" or scale != FIRST_SCALE)
    plugins = [MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=scale))] if by_hand else []
    trainer = pl.Trainer(
        accelerator="gpu" if context.on_gpu else "cpu", devices=1, precision=None if by_hand else precision,
        plugins=plugins, max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module.train(), DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    return trainer


def _weights(task: ClassificationTask) -> Tensor:
    """All weights of a task, on the CPU: (number of weights,)."""
    return torch.cat([parameter.detach().flatten().cpu() for parameter in task.network.parameters()])
