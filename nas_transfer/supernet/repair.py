"""Repair the subnets of a trained network in closed form, from unlabelled images and without a gradient.

A subnet that is cut out of one trained network computes something else: channels, blocks and parts of kernels are
missing. A `Repairer` refits its layers, block by block from the front, on the subnet's own activations, to what the
largest network computes on the same images (channel pruning by asymmetric reconstruction: He et al. 2017):

- every BatchNorm before a block's projection gets output moments equal to those of the largest network's norm; without
  a BatchNorm, the convolution before the activation or the LayerNorm gets them;
- a smaller depthwise kernel is the least-squares kernel where that predicts the larger kernel's output better;
- the projection is the ridge regression of the largest network's block output minus the subnet's own shortcut, before
  the activation if one follows the sum; a shortcut with a convolution and a BatchNorm is fitted along with it. The
  penalty pulls towards the sliced projection and is chosen on held-out images. The last block of a stage aims at the
  output of the whole stage, and so stands in for dropped blocks.

Where the subnet has another operation than the largest network, with weights of its own, only the projection is fitted;
the norms before it are recalibrated.

Each block keeps whichever has the least error on held-out images: the slice with its original statistics, the slice
with recalibrated statistics, or the repaired block. So does the body as a whole, whose error is that of its feature
maps.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_transfer.runs.phases import EVERY_SECONDS, Phase
from nas_transfer.supernet.activations import Sample, Walk, moments_of, stretched
from nas_transfer.supernet.calibrate import Moments, recalibrate_batch_norm
from nas_transfer.supernet.links import Link, Patches, permute_hidden, repair_module
from nas_transfer.supernet.mending import (
    ORIGINAL,
    RECALIBRATED,
    REPAIRED,
    ROWS_PER_CHANNEL,
    BlockRepair,
    Mender,
    Reference,
    guard_batches,
    look_at,
)
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.regression import greedy_order, linear_weight, mean_and_variance

logger = logging.getLogger(__name__)

ROWS = 32_768
"""Rows for each regression, of which one in sixteen is held out."""
MEMORY = 1 << 28
"""Bytes of the largest activations of one layer that are held at once."""


@dataclass(frozen=True)
class RepairReport:
    """What became of a subnet.

    Attributes:
        blocks: what became of its blocks, in order; of no use where `choice` is not ``repaired``.
        choice: ``repaired``, or ``original`` or ``recalibrated`` where the slice is nearer to the largest network.
        errors: for each choice the mean squared error of the feature maps on held-out images, each map relative to the
            variance of the largest network's.
    """

    blocks: tuple[BlockRepair, ...]
    choice: str
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """The error of the choice."""
        return self.errors[self.choice]


@dataclass(frozen=True)
class Probes:
    """The feature maps of the largest network on held-out images.

    Attributes:
        images: batches (B, 3, H, W).
        maps: for each batch the four maps (B, C, H', W').
        moments: of the four maps.
    """

    images: list[Tensor]
    maps: list[list[Tensor]]
    moments: list[Moments]

    @classmethod
    def of(cls, largest: nn.Module, images: list[Tensor]) -> Probes:
        """The maps on these images."""
        maps = [largest(batch) for batch in images]
        return cls(images, maps, [moments_of(tap) for tap in zip(*maps, strict=True)])

    def error(self, body: nn.Module) -> float:
        """The mean error of a body's feature maps, each relative to the variance of the leading channels wanted."""
        relative = []
        for (wrong, channels), moments in zip(self._wrong([body(images) for images in self.images]), self.moments):
            variance = float(mean_and_variance(moments, channels)[1].sum())
            relative.append(wrong / moments.count / max(variance, 1e-30))
        error = sum(relative) / len(relative)
        return error if math.isfinite(error) else math.inf

    def damage(
        self, maps: Sequence[Sequence[Tensor]], taps: Sequence[int], stretches: Sequence[Tensor] | None = None
    ) -> float:
        """The mean error of some feature maps, each relative to the variance of all of the largest network's channels.

        Args:
            maps: for each batch of the images the four maps (B, C, H, W) of a body. A missing channel counts with its
                variance, as if its mean stood for it. Maps of another size are resized bilinearly.
            taps: indices of the maps that count.
            stretches: for each batch the factors (B, 2) from a place in the maps wanted to the same place in these, as
                shares of width and height; None if places are the same shares.
        """
        relative = []
        for tap, ((wrong, channels), moments) in enumerate(zip(self._wrong(maps, stretches), self.moments)):
            variances = mean_and_variance(moments, self.maps[0][tap].shape[1])[1]
            total = float(variances.sum())
            if tap in taps:
                relative.append((wrong / moments.count + float(variances[channels:].sum())) / max(total, 1e-30))
        damage = sum(relative) / len(relative)
        return damage if math.isfinite(damage) else math.inf

    def _wrong(
        self, maps: Sequence[Sequence[Tensor]], stretches: Sequence[Tensor] | None = None
    ) -> list[tuple[float, int]]:
        """For each tap the sum of squared errors and the number of channels of a body's maps, given batch by batch."""
        wrong, channels = [0.0] * len(self.moments), [0] * len(self.moments)
        for number, (found, wanted) in enumerate(zip(maps, self.maps, strict=True)):
            for tap, (features, reference) in enumerate(zip(found, wanted, strict=True)):
                if stretches is not None:
                    features = stretched(features, reference.shape[2:], stretches[number])
                elif features.shape[2:] != reference.shape[2:]:
                    features = F.interpolate(features, reference.shape[2:], mode="bilinear", align_corners=False)
                channels[tap] = features.shape[1]
                wrong[tap] += float((features - reference[:, : features.shape[1]]).square().sum())
        return list(zip(wrong, channels, strict=True))


