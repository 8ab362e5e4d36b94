"""What all tasks share: training one subnet or the whole supernet, randomness, gradient exchange, extraction.

A task holds `network`, whose `body` comes from a supernet table. With an arch, the network is that arch's plain static
module; without one, it is the supernet, and each step trains the archs that `ArchSampling` draws.

Lightning's manual optimisation is used, since a sandwich is several backward passes for one step (adding up the losses
first would keep the activations of all archs in memory).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nas_transfer.data.module import Vocabulary
from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import ArchError
from nas_transfer.space import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.cost import Cost, CostTotals, totals_by_group
from nas_transfer.supernet.ops import ElasticBatchNorm2d, copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.deployment import Deployed, EngineNetwork, RawPixels, Run
from nas_transfer.tasks.normalise import Normalise
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.recipe import ArchSampling, Recipe

Batch = dict[str, Any]


@dataclass(frozen=True)
class TaskSettings:
    """What every task is built from.

    Args:
        table: the supernet's table.
        arch: the subnet to train, or `SUPERNET`.
        num_classes: taken from the data.
        recipe: optimiser and schedule.
        sampling: which archs a supernet's step trains; unused with an arch.
        seed: of every random draw.
        total_steps: optimiser steps of the whole run, on which the schedule depends; 0 if the task is only evaluated.
    """

    table: SupernetTable
    arch: ArchOrSupernet
    num_classes: int
    recipe: Recipe
    sampling: ArchSampling
    seed: int
    total_steps: int


class Task(pl.LightningModule, ABC):
    """The common part of all tasks.

    A subclass hands in its network, which holds the table's body as `body`, and gives the abstract methods. `score_key`
    names the metric that searches maximise, a fraction in 0-1; `classes_are` what `num_classes` counts;
    `input_follows_arch` tells whether each arch has an input size of its own. `normalise` maps uint8 images to what the
    weights expect, for networks that do not do so themselves.

    `ground_truth` is what the data module gives as such for the split that is evaluated; `predictions` holds the last
    evaluation's in COCO's result format by file name, for tasks that make such. `metrics` holds its metrics, and
    `metrics_step` the optimiser step at which it was made (-1 before the first). `samples_digest` is a hash over the
    ids of all training samples of this rank in their order: equal in two runs that saw the same.
    """

    score_key: str
    classes_are = "classes"
    input_follows_arch = False

    def __init__(self, settings: TaskSettings, network: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = settings
        self.table = settings.table
        self.arch = settings.arch
        self.recipe = settings.recipe
        self.sampling = settings.sampling
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.normalise: nn.Module = Normalise(settings.table.preprocessing)
        self.ground_truth: Any = None
        self.predictions: dict[str, list[dict[str, Any]]] = {}
        self.metrics: dict[str, float] = {}
        self.metrics_step = -1
        self.samples_digest = ""
        self.seconds_before = 0.0
        self._started = time.monotonic()

    @abstractmethod
    def losses(self, batch: Batch, teacher: Any) -> tuple[dict[str, Tensor], Any]:
        """The named losses of the active arch, whose sum is minimised, and the outputs that a smaller arch may imitate.

        `teacher` is what the largest arch of this sandwich returned, detached, or None.
        """

    @abstractmethod
    def update_metrics(self, batch: Batch) -> None:
        """Predict an evaluation batch and add it to the metric."""

    @abstractmethod
    def compute_metrics(self) -> dict[str, float]:
        """All metrics since the last call, over all ranks, as fractions; resets them."""

    @abstractmethod
    def forward_batch(self, batch: Batch) -> Any:
        """Run the network on an evaluation batch for its outputs, or only for its BatchNorm inputs."""

    @abstractmethod
    def predict_image(self, batch: Batch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """What a subnet says of one image, given as a batch by the data's `prediction_batch`."""

    @abstractmethod
    def input_size(self, arch: Arch) -> tuple[int, int]:
        """Height and width at which this task states an arch's cost."""

    def resize_factor(self, height: int, width: int) -> float:
        """The scale at which an image of this size enters the network; 1 where it is cropped instead."""
        return 1.0

    @abstractmethod
    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """The costs of what follows the body, by part (``neck``, ``head``), at `input_size`."""

    def costs(self, arch: Arch) -> dict[str, Cost]:
        """The costs of an arch by part: ``body`` and the parts of `head_costs`, at `input_size`."""
        return {"body": self.table.body_cost(arch, self.input_size(arch)), **self.head_costs(arch)}

    def cost_totals(self, archs: Sequence[Arch]) -> CostTotals:
        """MACs and parameters of many archs: int64 (N,), the sums over the parts of `costs`.

        Raises:
            ArchError: an arch of another space.
        """
        if not archs:
            return CostTotals(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

        def heads(place: int) -> tuple[int, int]:
            costs = self.head_costs(archs[place]).values()
            return sum(cost.macs for cost in costs), sum(cost.params for cost in costs)

        body = self.table.body_totals(archs, [self.input_size(arch) for arch in archs])
        return body + totals_by_group(self.table.head_keys(archs), heads)

    def prepared(self, batch: Batch, arch: Arch) -> Batch:
        """An evaluation batch as `arch` sees it; archs of the same input size see the same one."""
        return batch

    def _macs_of(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        return self.cost_totals(archs).macs

    def run_network(self, images: Tensor) -> Any:
        """A forward pass of the network alone, on normalised images (B, 3, H, W): for latency and memory."""
        return self.network(images)

    @abstractmethod
    def deployed(self) -> Deployed:
        """A subnet's network as others use it, from raw pixels to named outputs."""

    def run_by(self, run: Run) -> None:
        """Let another engine run what `deployed` gives, so that an evaluation scores that engine.

        For tasks whose network takes what `normalise` gives and has one output. All that is left of the network is that
        output and `body`.
        """
        self.normalise = RawPixels()
        self.network = EngineNetwork(run, self.body)

    def require_ground_truth(self) -> Any:
        """`ground_truth`; RuntimeError before it is set."""
        if self.ground_truth is None:
            raise RuntimeError("set ground_truth before an evaluation")
        return self.ground_truth

    # Archs

    @property
    def body(self) -> nn.Module:
        """The table's body inside the network: its `body`, unless a task keeps it elsewhere."""
        return self.network.body  # type: ignore[return-value]

    def set_arch(self, arch: Arch) -> None:
        """Make one arch of a supernet the active one.

        Raises:
            ArchError: the task is a single subnet, or `arch` is of another space.
        """
        if self.arch is not SUPERNET:
            raise ArchError(f"expected a supernet to choose an arch of, got the subnet {self.arch.short_id()}")
        for module in self.network.modules():
            if hasattr(module, "set_arch"):
                module.set_arch(arch)

    def extract(self, arch: Arch) -> Task:
        """The task of one subnet: a plain static network with its own copy of the weights.

        Raises:
            ArchError: the task is already a single subnet, or `arch` is of another space.
        """
        if self.arch is not SUPERNET:
            raise ArchError(f"expected a supernet to extract from, got the subnet {self.arch.short_id()}")
        subnet = self.rebuild(replace(self.settings, arch=arch))
        subnet.ground_truth = self.ground_truth
        reference = next(self.network.parameters())
        subnet.to(device=reference.device, dtype=reference.dtype)
        copy_slices(self.network, subnet.network)
        return subnet.train(self.training)

    @abstractmethod
    def rebuild(self, settings: TaskSettings) -> Task:
        """The same kind of task with new weights for other settings."""

    def calibrate(self, batches: Iterable[Batch]) -> int:
        """Recalibrate the BatchNorm statistics of a subnet on evaluation batches; returns how many were used."""
        moved = (self.transfer_batch_to_device(batch, self.device, 0) for batch in batches)
        return recalibrate_batch_norm(self.network, moved, self.forward_batch)

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser; its learning rate is set at each step, from the step's number alone."""
        return self.recipe.build_optimizer(self.network)

    def on_fit_start(self) -> None:
        """Let the supernet's BatchNorms share their moments across ranks."""
        for module in self.network.modules():
            if isinstance(module, ElasticBatchNorm2d):
                module.synchronised = self.trainer.world_size > 1

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """One forward and backward pass for each arch of the step, then, after `recipe.accumulate` batches, an update.

        Every draw (dropout, proposals) comes from a generator seeded by (seed, batch number, rank), and the archs from
        (seed, batch number), so that a resumed run repeats an uninterrupted one.
        """
        optimizer = self.optimizers()
        archs = (
            self.sampling.draw(self.table.space, self.settings.seed, batch_index, self._macs_of)
            if self.arch is SUPERNET
            else [self.arch]
        )
        seen = self.samples_digest + str(batch["sample_ids"].tolist())
        self.samples_digest = hashlib.sha256(seen.encode()).hexdigest()
        torch.manual_seed(stable_seed(self.settings.seed, batch_index, self.global_rank))
        teacher = None
        with self._local_gradients():
            for position, arch in enumerate(archs):
                if self.arch is SUPERNET:
                    self.set_arch(arch)
                # Only the largest arch of a sandwich is regularised (BigNAS, Yu et al. 2020, section 3.3).
                self.body.set_drop_path(self.recipe.drop_path if position == 0 else 0.0)  # type: ignore[operator]
                losses, outputs = self.losses(batch, teacher)
                loss = torch.stack(list(losses.values())).sum()
                self.manual_backward(loss / self.recipe.accumulate)
                if position == 0:
                    self._log_losses(losses, loss)
                    if len(archs) > 1 and self.sampling.distillation > 0:
                        teacher = outputs
        if (batch_index + 1) % self.recipe.accumulate:
            return
        if self.arch is SUPERNET:
            self._average_gradients()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        rate = self.recipe.lr * self.recipe.lr_factor(self.global_step, self.settings.total_steps)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        self.log("train/lr", rate)
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]

    def _log_losses(self, losses: dict[str, Tensor], loss: Tensor) -> None:
        self.log("train/loss", loss.detach(), prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})

    def _local_gradients(self) -> contextlib.AbstractContextManager[None]:
        """Keep DDP from exchanging gradients at each of a sandwich's backward passes."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block is not None and self.arch is SUPERNET else contextlib.nullcontext()

    def _average_gradients(self) -> None:
        """Average the gradients over the ranks in one all-reduce; all ranks drew the same archs, so the same set."""
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    # Evaluation

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add one evaluation batch to the metric; only a subnet has statistics to be evaluated with."""
        self.update_metrics(batch)

    def on_validation_epoch_end(self) -> None:
        """Keep all metrics in `metrics` and log them as ``val/<name>``."""
        self.metrics = self.compute_metrics()
        self.metrics_step = self.trainer.global_step
        self.log_dict({f"val/{name}": value for name, value in self.metrics.items()}, rank_zero_only=True)

    # What outlives an interruption beside Lightning's own state

    @property
    def seconds(self) -> float:
        """Wall time of training so far, the runs before an interruption included."""
        return self.seconds_before + time.monotonic() - self._started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the seconds spent and the digest of the samples seen."""
        checkpoint["seconds"] = self.seconds
        checkpoint["samples_digest"] = self.samples_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the interrupted run's seconds and samples."""
        self.seconds_before = float(checkpoint["seconds"])
        self.samples_digest = str(checkpoint["samples_digest"])
