"""Repair what follows the body of a subnet: match its BatchNorms to those of the whole network.

A kind of task whose neck and head can do better names a subclass of `HeadRepair` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.space import Arch, SearchSpace
from nas_transfer.supernet.activations import add_moments
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
        features = [whole.body(images) for images in views.images] if _outer_norms(whole) else []
        self._moments = {name: found.moments for name, found in norm_inputs(whole, views, features).items()}

    @staticmethod
    def order(supernet: RepairedTask, views: Views) -> None:
        """Reorder channels of neck and head of a supernet in place, so that the leading ones matter most.

        The largest arch computes the same up to rounding. Nothing is reordered here.
        """

    def repair(self, subnet: RepairedTask) -> None:
        """Repair neck and head of a subnet, whose body is repaired, in place."""
        if not _outer_norms(subnet):
            return
        features = [subnet.body(images) for images in self.views.images]
        for name in list(norm_inputs(subnet, self.views, features)):
            found, wanted = norm_inputs(subnet, self.views, features, name)[name], self._moments[name]
            # The channels of a narrower norm are not always the leading ones: it gets the moments of its own input.
            same = wanted.mean is not None and len(wanted.mean) == found.norm.num_features
            match_norm(found.norm, found.moments, wanted if same else found.moments)


@dataclass(frozen=True)
class NormInput:
    """A BatchNorm and the moments of its input."""

    norm: nn.BatchNorm2d
    moments: Moments


def norm_inputs(
    task: RepairedTask, views: Views, features: Sequence[object], name: str | None = None
) -> dict[str, NormInput]:
    """The BatchNorms behind the body with the moments of their inputs, in the order in which they run.

    Args:
        task: a subnet.
        views: the images.
        features: what the body computes for each batch.
        name: of the only norm that is looked at; None for all.
    """
    watched = {key: norm for key, norm in _outer_norms(task).items() if name in (None, key)}
    found: dict[str, NormInput] = {}

    def watch(key: str, norm: nn.BatchNorm2d) -> Callable[..., None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            add_moments(found.setdefault(key, NormInput(norm, Moments())).moments, inputs[0])

        return look

    if not watched:
        return found
    hooks = [norm.register_forward_pre_hook(watch(key, norm)) for key, norm in watched.items()]
    try:
        with replayed(task.body, features):
            for batch in views.batches:
                task.forward_batch(task.on_device(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def replayed(body: nn.Module, features: Sequence[object]) -> Iterator[None]:
    """Let a body return these features, one call after another, instead of computing them."""
    following = iter(features)
    forward = body.forward
    body.forward = lambda _: next(following)  # type: ignore[method-assign]
    try:
        yield
    finally:
        body.forward = forward  # type: ignore[method-assign]


def _outer_norms(task: RepairedTask) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorms outside the body by name."""
    inside = set(task.body.modules())
    return {
        name: module
        for name, module in task.network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module not in inside
    }