class Repairer:
    """Repairs subnets of one trained network. Its activations are gathered once, when a repairer is made.

    Args:
        table: the table of the supernet.
        largest: the plain body of the largest arch with BatchNorm statistics of its own, in eval mode. Where operations
            are chosen, it may be the body of any arch that has been trained as a whole.
        batches: unlabelled images (B, 3, H, W) as the body takes them, on its device; they are kept. A few hundred
            images or augmented views are needed: rows must outnumber the channels of the widest layer several times.
        rows: rows for each regression.
        memory: bytes of the largest activations that are held at once.

    Raises:
        ConfigError: the family of the table cannot be repaired.
        ValueError: there are fewer than two images.
    """

    def __init__(
        self, table: SupernetTable, largest: nn.Module, batches: Iterable[Tensor], *, rows: int = ROWS,
        memory: int = MEMORY,
    ) -> None:  # fmt: skip
        self._family = repair_module(table)
        self._largest = largest
        self._batches = list(batches)
        self._rows = rows
        self._samples: dict[int, Sample] = {}
        self._references: list[Reference] = []
        self._numbers: dict[tuple[int, int], int] = {}
        if not self._batches:
            raise ValueError("repairing a subnet needs at least 2 images, got none")
        with torch.no_grad():
            self._gather(largest, memory)
            sample = self._samples[max(self._samples)]
            self._probes = Probes.of(largest, sample.held_maps(self._batches[: sample.count]))

    @torch.no_grad()
    def repair(self, body: nn.Module) -> RepairReport:
        """Repair the body of a subnet in place.

        Args:
            body: a plain body as `extract` makes it, whose tensors are slices of those of the largest network, except
                in blocks of another `Link.kind`. It is left in eval mode.

        Returns:
            The choices and the errors. They depend on nothing but the subnet and the repairer's images.
        """
        body.eval()
        sliced = copy.deepcopy(body.state_dict())
        links = self._family.links(body)
        walk = Walk(self._family.stem(body), links, self._batches)
        return self._choose(body, sliced, self._mend(links, walk, range(len(links))))

    def _mend(self, links: Sequence[Link], walk: Walk, numbers: range) -> tuple[BlockRepair, ...]:
        """Mend consecutive blocks of a body; those before them are final."""
        blocks, starved = [], []
        for number in Phase(numbers, "repair of a body", "blocks", least_seconds=EVERY_SECONDS):
            link = links[number]
            own, target = self._own(links, number), self._target(links, number)
            mender = Mender(link, self._samples[link.stage], self._references[own], self._references[target].joined)
            inputs = walk.inputs(number, mender.sample.count)
            blocks.append(mender.mend(inputs))
            walk.put(number, mender.outputs)
            if mender.starved:
                starved.append(mender)
        if starved:
            worst = max(starved, key=lambda mender: mender.channels)
            logger.warning(
                "%d of %d blocks are not repaired, but recalibrated if they have BatchNorms: %s has %d channels and "
                "needs at least %d rows, got %d; give more images or views", len(starved), len(links), worst.link.name,
                worst.channels, ROWS_PER_CHANNEL * worst.channels, worst.fitted_rows,
            )  # fmt: skip
        return tuple(blocks)

    def _own(self, links: Sequence[Link], number: int) -> int:
        """The number of the same block in the largest network."""
        stage = links[number].stage
        return self._numbers[stage, number - next(n for n, other in enumerate(links) if other.stage == stage)]

    def _target(self, links: Sequence[Link], number: int) -> int:
        """The number of the block of the largest network whose output a block should have."""
        stage = links[number].stage
        if number + 1 < len(links) and links[number + 1].stage == stage:
            return self._own(links, number)
        return max(self._numbers[key] for key in self._numbers if key[0] == stage)

    def _choose(self, body: nn.Module, sliced: dict[str, Tensor], blocks: tuple[BlockRepair, ...]) -> RepairReport:
        """Leave the best of the repaired body, its slice and the recalibrated slice in the body."""
        errors = {REPAIRED: self._probes.error(body)}
        if any(block.choice != ORIGINAL for block in blocks):
            repaired = copy.deepcopy(body.state_dict())
            body.load_state_dict(sliced)
            errors[ORIGINAL] = self._probes.error(body)
            recalibrate_batch_norm(body, guard_batches(self._batches), body)
            errors[RECALIBRATED] = self._probes.error(body)
            best = min(errors, key=lambda name: errors[name])
            if best != RECALIBRATED:
                body.load_state_dict(repaired if best == REPAIRED else sliced)
            if best != REPAIRED:
                logger.warning(
                    "the slice (%s) is kept: its error on held-out images is %.3g, that of its repair %.3g",
                    best, errors[best], errors[REPAIRED],
                )  # fmt: skip
            return RepairReport(blocks, best, errors)
        return RepairReport(blocks, REPAIRED, errors)

    @property
    def probes(self) -> Probes:
        """The largest network's feature maps on held-out images."""
        return self._probes

    @property
    def held_images(self) -> tuple[list[int], ...]:
        """For each of the first batches the images of `probes`."""
        return self._samples[max(self._samples)].held_images

    @torch.no_grad()
    def changed(self, body: nn.Module) -> range:
        """The blocks of a plain body, counted from 0, from the first to the last that is not the largest network's.

        A block that stands in for dropped ones counts, and all blocks behind another stem; an empty range for a body
        that is the largest network's.
        """
        links, largest = self._family.links(body), self._family.links(self._largest)
        if not _equal(self._family.stem(body), self._family.stem(self._largest)):
            return range(len(links))
        found = []
        for number, link in enumerate(links):
            own = self._own(links, number)
            if self._target(links, number) != self._target(largest, own) or not _equal(link.block, largest[own].block):
                found.append(number)
        return range(found[0], found[-1] + 1) if found else range(0)

    @torch.no_grad()
    def repair_changes(self, body: nn.Module, before: LargestWalk) -> tuple[BlockRepair, ...]:
        """Repair only the `changed` blocks of a body in place, and leave the others as they are.

        Args:
            body: as for `repair`.
            before: the activations of the largest network, kept from one body to the next.
        """
        links, blocks = self._family.links(body.eval()), self.changed(body)
        walk = Walk(self._family.stem(body), links, self._batches)
        if blocks and _equal(self._family.stem(body), self._family.stem(self._largest)):
            count = self._samples[links[blocks.start].stage].count
            walk.put(blocks.start - 1, before.inputs(blocks.start, count))
        return self._mend(links, walk, blocks)

    def walk(self) -> LargestWalk:
        """The activations of the largest network, for `repair_changes`."""
        return LargestWalk(
            lambda: Walk(self._family.stem(self._largest), self._family.links(self._largest), self._batches)
        )

    def _gather(self, largest: nn.Module, memory: int) -> None:
        largest.eval()
        links = self._family.links(largest)
        stem = self._family.stem(largest)
        counts = batch_counts(stem, links, self._batches, memory)
        walk = Walk(stem, links, self._batches)
        index = 0
        for number, link in Phase(list(enumerate(links)), "activations of the whole network", "blocks"):
            index = index + 1 if number and links[number - 1].stage == link.stage else 0
            self._numbers[link.stage, index] = number
            inputs = walk.inputs(number, counts[link.stage])
            look = look_at(link, inputs)
            if link.stage not in self._samples:
                self._samples[link.stage] = Sample.draw(look.joined, self._rows, link.stage)
            self._references.append(Reference.of(link, look, self._samples[link.stage]))
            walk.put(number, [link.finish(maps) for maps in look.joined])


