"""Cut subnets out of one trained network of a task and repair them in closed form, without labels or a gradient.

The body is repaired by `nas_transfer.supernet.repair`. BatchNorms of neck and head get output moments equal to those of
the trained network, one after another from the front.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_transfer.space import Arch
from nas_transfer.supernet.activations import add_moments
from nas_transfer.supernet.calibrate import Moments
from nas_transfer.supernet.regression import match_norm
from nas_transfer.supernet.repair import Repairer, RepairReport, order_channels
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

Batch = Mapping[str, object]
MEMORY = 1 << 30
"""Bytes of images, as the body takes them, that are held at once."""


@dataclass(frozen=True)
class _Whole:
    """What is known of the trained network at one input size.

    Attributes:
        images: the views as the body takes them.
        repairer: of the body.
        norms: moments of the inputs of the BatchNorms of neck and head, by name.
    """

    images: list[Tensor]
    repairer: Repairer
    norms: dict[str, Moments]


class SubnetRepairer:
    """Repairs the subnets of one trained network.

    Args:
        supernet: holds the weights of the trained network in its largest arch (`nas_transfer.tasks.checkpoint`), on its
            device. The hidden channels of its blocks are ordered here, in place, so that narrow archs keep those that
            explain the output best; the largest arch computes the same up to rounding.
        views: training batches without need of labels; kept until they take `MEMORY` bytes.

    Raises:
        ConfigError: the family of the table cannot be repaired.
        ValueError: there are fewer than two images.
    """

    def __init__(self, supernet: Task, views: Iterable[Batch]) -> None:
        self._supernet = supernet.eval()
        self._views: list[Batch] = []
        self._wholes: dict[tuple[int, int], _Whole] = {}
        supernet.set_arch(supernet.space.largest())
        task = supernet.extract(supernet.space.largest())
        used = 0
        for batch in views:
            self._views.append(batch)
            used += sum(images.numel() * images.element_size() for images in _body_inputs(task, [batch]))
            if used > MEMORY:
                logger.info("repair uses %d batches of views: more would take over %d MiB", len(self._views), MEMORY >> 20)
                break
        order_channels(supernet.table, supernet.body, _body_inputs(task, self._views))

    @property
    def supernet(self) -> Task:
        """The supernet whose subnets are repaired."""
        return self._supernet

    def extract(self, arch: Arch) -> Task:
        """The repaired subnet of an arch, in eval mode. It depends on nothing but the arch, the weights and the views."""
        subnet = self._supernet.extract(arch)
        self.repair(subnet)
        return subnet

    @torch.no_grad()
    def repair(self, subnet: Task) -> RepairReport:
        """Repair a subnet of the supernet in place; it is left in eval mode."""
        subnet.eval()
        whole = self._whole(subnet.active_arch)
        report = whole.repairer.repair(subnet.body)
        self._match_norms(subnet, whole)
        return report

    def _whole(self, arch: Arch) -> _Whole:
        """The trained network at the input size of an arch."""
        size = self._supernet.input_size(arch)
        if size not in self._wholes:
            whole = self._supernet.extract(self._supernet.largest_at(arch))
            images = _body_inputs(whole, self._views)
            repairer = Repairer(self._supernet.table, whole.body, images)
            norms = {name: norm.moments for name, norm in self._norms(whole, images).items()}
            self._wholes[size] = _Whole(images, repairer, norms)
        return self._wholes[size]

    def _match_norms(self, subnet: Task, whole: _Whole) -> None:
        """Match the BatchNorms behind the body one after another, each behind those that are matched already."""
        features = [subnet.body(images) for images in whole.images]
        for name in list(self._norms(subnet, whole.images, features)):
            found, wanted = self._norms(subnet, whole.images, features, name)[name], whole.norms[name]
            # The channels of a narrower norm are not always the leading ones: it gets the moments of its own input.
            same = wanted.mean is not None and len(wanted.mean) == found.norm.num_features
            match_norm(found.norm, found.moments, wanted if same else found.moments)

    def _norms(
        self, task: Task, images: Sequence[Tensor], features: Sequence[object] | None = None, name: str | None = None
    ) -> dict[str, _Norm]:
        """The BatchNorms behind the body with the moments of their inputs, in the order in which they run.

        Args:
            task: a subnet.
            images: the views as the body takes them.
            features: what the body computes for them; None to run it.
            name: of the only norm that is looked at; None for all.
        """
        inside = set(task.body.modules())
        watched = {
            key: module
            for key, module in task.network.named_modules()
            if isinstance(module, nn.BatchNorm2d) and module not in inside and name in (None, key)
        }
        found: dict[str, _Norm] = {}

        def watch(key: str, norm: nn.BatchNorm2d) -> Callable[..., None]:
            def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                add_moments(found.setdefault(key, _Norm(norm, Moments())).moments, inputs[0])

            return look

        if not watched:
            return found
        hooks = [norm.register_forward_pre_hook(watch(key, norm)) for key, norm in watched.items()]
        replayed = iter(features if features is not None else [task.body(batch) for batch in images])
        forward = task.body.forward
        task.body.forward = lambda _: next(replayed)  # type: ignore[method-assign]
        try:
            for batch in self._views:
                task.forward_batch(task.on_device(batch))
        finally:
            task.body.forward = forward  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()
        return found


@dataclass(frozen=True)
class _Norm:
    norm: nn.BatchNorm2d
    moments: Moments


class _Enough(Exception):
    """Ends a forward pass where the body begins."""


@torch.no_grad()
def _body_inputs(task: Task, views: Iterable[Batch]) -> list[Tensor]:
    """The images (B, 3, H, W) that the body of a subnet takes for each batch."""
    images: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        images.append(inputs[0])
        raise _Enough

    hook = task.body.register_forward_pre_hook(take)
    try:
        for batch in views:
            try:
                task.forward_batch(task.on_device(batch))
            except _Enough:
                continue
    finally:
        hook.remove()
    return images

