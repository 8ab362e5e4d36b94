"""Training and scoring of any task by Lightning: one subnet, or a supernet by sandwiches of archs.

Lightning's manual optimisation is used, since a sandwich is several backward passes for one optimiser step. Adding up
the losses first would keep the activations of all archs in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.data.randomness import stable_seed
from nas_transfer.supernet.ops import ElasticBatchNorm2d
from nas_transfer.tasks.recipe import ArchSampling, Recipe
from nas_transfer.tasks.task import Task, Teacher


@dataclass(frozen=True)
class TrainingSettings:
    """How a task is trained.

    Args:
        recipe: optimiser and schedule.
        sampling: which archs a step of a supernet trains; unused for one arch.
        seed: seed of every random draw.
        total_steps: optimiser steps of the whole run, on which the schedule depends.
        keep_statistics: normalise by the statistics that BatchNorms hold already, and do not update them: for a short
            training of a network that computes something.
    """

    recipe: Recipe
    sampling: ArchSampling
    seed: int
    total_steps: int
    keep_statistics: bool = False


SCORE = "score"
"""The name under which callbacks find the score of a validation, on all ranks."""


class ScoringModule(pl.LightningModule):
    """A task that Lightning scores.

    Args:
        task: a subnet, since only a subnet has BatchNorm statistics to be scored with.

    Attributes:
        metrics: metrics of the last validation, as fractions in 0-1.
        metrics_step: the optimiser step of the last validation; -1 before the first.
        image_ids: the images that this rank validated last, one for each sample, in the order of the samples.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.metrics: dict[str, float] = {}
        self.metrics_step = -1
        self.image_ids: list[int] = []
        self._is_scored = False

    def on_validation_epoch_start(self) -> None:
        """Forget the images of the last validation."""
        self.image_ids = []
        self._is_scored = False

    def validation_step(self, batch: Mapping[str, object], batch_index: int) -> None:
        """Add one evaluation batch to the metrics."""
        self.task.update_metrics(batch)
        ids = batch.get("image_ids", batch.get("sample_ids"))  # a sample of a pose task is a person in an image
        if isinstance(ids, Tensor):
            self.image_ids += ids.tolist()

    def finish_scoring(self) -> dict[str, float]:
        """All metrics of the images of this validation, once they have been predicted; computed once."""
        if not self._is_scored:
            self.metrics = self.task.compute_metrics()
            self.metrics_step = self.trainer.global_step
            self._is_scored = True
        return self.metrics

    def on_validation_epoch_end(self) -> None:
        """Keep all metrics and log them as ``val/<name>``, and the score on all ranks as `SCORE`."""
        metrics = self.finish_scoring()
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, rank_zero_only=True)
        if self.task.score_key in metrics:
            self.log(SCORE, metrics[self.task.score_key], logger=False, sync_dist=True)