class LargestWalk:
    """The inputs of the largest network's blocks, computed once for bodies in the order of their first changed block.

    Args:
        start: makes a walk from the images.
    """

    def __init__(self, start: Callable[[], Walk]) -> None:
        self._start = start
        self._walk, self._number = start(), 0

    def inputs(self, number: int, count: int) -> list[Tensor]:
        """The inputs (B, C, H, W) of a block for the first `count` batches."""
        if number < self._number:
            self._walk = self._start()
        self._number = number
        return self._walk.inputs(number, count)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same tensors."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], tensor) for name, tensor in second.items())


def batch_counts(stem: nn.Module, links: Sequence[Link], batches: Sequence[Tensor], memory: int) -> list[int]:
    """For each stage the number of batches whose largest activations fit into `memory` bytes, at least two images'.

    Images of other sizes than the first one are counted as if they had its size.
    """
    features = stem(batches[0][:1])
    largest = [0] * (links[-1].stage + 1)
    for link in links:
        for branch in link.branches:
            hidden = branch.reads(features)
            for layer in branch.inner:
                hidden = layer(hidden)
                largest[link.stage] = max(largest[link.stage], hidden.numel() * hidden.element_size())
            if isinstance(branch.gate, Patches):
                size = hidden.numel() * hidden.element_size() * branch.gate.kernel_size**2
                largest[link.stage] = max(largest[link.stage], size)
        features = link.block(features)
    counts = []
    for size in largest:
        count, images = 0, 0
        for batch in batches:
            if images >= 2 and (images + len(batch)) * size > memory:
                break
            count, images = count + 1, images + len(batch)
        counts.append(count)
    return counts


