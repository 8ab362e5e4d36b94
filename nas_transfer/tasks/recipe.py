"""How the weights are updated: optimiser, learning-rate schedule, and which archs a supernet trains at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nas_transfer.arch import Arch
from nas_transfer.errors import report_faults
from nas_transfer.ranges import Count, Positive, PositiveNumber, Range, Share, ShareBelowOne
from nas_transfer.space import SearchSpace

OPTIMIZERS = ("sgd", "adam", "adamw")
RULES = ("sandwich", "single_path", "largest")
SCHEDULES = ("cosine", "linear", "poly", "step", "constant")
POLY_POWER = 0.9
CANDIDATES = 32
LARGEST_RATE = 1000.0
"""Largest learning rate and weight decay; any sensible one is far below."""

MacsOf = Callable[[Sequence[Arch]], npt.ArrayLike]


@dataclass(frozen=True)
class Recipe:
    """Optimiser and schedule.

    Args:
        optimizer: ``sgd`` (momentum, Nesterov off), ``adam``, ``adamw``.
        lr: peak learning rate at a total batch of `lr_batch` images.
        lr_batch: for the linear scaling rule (Goyal et al. 2017, section 2.1): a run with a total batch of b images
            (devices x batch per device x `accumulate`) uses lr * b / lr_batch; null to use `lr` for every batch.
        momentum: momentum of SGD; the first beta of Adam.
        weight_decay: weight decay of weights with more than one dimension; norms and biases have none.
        schedule: ``cosine``, ``linear``, ``poly`` ((1 - t)^0.9, Chen et al. 2018), ``step`` (x 0.1 at each milestone),
            ``constant``.
        final_factor: the rate at the end of ``cosine``, ``linear`` and ``poly``, as a fraction of `lr`.
        milestones: fractions of all steps at which ``step`` decays, e.g. 8 and 11 of 12 epochs: [0.667, 0.917].
        warmup_steps: length of a linear warm-up; at most a tenth of the run.
        warmup_factor: the rate at the start of the warm-up, as a fraction of the scheduled rate.
        clip_norm: upper bound of the L2 norm of the gradients; null for none.
        accumulate: batches whose gradients are averaged before a step.
        drop_path: stochastic depth (Huang et al. 2016): the share of images for which the last block of the body is
            skipped. It falls linearly to 0 at the first block. In a sandwich, for the largest arch only (BigNAS).

    Raises:
        ConfigError: a value out of range, by name.
    """

    optimizer: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Range(above=0, maximum=LARGEST_RATE)]
    lr_batch: Positive | None
    momentum: ShareBelowOne
    weight_decay: Annotated[float, Range(minimum=0, maximum=LARGEST_RATE)]
    schedule: Literal["cosine", "linear", "poly", "step", "constant"]
    final_factor: Share
    milestones: tuple[Annotated[float, Range(above=0, below=1)], ...]
    warmup_steps: Count
    warmup_factor: Share
    clip_norm: Annotated[float, Range(above=0, infinite=True)] | None
    accumulate: Positive
    drop_path: ShareBelowOne

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        report_faults(self._faults())

    def _faults(self) -> Iterator[str]:
        if self.optimizer not in OPTIMIZERS:
            yield f"task.recipe.optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
        if self.schedule not in SCHEDULES:
            yield f"task.recipe.schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
        if not self.lr > 0:
            yield f"task.recipe.lr must be above 0, got {self.lr}"
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            yield f"task.recipe.milestones must be shares of the run between 0 and 1, got {list(self.milestones)}"
        if self.accumulate < 1:
            yield f"task.recipe.accumulate must be at least 1, got {self.accumulate}"
        if self.lr_batch is not None and self.lr_batch < 1:
            yield f"task.recipe.lr_batch must be at least 1 or null, got {self.lr_batch}"
        if not 0 <= self.final_factor <= 1:
            yield f"task.recipe.final_factor must be in 0-1, got {self.final_factor}"
        if not 0 <= self.drop_path < 1:
            yield f"task.recipe.drop_path must be from 0 to below 1, got {self.drop_path}"

    def for_total_batch(self, images: int) -> Recipe:
        """This recipe with the learning rate of the linear scaling rule for a total batch of this many images."""
        if self.lr_batch is None:
            return self
        return replace(self, lr=self.lr * images / self.lr_batch, lr_batch=images)

    def build_optimizer(self, network: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """Build the optimiser of the trainable parameters, with weight decay for all but norms and biases.

        Args:
            network: what is trained.
            fused: let Adam and AdamW update by torch's fused kernels. They read memory in order, so each gradient must
                have the memory format of its parameter, as autograd leaves it. Fused SGD fails where a parameter gets
                its first gradient later than others, as in a supernet.
        """
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, betas=(self.momentum, 0.999), fused=fused or None)

    def lr_factor(self, step: int, total_steps: int) -> float:
        """The learning rate of this 0-based step as a fraction of `lr`."""
        warmup_steps = min(self.warmup_steps, total_steps // 10)
        progress = min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))
        factor = 1.0
        if self.schedule == "cosine":
            factor = self._down_to_final(0.5 * (1.0 + math.cos(math.pi * progress)))
        elif self.schedule == "linear":
            factor = self._down_to_final(1.0 - progress)
        elif self.schedule == "poly":
            factor = self._down_to_final((1.0 - progress) ** POLY_POWER)
        elif self.schedule == "step":
            factor = 0.1 ** sum(step >= round(milestone * total_steps) for milestone in self.milestones)
        if step < warmup_steps:
            factor *= self.warmup_factor + (1.0 - self.warmup_factor) * (step + 1) / (warmup_steps + 1)
        return factor

    def _down_to_final(self, factor: float) -> float:
        return self.final_factor + (1.0 - self.final_factor) * factor


@dataclass(frozen=True)
class ArchSampling:
    """Which archs one step of supernet training runs.

    Args:
        rule: ``sandwich`` (the largest arch, `num_random` uniform ones and the smallest; Yu et al. 2020, BigNAS),
            ``single_path`` (one uniform arch; Guo et al. 2020, SPOS, and DetNAS) or ``largest`` (the largest arch only:
            the first phase of once-for-all, and the baseline of a sandwich). Each branch of the space, such as one of
            several heads, has a sandwich or a largest arch of its own in every step.
        num_random: random archs of a sandwich.
        macs: null for random archs uniform in the space, or [low, high, step] for archs uniform in cost (DetNAS,
            section 4.1): a target from low to high by step is drawn, and the one of `CANDIDATES` random archs whose
            MACs in the task are nearest is taken.
        distillation: weight of the in-place distillation loss of the smaller archs against the outputs of the largest
            one, in 0-1; the loss against the labels gets the rest. 1 is BigNAS, 0 trains every arch on the labels only.

    Raises:
        ConfigError: a value out of range, by name.
    """

    rule: Literal["sandwich", "single_path", "largest"]
    num_random: Count
    macs: tuple[PositiveNumber, PositiveNumber, PositiveNumber] | None
    distillation: Share

    def __post_init__(self) -> None:
        if self.macs is not None:
            object.__setattr__(self, "macs", tuple(float(value) for value in self.macs))
        report_faults(self._faults())

    def _faults(self) -> Iterator[str]:
        macs = self.macs
        if macs is not None and (len(macs) != 3 or not 0 < macs[0] <= macs[1] or not macs[2] > 0):
            yield f"task.sampling.macs must be [low, high, step] or null, got {list(macs)}"
        if self.rule not in RULES:
            yield f"task.sampling.rule must be one of {', '.join(RULES)}, got {self.rule!r}"
        if self.num_random < 0:
            yield f"task.sampling.num_random must be at least 0, got {self.num_random}"
        if not 0 <= self.distillation <= 1:
            yield f"task.sampling.distillation must be in 0-1, got {self.distillation}"

    def archs_per_step(self, space: SearchSpace) -> int:
        """Forward and backward passes for one batch."""
        if self.rule == "single_path":
            return 1
        return len(space.branches()) * (self.num_random + 2 if self.rule == "sandwich" else 1)

    def draw(self, space: SearchSpace, seed: int, step: int, macs_of: MacsOf) -> list[Arch]:
        """Draw the archs of one step from (seed, step) only, so that all ranks and a resumed run draw the same.

        Args:
            space: the archs to draw from.
            seed: seed of the run.
            step: number of the step.
            macs_of: the MACs (N,) of archs, called only for archs that are uniform in cost.
        """
        generator = np.random.default_rng([seed, step])
        if self.rule == "single_path":
            return [self._random(space, generator, macs_of, {})]
        archs = []
        for branch in space.branches():
            archs.append(space.largest(branch))
            if self.rule == "sandwich":
                archs += [self._random(space, generator, macs_of, branch) for _ in range(self.num_random)]
                archs.append(space.smallest(branch))
        return archs

    def _random(
        self, space: SearchSpace, generator: np.random.Generator, macs_of: MacsOf, branch: Mapping[str, int]
    ) -> Arch:
        if self.macs is None:
            return space.sample(generator, branch)
        low, high, step = self.macs
        target = low + step * generator.integers(0, int((high - low) / step) + 1)
        archs = [space.sample(generator, branch) for _ in range(CANDIDATES)]
        return archs[int(np.abs(np.asarray(macs_of(archs)) - target).argmin())]
