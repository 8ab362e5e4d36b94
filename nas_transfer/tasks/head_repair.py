"""Repair what follows the body of a subnet: match its BatchNorms to those of the whole network.

A kind of task whose neck and head can do better names a subclass of `HeadRepair` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.space import Arch, SearchSpace
from nas_transfer.supernet.activations import norm_moments
from nas_transfer.supernet.calibrate import Moments
from nas_transfer.supernet.regression import match_norm

Batch = Mapping[str, object]


class RepairedTask(Protocol):
    """What a repair needs of a `nas_transfer.tasks.task.Task`."""

    network: nn.Module
    space: SearchSpace

    @property
    def body(self) -> nn.Module:
        """The body inside the network."""

    def forward_batch(self, batch: Any) -> object:
        """Run the network on a batch."""

    def on_device(self, batch: Any) -> Any:
        """The batch on the device of the network."""

    def extract(self, arch: Arch) -> Self:
        """The task of one subnet of a supernet."""


@dataclass(frozen=True)
class Views:
    """The images from which subnets are repaired, at one input size.

    Attributes:
        batches: as a task takes them.
        images: the same as the body takes them: normalised (B, 3, H, W), on the device of the network.
    """

    batches: Sequence[Batch]
    images: Sequence[Tensor]


class HeadRepair:
    """Gives the BatchNorms of neck and head output moments equal to those of the whole network, front to back.

    Args:
        whole: the whole network at one input size.
        views: the images.
    """

    def __init__(self, whole: RepairedTask, views: Views) -> None:
        self.views = views
        norms = outer_norms(whole)
        self._moments = self._inputs(whole, norms, [whole.body(images) for images in views.images] if norms else [])

    @staticmethod
    def order(supernet: RepairedTask, views: Views) -> None:
        """Reorder channels of neck and head of a supernet in place, so that the leading ones matter most.

        The largest arch computes the same up to rounding. Nothing is reordered here.
        """

    def repair(self, subnet: RepairedTask) -> None:
        """Repair neck and head of a subnet, whose body is repaired, in place."""
        norms = outer_norms(subnet)
        features = [subnet.body(images) for images in self.views.images] if norms else []
        for name in self._inputs(subnet, norms, features):
            norm, wanted = norms[name], self._moments[name]
            own = self._inputs(subnet, {name: norm}, features)[name]
            # The channels of a narrower norm are not always the leading ones: it gets the moments of its own input.
            same = wanted.mean is not None and len(wanted.mean) == norm.num_features
            match_norm(norm, own, wanted if same else own)

    def _inputs(
        self, task: RepairedTask, norms: Mapping[str, nn.BatchNorm2d], features: Sequence[object]
    ) -> dict[str, Moments]:
        """The moments of the inputs of norms behind the body, whose features for each batch are given."""
        if not norms:
            return {}
        with replayed(task.body, features):
            return norm_moments(
                norms, lambda: [task.forward_batch(task.on_device(batch)) for batch in self.views.batches]
            )


@contextmanager
def replayed(body: nn.Module, features: Sequence[object]) -> Iterator[None]:
    """Let a body return these features, one call after another, instead of computing them."""
    following = iter(features)
    body.forward = lambda _: next(following)  # type: ignore[method-assign]  # hides the method of the class
    try:
        yield
    finally:
        del body.forward


def outer_norms(task: RepairedTask) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorms outside the body by name."""
    inside = set(task.body.modules())
    return {
        name: module
        for name, module in task.network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module not in inside
    }
