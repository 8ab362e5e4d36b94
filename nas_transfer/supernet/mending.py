"""Mend one block of a subnet: match its norms, refit its kernels and its projection, keep what is best."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas_transfer.supernet import regression
from nas_transfer.supernet.activations import Sample, moments_of, norm_moments, patches_of
from nas_transfer.supernet.calibrate import Moments, recalibrate_batch_norm
from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.links import Branch, Link, Part, beside
from nas_transfer.supernet.ops import SqueezeExcite

ORIGINAL, RECALIBRATED, REPAIRED = "original", "recalibrated", "repaired"
KERNEL_ROWS = 4_096
"""Rows for the regression of depthwise kernels, which have few weights each."""
ROWS_PER_CHANNEL = 2
"""A projection is only regressed from at least this many rows for each of its input channels."""
GUARD_IMAGES = 64
"""Images that measure the statistics of a recalibrated block or body."""
PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
KERNEL_PENALTY = 1e-3
EXACT = 1e-9
"""A block with a relative error below this computes what the largest network computes."""


def guard_batches(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """The first batches with `GUARD_IMAGES` images, or all."""
    used, images = 0, 0
    while used < len(batches) and images < GUARD_IMAGES:
        images += len(batches[used])
        used += 1
    return batches[:used]


@dataclass(frozen=True)
class BlockRepair:
    """What became of one block.

    Attributes:
        name: name of the block.
        choice: ``original``, ``recalibrated`` or ``repaired``.
        errors: for each choice that was tried the squared error of the block's output on held-out images, relative to
            the variance of the largest network's output.
        penalties: penalty of the ridge regression of each part of the block that has branches; empty if the block was
            not repaired.
    """

    name: str
    choice: str
    errors: dict[str, float]
    penalties: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """The error of the choice."""
        return self.errors[self.choice]


@dataclass
class BranchLook:
    """The activations of one branch of the largest network.

    Attributes:
        norms: moments of the inputs of the inner norms.
        gate: moments of the two convolutions of a squeeze-and-excitation, before their activations.
        kernels: by position in `Branch.inner`, kernel size and outputs of depthwise convolutions that can shrink.
    """

    norms: list[Moments] = field(default_factory=list)
    gate: list[Moments] = field(default_factory=list)
    kernels: dict[int, tuple[int, list[Tensor]]] = field(default_factory=dict)


@dataclass
class Look:
    """The activations of one block of the largest network.

    Attributes:
        joined: the sums (B, C, H, W) before the block's ReLU.
        branches: one look for each branch.
    """

    joined: list[Tensor]
    branches: list[BranchLook]


def look_at(link: Link, inputs: Sequence[Tensor]) -> Look:
    """Run a block of the largest network on its inputs (B, C, H, W)."""
    pairs = [_look_at_branch(branch, inputs) for branch in link.branches]
    return Look(_joined(link, [hidden for _, hidden in pairs], inputs), [look for look, _ in pairs])


def _look_at_branch(branch: Branch, inputs: Sequence[Tensor]) -> tuple[BranchLook, list[Tensor]]:
    """A look, and the inputs (B, C, H, W) of the projection."""
    look, hidden = BranchLook(), [branch.reads(maps) for maps in inputs]
    for position, layer in enumerate(branch.inner):
        raw = [layer.conv(maps) for maps in hidden]
        look.norms.append(moments_of(raw))
        if layer.conv.groups > 1 and layer.conv.kernel_size[0] > 3:
            look.kernels[position] = layer.conv.kernel_size[0], raw
        hidden = [_finish(layer, maps) for maps in raw]
    gate = branch.gate
    if isinstance(gate, SqueezeExcite):
        squeezed = [gate.squeeze(_pooled(maps)) for maps in hidden]
        look.gate = [moments_of(squeezed), moments_of([gate.excite(gate.activate(maps)) for maps in squeezed])]
    if gate is not None:
        hidden = [gate(maps) for maps in hidden]
    return look, hidden


def _joined(link: Link, hidden: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The sums before a block's ReLU, batch by batch.

    Args:
        link: the block.
        hidden: for each branch the inputs of its projection, batch by batch.
        inputs: the block's inputs, batch by batch.
    """
    return [link.join([maps[index] for maps in hidden], features) for index, features in enumerate(inputs)]


