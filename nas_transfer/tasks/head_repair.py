"""Repair what follows the body of a subnet: match its BatchNorms to those of the whole network.

A kind of task whose neck and head can do better names a subclass of `HeadRepair` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from typing_extensions import Self

from nas_transfer.arch import Arch
from nas_transfer.runs.phases import EVERY_SECONDS, Phase
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.activations import add_moments, norm_moments
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

    def network_of(self, arch: Arch) -> nn.Module:
        """The part of the network that an arch runs."""

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

    def error(self, whole: RepairedTask, subnet: RepairedTask, batches: Sequence[Batch]) -> float | None:
        """The squared error of a repaired subnet's outputs, relative to their variance in the whole network.

        Outputs of another size are resized linearly. There is none where the outputs are no single tensor, such as the
        boxes of a detector.

        Args:
            whole, subnet: both tasks, at input sizes of their own.
            batches: training batches of images on which nothing was fitted.
        """
        wrong, moments = 0.0, Moments()
        for batch in batches:
            wanted, found = (task.forward_batch(task.on_device(batch)) for task in (whole, subnet))
            if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
                return None
            if found.shape[2:] != wanted.shape[2:]:
                mode = "linear" if wanted.dim() == 3 else "bilinear"
                found = F.interpolate(found, wanted.shape[2:], mode=mode, align_corners=False)
            wrong += float((found - wanted).square().sum())
            add_moments(moments, wanted.reshape(*wanted.shape[:2], -1, 1))
        variance = moments.deviation
        return wrong / max(0.0 if variance is None else float(variance.sum()), 1e-30)

    def repair(self, subnet: RepairedTask) -> None:
        """Repair neck and head of a subnet, whose body is repaired, in place."""
        norms = outer_norms(subnet)
        features = [subnet.body(images) for images in self.views.images] if norms else []
        names = list(self._inputs(subnet, norms, features))
        for name in Phase(names, "repair of neck and head", "BatchNorms", least_seconds=EVERY_SECONDS):
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


def picked(batch: Batch, images: Sequence[int]) -> dict[str, object]:
    """Some images of a batch, with all that belongs to them."""
    return {
        name: value[list(images)] if isinstance(value, Tensor) else [value[index] for index in images]
        for name, value in batch.items()
        if isinstance(value, Tensor | list | tuple)
    }


def outer_norms(task: RepairedTask) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorms outside the body by name."""
    inside = set(task.body.modules())
    return {
        name: module
        for name, module in task.network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module not in inside
    }


class _Enough(Exception):
    """Ends a forward pass where the body begins."""


@dataclass(frozen=True)
class Resized:
    """A batch of images as a body takes them, in which padding may follow each image at the right and at the bottom.

    Attributes:
        images: (B, 3, H, W).
        sizes: height and width of each image without its padding.
    """

    images: Tensor
    sizes: Sequence[tuple[int, int]]

    def scales_to(self, other: Resized) -> Tensor:
        """The factors from a place in each image, in pixels, to the same place in another batch: (B, 2), x and y."""
        own, others = (self.images.new_tensor(batch.sizes).flip(1) for batch in (self, other))
        return others / own

    def stretches_to(self, other: Resized) -> Tensor:
        """The factors for places as shares of the padded width and height: (B, 2), x and y; 1 for equal padding."""
        own, others = (self.images.new_tensor([*batch.images.shape[:1:-1]]) for batch in (self, other))
        return self.scales_to(other) * own / others


def resized_batches(task: RepairedTask, views: Sequence[Batch]) -> list[Resized]:
    """The images that the body of a subnet takes for each batch, with their sizes."""
    transforms = [module for module in task.network.modules() if isinstance(module, GeneralizedRCNNTransform)]
    sizes: list[Sequence[tuple[int, int]]] = []
    hooks = [
        transform.register_forward_hook(lambda _, __, output: sizes.append(output[0].image_sizes))
        for transform in transforms
    ]
    try:
        inputs = body_inputs(task, views)
    finally:
        for hook in hooks:
            hook.remove()
    if not transforms:  # nothing is padded
        sizes = [[(images.shape[2], images.shape[3])] * len(images) for images in inputs]
    return [Resized(images, of_batch) for images, of_batch in zip(inputs, sizes, strict=True)]


@torch.no_grad()
def body_inputs(task: RepairedTask, views: Iterable[Batch]) -> list[Tensor]:
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