@torch.no_grad()
def order_channels(
    table: SupernetTable, body: nn.Module, batches: Iterable[Tensor], *, rows: int = ROWS, memory: int = MEMORY
) -> None:
    """Order the hidden channels of every block so that narrow archs keep those that explain its output best.

    The order is that of `nas_transfer.supernet.regression.greedy_order`. It is nested for all widths, and the largest
    arch computes the same up to rounding. Make a `Repairer` from the largest arch after this, not before.

    Args:
        table: the table of the supernet.
        body: the supernet's body at its largest arch, or the largest arch's plain body, with BatchNorm statistics of
            that arch; changed in place and left in eval mode.
        batches, rows, memory: as in `Repairer`.

    Raises:
        ConfigError: the family of the table cannot be repaired.
        ValueError: there are fewer than two images.
    """
    family, images = repair_module(table), list(batches)
    if not images:
        raise ValueError("ordering channels needs at least 2 images, got none")
    body.eval()
    links, stem = family.links(body), family.stem(body)
    counts = batch_counts(stem, links, images, memory)
    walk = Walk(stem, links, images)
    samples: dict[int, Sample] = {}
    for number, link in Phase(list(enumerate(links)), "order of the channels", "blocks"):
        inputs = walk.inputs(number, counts[link.stage])
        hidden = [[branch.hidden(maps) for branch in link.branches] for maps in inputs]
        outputs = [link.finish(link.join(maps, features)) for maps, features in zip(hidden, inputs, strict=True)]
        sample = samples.setdefault(link.stage, Sample.draw(outputs, rows, link.stage))
        for index, branch in enumerate(link.branches):
            if isinstance(branch.gate, Patches):
                continue  # too many for a greedy order: the channels stay as they are
            found = sample.rows([maps[index] for maps in hidden])
            centred = found - found.mean(0)
            weight = linear_weight(branch.project)
            permute_hidden(branch, greedy_order(centred.T @ centred / len(found), weight))
        walk.put(number, outputs)