@dataclass(frozen=True)
class BranchReference:
    """What is kept of a `BranchLook`: moments, and rows (R', C) of the thinned sample instead of kernels' outputs."""

    norms: list[Moments]
    gate: list[Moments]
    kernels: dict[int, tuple[int, Tensor]]


@dataclass(frozen=True)
class Reference:
    """What is kept of a `Look`.

    Attributes:
        kind: as in `Link`.
        joined: rows (R, C) of the sample.
        branches: one reference for each branch.
    """

    kind: Hashable
    joined: Tensor
    branches: list[BranchReference]

    @classmethod
    def of(cls, link: Link, look: Look, sample: Sample) -> Reference:
        """The rows of a sample."""
        thin, branches = sample.thinned(KERNEL_ROWS), []
        for branch in look.branches:
            kernels = {position: (size, thin.rows(maps)) for position, (size, maps) in branch.kernels.items()}
            branches.append(BranchReference(branch.norms, branch.gate, kernels))
        return cls(link.kind, sample.rows(look.joined), branches)


class Mender:
    """Mends one block of a subnet, in place.

    Args:
        link: the block.
        sample: the rows that are looked at.
        reference: the same block of the largest network.
        target: rows (R, C) that the sums before the block's ReLU should have; their leading channels count.

    Attributes:
        outputs: the outputs (B, C, H, W) of the mended block, after `mend`.
        starved: whether there were too few rows to repair the block.
        fitted_rows: number of rows that are not held out.
    """

    def __init__(self, link: Link, sample: Sample, reference: Reference, target: Tensor) -> None:
        self.link, self.sample, self.reference = link, sample, reference
        self.target = target[:, : link.out_channels]
        self.held = sample.held
        self.fitted_rows = int((~self.held).sum())
        self.starved = False
        self.outputs: list[Tensor] = []
        self._wanted = link.finish(self.target[self.held])
        self._variance = float((self._wanted - self._wanted.mean(0)).square().sum())

    @property
    def channels(self) -> int:
        """Input channels of the projections that are fitted together, at most."""
        return max(sum(branch.channels for branch in part.branches) for part in self.link.parts)

    def mend(self, inputs: Sequence[Tensor]) -> BlockRepair:
        """Choose the best of the slice as it is, recalibrated and repaired, and leave it in the block.

        Args:
            inputs: the block's inputs (B, C, H, W) in the subnet, for the batches of the sample.
        """
        link, block = self.link, self.link.block
        errors = {ORIGINAL: self._block_error(block, inputs)}
        choice, hidden = ORIGINAL, []
        penalties: tuple[float, ...] = ()
        if errors[ORIGINAL] > EXACT:
            sliced = copy.deepcopy(block.state_dict())
            recalibrated = self._recalibrated(inputs)
            errors[RECALIBRATED] = self._block_error(recalibrated, inputs)
            self.starved = self.fitted_rows < ROWS_PER_CHANNEL * self.channels
            if not self.starved:
                hidden = [self._match(number, inputs) for number in range(len(link.branches))]
                penalties, error = self._regress(hidden, inputs)
                if penalties:  # else there is nothing to fit, and the errors differ by rounding alone
                    errors[REPAIRED] = error
            choice = min(errors, key=lambda name: errors[name])
            if choice != REPAIRED:
                penalties = ()
                block.load_state_dict(sliced if choice == ORIGINAL else recalibrated.state_dict())
        if choice == REPAIRED:
            self.outputs = [link.finish(maps) for maps in _joined(link, hidden, inputs)]
        else:
            self.outputs = [block(features) for features in inputs]
        return BlockRepair(link.name, choice, errors, penalties)

    def _block_error(self, block: nn.Module, inputs: Sequence[Tensor]) -> float:
        outputs = [block(maps) for maps in self.sample.held_maps(inputs)]
        return self._error(self.sample.held_rows(outputs) - self._wanted)

    def _error(self, difference: Tensor) -> float:
        error = float(difference.square().sum()) / max(self._variance, 1e-30)
        return error if math.isfinite(error) else math.inf

    def _recalibrated(self, inputs: Sequence[Tensor]) -> nn.Module:
        """A copy of the block with the statistics of some of its inputs."""
        block = copy.deepcopy(self.link.block)
        recalibrate_batch_norm(block, guard_batches(inputs), block)
        return block

    def _match(self, number: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Repair what is before a branch's projection; returns the projection's inputs."""
        branch = self.link.branches[number]
        hidden = [branch.reads(maps) for maps in inputs]
        if self.link.kind != self.reference.kind:
            return _settle(branch, hidden)
        reference = self.reference.branches[number]
        for position, (layer, wanted) in enumerate(zip(branch.inner, reference.norms, strict=True)):
            size, rows = reference.kernels.get(position, (0, None))
            if rows is not None and layer.conv.kernel_size[0] < size:
                self._fit_kernels(layer.conv, hidden, rows)
            raw = [layer.conv(maps) for maps in hidden]
            if regression.match_layer(layer, moments_of(raw), wanted):
                raw = [layer.conv(maps) for maps in hidden]
            hidden = [_finish(layer, maps) for maps in raw]
        if isinstance(branch.gate, SqueezeExcite):
            _match_gate(branch.gate, hidden, reference.gate)
        if branch.gate is not None:
            hidden = [branch.gate(maps) for maps in hidden]
        return hidden

    def _fit_kernels(self, conv: nn.Conv2d, inputs: Sequence[Tensor], rows: Tensor) -> None:
        """Replace the kernels whose least-squares fit predicts held-out outputs of the larger kernel better."""
        thin = self.sample.thinned(KERNEL_ROWS)
        held, targets = thin.held, rows[:, : conv.out_channels]
        patches = torch.cat([patches_of(conv, *pair) for pair in zip(inputs, thin.indices, strict=True)])
        kernels, biases = regression.fit_kernels(patches[~held], targets[~held], KERNEL_PENALTY)
        sliced = torch.einsum("rck,ck->rc", patches, conv.weight.flatten(1))
        scales, shifts = regression.fit_kernels(sliced[~held, :, None], targets[~held], KERNEL_PENALTY)
        fitted = torch.einsum("rck,ck->rc", patches[held], kernels) + biases
        error = (fitted - targets[held]).square().sum(0)
        before = (sliced[held] * scales[:, 0] + shifts - targets[held]).square().sum(0)
        better = error < before
        conv.weight[better] = kernels.view_as(conv.weight)[better]

    def _regress(self, hidden: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]) -> tuple[tuple[float, ...], float]:
        """Replace the projections; returns their penalties and the relative error on held-out rows."""
        penalties, differences, first = [], [], 0
        targets = self.target.split([part.channels for part in self.link.parts], 1)
        for part, target in zip(self.link.parts, targets, strict=True):
            maps = [part.skipped(features, part.channels) for features in inputs]
            skipped = None
            if all(found is not None for found in maps):
                skipped = self.sample.rows([found for found in maps if found is not None])
            if not part.branches:
                if skipped is not None:
                    differences.append(self.link.finish(skipped[self.held]) - self.link.finish(target[self.held]))
                continue
            rows = [self.sample.rows(found) for found in hidden[first : first + len(part.branches)]]
            first += len(part.branches)
            penalty, difference = self._fit_part(part, rows, target, skipped)
            penalties.append(penalty)
            differences.append(difference)
        return tuple(penalties), self._error(beside(differences))

    def _fit_part(
        self, part: Part, rows: Sequence[Tensor], target: Tensor, skipped: Tensor | None
    ) -> tuple[float, Tensor]:
        """Replace the projections of one part.

        Args:
            part: the part.
            rows: for each branch rows (R, hidden) of the input of its projection.
            target: rows (R, C) that the part should have before the ReLU.
            skipped: rows (R, C) of the shortcut.

        Returns:
            The penalty, and the difference of the block's output from the wanted output on held-out rows.
        """
        if skipped is not None:
            target = target - skipped
        projects = [branch.project for branch in part.branches]
        prior = beside([regression.linear_weight(project) for project in projects])
        if self.link.rectified:
            shift = target.new_zeros(1, 1).expand_as(target) if skipped is None else skipped
            fitted = regression.fit_rectified(beside(rows), target, shift, self.held, PENALTIES, prior)
        else:
            fitted = regression.fit(beside(rows), target, self.held, PENALTIES, prior)
        weight, bias, penalty, difference = fitted
        columns = weight.split([branch.channels for branch in part.branches], 1)
        for project, part_weight, inputs in zip(projects, columns, rows, strict=True):
            regression.set_linear(project, part_weight, bias, inputs)
            bias = torch.zeros_like(bias)
        return penalty, difference


def match_batch_norms(
    network: nn.Module, inputs: Sequence[Tensor], reference: nn.Module, reference_inputs: Sequence[Tensor]
) -> None:
    """Match the norms of what reads a repaired body, such as a head, to those of the largest network's.

    All norms are matched at once, so none should read what another one computes.

    Args:
        network: changed in place; its BatchNorms have the names of those of `reference`.
        inputs: what `network` takes, batch by batch, from the repaired body.
        reference: the same part of the largest network.
        reference_inputs: what it takes for the same images.
    """
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    wanted_norms = {name: module for name, module in reference.named_modules() if isinstance(module, nn.BatchNorm2d)}
    own = norm_moments(norms, lambda: [network(features) for features in inputs])
    wanted = norm_moments(wanted_norms, lambda: [reference(features) for features in reference_inputs])
    with torch.no_grad():
        for name, moments in own.items():
            regression.match_norm(norms[name], moments, wanted[name])


def _finish(layer: ConvNormActivation, raw: Tensor) -> Tensor:
    """What a layer computes from the output of its convolution."""
    normalised = layer.norm(raw)
    return normalised if layer.activation is None else layer.activation(normalised)


def _settle(branch: Branch, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Recalibrate a branch that shares no weights with the largest network; returns the projection's inputs."""
    hidden = list(inputs)
    for layer in branch.inner:
        raw = [layer.conv(maps) for maps in hidden]
        regression.take_statistics(layer.norm, moments_of(raw))
        hidden = [_finish(layer, maps) for maps in raw]
    if branch.gate is not None:
        hidden = [branch.gate(maps) for maps in hidden]
    regression.take_statistics(branch.project.norm, moments_of([branch.project.conv(maps) for maps in hidden]))
    return hidden


def _pooled(maps: Tensor) -> Tensor:
    return maps.mean((2, 3), keepdim=True)


def _match_gate(gate: SqueezeExcite, inputs: Sequence[Tensor], wanted: Sequence[Moments]) -> None:
    """Give both convolutions of a squeeze-and-excitation outputs with the largest network's moments over images."""
    pooled = [_pooled(maps) for maps in inputs]
    regression.match_conv(gate.squeeze, moments_of([gate.squeeze(maps) for maps in pooled]), wanted[0])
    squeezed = [gate.activate(gate.squeeze(maps)) for maps in pooled]
    regression.match_conv(gate.excite, moments_of([gate.excite(maps) for maps in squeezed]), wanted[1])