class TaskModule(ScoringModule):
    """A task that Lightning trains and scores.

    Args:
        task: a subnet, or a supernet, of which each step trains the archs that `settings.sampling` draws.
        settings: recipe, arch sampling, seed and length of the run.
        teacher: a larger network that a subnet imitates, with the share of `settings.sampling`; it is not trained.

    Attributes:
        samples_digest: a hash over the ids of all training samples of this rank in their order. It is equal in two
            runs that saw the same samples.
        training_macs: multiply-accumulates of all passes on all ranks so far, including those before an interruption.
        macs_before: the part before this process.
    """

    def __init__(self, task: Task, settings: TrainingSettings, teacher: Task | None = None) -> None:
        super().__init__(task)
        self.automatic_optimization = False
        self.settings = settings
        self._teachers = () if teacher is None else (teacher,)  # in a tuple, since it is no part of this module
        self.samples_digest = ""
        self.training_macs = self.macs_before = 0
        self._image_macs: dict[tuple[Arch, ...], int] = {}  # of the archs of the last step
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the recipe. Its learning rate is set at each step, from the number of the step.

        On the CPU, Adam and AdamW are torch's fused ones, three times as fast as the default. A gradient scaler would
        leave the unscaling to them, after the clipping.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        return self.settings.recipe.build_optimizer(self.task.network, fused=self.device.type == "cpu" and not scaled)

    def on_fit_start(self) -> None:
        """Let the BatchNorms of a supernet share their moments across ranks."""
        for module in self.task.network.modules():
            if isinstance(module, ElasticBatchNorm2d):
                module.synchronised = self.trainer.world_size > 1
        for teacher in self._teachers:
            teacher.to(self.device).train().requires_grad_(False)  # detectors compute losses in training mode alone
            keep_statistics(teacher)

    def training_step(self, batch: Mapping[str, object], batch_index: int) -> None:
        """Run one forward and backward pass for each arch of the step, and update after `accumulate` batches.

        Every draw (dropout, proposals) comes from a generator seeded by (seed, batch number, rank), and the archs from
        (seed, batch number), so that a resumed run repeats an uninterrupted one.
        """
        recipe, seed = self.settings.recipe, self.settings.seed
        if self.settings.keep_statistics:
            keep_statistics(self.task)
        self._note_samples(batch["sample_ids"])
        archs = self._draw_archs(batch_index)
        self._count(archs, batch["sample_ids"])
        teacher = self._taught(batch)
        torch.manual_seed(stable_seed(seed, batch_index, self.global_rank))
        with self._local_gradients():
            for position, arch in enumerate(archs):
                if self.task.is_supernet:
                    self.task.set_arch(arch)
                # Only the largest arch of a sandwich is regularised (BigNAS, Yu et al. 2020, section 3.3).
                regularise = position == 0 or not self._shares_branch(archs[position - 1], arch)
                if regularise and position:
                    teacher = None  # the sandwich of another head
                self.task.body.set_drop_path(recipe.drop_path if regularise else 0.0)
                losses, outputs = self.task.losses(batch, regularise=regularise, teacher=teacher)
                loss = torch.stack(list(losses.values())).sum()
                self.manual_backward(loss / recipe.accumulate)
                if position == 0:
                    self._log_losses(losses, loss)
                if regularise:
                    teacher = self._teacher(outputs, len(archs))
        if (batch_index + 1) % recipe.accumulate == 0:
            self._update()

    def _taught(self, batch: Mapping[str, object]) -> Teacher | None:
        """What the larger network computes for a batch; None without one."""
        for teacher in self._teachers:
            teacher.body.set_drop_path(0.0)
            with torch.no_grad():
                outputs = teacher.losses(batch, regularise=False, teacher=None)[1]
            return Teacher(outputs, self.settings.sampling.distillation)
        return None

    def _count(self, archs: Sequence[Arch], sample_ids: Tensor) -> None:
        """Add the MACs of a batch."""
        key = tuple(archs)
        if key not in self._image_macs:
            self._image_macs = {key: self._macs_of_image(archs)}
        self.training_macs += self._image_macs[key] * len(sample_ids) * self.trainer.world_size

    def _macs_of_image(self, archs: Sequence[Arch]) -> int:
        """The MACs of one image: a backward pass costs two forward passes, and a frozen body has none."""
        task = self.task
        total = 3 * int(task.cost_totals(archs).macs.sum())
        if not any(parameter.requires_grad for parameter in task.body.parameters()):
            sizes = [task.input_size(arch) for arch in archs]
            total -= 2 * int(task.table.body_totals([task.body_arch(arch) for arch in archs], sizes).macs.sum())
        return total + sum(int(teacher.cost_totals([teacher.active_arch]).macs[0]) for teacher in self._teachers)

    def _note_samples(self, sample_ids: Tensor) -> None:
        seen = self.samples_digest + str(sample_ids.tolist())
        self.samples_digest = hashlib.sha256(seen.encode()).hexdigest()

    def _draw_archs(self, batch_index: int) -> list[Arch]:
        task = self.task
        if task.arch is not SUPERNET:
            return [task.arch]
        return self.settings.sampling.draw(
            task.space, self.settings.seed, batch_index, lambda archs: task.cost_totals(archs).macs
        )

    def _shares_branch(self, one: Arch, other: Arch) -> bool:
        space = self.task.space
        return space.branch_of(one) == space.branch_of(other)

    def _teacher(self, outputs: object, num_archs: int) -> Teacher | None:
        share = self.settings.sampling.distillation
        return Teacher(outputs, share) if num_archs > 1 and share > 0 else None

    def _update(self) -> None:
        """Make one optimiser step with the gradients of the batches since the last one."""
        recipe = self.settings.recipe
        optimizer = self.optimizers()
        if self.task.is_supernet:
            self._average_gradients()
        rate = recipe.lr * recipe.lr_factor(self.global_step, self.settings.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.log("train/lr", rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients. Lightning calls this once a step, after it has unscaled those of mixed precision."""
        if self.settings.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.task.network.parameters(), self.settings.recipe.clip_norm)

    def _log_losses(self, losses: Mapping[str, Tensor], loss: Tensor) -> None:
        self.log("train/loss", loss.detach(), prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})

    def _local_gradients(self) -> contextlib.AbstractContextManager[None]:
        """Keep DDP from exchanging gradients at each backward pass of a sandwich."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block is not None and self.task.is_supernet else contextlib.nullcontext()

    def _average_gradients(self) -> None:
        """Average the gradients over the ranks in one all-reduce; all ranks drew the same archs, so the same set."""
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return
        gradients = [parameter.grad for parameter in self.task.network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    # What a checkpoint of Lightning does not hold by itself

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, including that before an interruption."""
        return self._seconds_before + time.monotonic() - self._started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the seconds and MACs spent and the digest of the samples seen."""
        checkpoint["seconds"] = self.seconds
        checkpoint["samples_digest"] = self.samples_digest
        checkpoint["training_macs"] = self.training_macs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from the seconds and samples of the interrupted run."""
        self._seconds_before = float(checkpoint["seconds"])
        self.samples_digest = str(checkpoint["samples_digest"])
        self.training_macs = self.macs_before = int(checkpoint.get("training_macs", 0))


def keep_statistics(task: Task) -> None:
    """Make the BatchNorms of a task use their running statistics in training, too."""
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
