"""Cut subnets out of one trained network of a task and repair them in closed form, without labels or a gradient.

The body is repaired by `nas_transfer.supernet.repair`, neck and head by the `head_repair` of the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.runs.phases import Phase
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.supernet.repair import Repairer, RepairReport, order_channels
from nas_transfer.tasks.head_repair import Batch, HeadRepair, Views, body_inputs
from nas_transfer.tasks.task import Task

ENOUGH_ROWS = 16_384
"""Positions of the coarsest map, over all images, beyond which no more views are taken."""


@dataclass(frozen=True)
class Whole:
    """The trained network at one input size, and what repairs subnets of this size."""

    task: Task
    body: Repairer
    head: HeadRepair


@dataclass(frozen=True)
class _WholeBody:
    """The trained network at one input size, what repairs bodies of its subnets, and the images as it takes them."""

    task: Task
    repairer: Repairer
    views: Views


class SubnetRepairer:
    """Repairs the subnets of one trained network.

    Args:
        supernet: holds the weights of the trained network in its largest arch (`nas_transfer.tasks.checkpoint`), on its
            device. Its channels are ordered here, in place, so that narrow archs keep those that explain the output
            best; the largest arch computes the same up to rounding.
        views: training batches without need of labels. Those beyond `ENOUGH_ROWS` are left alone.
        shared: repair a network once, at the largest input size, for all choices of its `Task.weightless_genes`. The
            latest network is kept, so that it costs little to ask for it again with other choices of these genes.
            Otherwise, each arch is repaired at its own input size.
        body_alone: leave neck and head as they are, for `SubnetRepairer.body`.

    Raises:
        ConfigError: the family of the table cannot be repaired.
        ValueError: there are fewer than two images.
    """

    def __init__(
        self, supernet: Task, views: Iterable[Batch], *, shared: bool = False, body_alone: bool = False
    ) -> None:
        self._supernet = supernet.eval()
        self._shared = shared
        self._latest: Task | None = None
        self._bodies: dict[tuple[int, int], _WholeBody] = {}
        self._heads: dict[tuple[int, int], HeadRepair] = {}
        supernet.set_arch(supernet.space.largest())
        self._views: list[Batch] = []
        images: list[Tensor] = []
        task = supernet.extract(supernet.space.largest())
        for batch in Phase(views, "reading images for the repair", "batches"):
            self._views.append(batch)
            images += body_inputs(task, [batch])
            if sum(_coarsest_rows(maps) for maps in images) >= ENOUGH_ROWS:
                break
        order_channels(supernet.table, supernet.body, images)
        if body_alone:
            return
        with torch.no_grad():
            supernet.head_repair.order(supernet, Views(self._views, images))

    @property
    def supernet(self) -> Task:
        """The supernet whose subnets are repaired."""
        return self._supernet

    @property
    def whole(self) -> Task:
        """The trained network with its channels in the order of its subnets, in eval mode."""
        return self._supernet.extract(self._supernet.space.largest())

    def extract(self, arch: Arch) -> Task:
        """The repaired subnet of an arch, in eval mode. It follows from the arch, the weights and the views alone.

        Raises:
            ConfigError: the weights hold another head than the arch has.
        """
        space = self._supernet.space
        if space.branch_of(arch) != space.branch_of(space.largest()):
            held, wanted = (self._supernet.head_name(one) for one in (space.largest(), arch))
            raise ConfigError(
                f"the weights of one whole network hold its head {held} alone, got an arch with the head {wanted}: use "
                "the weights of a supernet, trained with arch=supernet"
            )
        subnet = self._supernet.extract(arch)
        if not self._shared:
            self.repair(subnet)
            return subnet
        at_largest = self._supernet.with_weightless_genes_of(self._supernet.space.largest(), arch)
        if self._latest is None or self._latest.active_arch != at_largest:
            self._latest = self._supernet.extract(at_largest)
            self.repair(self._latest)
        subnet.network.load_state_dict(self._latest.network.state_dict())
        return subnet

    @torch.no_grad()
    def body(self, arch: Arch) -> nn.Module:
        """The repaired body of an arch, in eval mode, whatever its head."""
        body = self._supernet.extract(arch).eval().body
        self._body_at(arch).repairer.repair(body)
        return body

    @torch.no_grad()
    def repair(self, subnet: Task) -> RepairReport:
        """Repair a subnet of the supernet in place; it is left in eval mode."""
        subnet.eval()
        whole = self.whole_at(subnet.active_arch)
        report = whole.body.repair(subnet.body)
        whole.head.repair(subnet)
        return report

    @property
    def views(self) -> Sequence[Batch]:
        """The training batches from which subnets are repaired."""
        return self._views

    @torch.no_grad()
    def whole_at(self, arch: Arch) -> Whole:
        """The trained network at the input size of an arch."""
        size, at_size = self._supernet.input_size(arch), self._body_at(arch)
        if size not in self._heads:
            self._heads[size] = self._supernet.head_repair(at_size.task, at_size.views)
        return Whole(at_size.task, at_size.repairer, self._heads[size])

    def _body_at(self, arch: Arch) -> _WholeBody:
        size = self._supernet.input_size(arch)
        if size not in self._bodies:
            whole = self._supernet.extract(self._supernet.largest_at(arch))
            views = Views(self._views, body_inputs(whole, self._views))
            self._bodies[size] = _WholeBody(whole, Repairer(self._supernet.table, whole.body, views.images), views)
        return self._bodies[size]


def _coarsest_rows(images: Tensor) -> int:
    """Positions of the coarsest map of images (B, 3, H, W), over the batch."""
    stride = max(TAP_STRIDES)
    return len(images) * -(-images.shape[2] // stride) * -(-images.shape[3] // stride)
