"""The activations of a body on fixed batches, block by block, and the rows of them from which layers are fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_transfer.supernet.calibrate import Moments
from nas_transfer.supernet.links import Link
from nas_transfer.supernet.ops import SamePaddingConv2d, pad_same

HELD_OUT = 16
"""One image in this many is held out, and at least one."""


class Walk:
    """The inputs of a body's blocks, computed only for as many batches as are asked for.

    A batch is moved forward when a block needs it, through blocks that are final by then. Blocks at high resolution
    ask for few batches, so that memory stays bounded.

    Args:
        stem: maps a batch of images to the input of the first link.
        links: the blocks in order.
        batches: images (B, 3, H, W) each.
    """

    def __init__(self, stem: nn.Module, links: Sequence[Link], batches: Sequence[Tensor]) -> None:
        self._stem, self._links, self._batches = stem, links, batches
        self._features: list[Tensor | None] = [None] * len(batches)
        self._done = [0] * len(batches)

    def inputs(self, number: int, count: int) -> list[Tensor]:
        """The inputs (B, C, H, W) of link `number` for the first `count` batches."""
        found = []
        for index in range(count):
            features = self._features[index]
            if features is None:
                features = self._stem(self._batches[index])
            for link in self._links[self._done[index] : number]:
                features = link.block(features)
            self._features[index], self._done[index] = features, number
            found.append(features)
        return found

    def put(self, number: int, outputs: Sequence[Tensor]) -> None:
        """Store the outputs of link `number` for the first batches instead of computing them again."""
        for index, features in enumerate(outputs):
            self._features[index], self._done[index] = features, number + 1


@dataclass(frozen=True)
class Sample:
    """The outputs that are looked at in the blocks of one stage.

    Attributes:
        indices: for each batch in use int64 (B, K): for each image flat positions, in random order.
        held_images: for each batch in use the images that are held out.
    """

    indices: tuple[Tensor, ...]
    held_images: tuple[list[int], ...]

    @classmethod
    def draw(cls, outputs: Sequence[Tensor], rows: int, seed: int) -> Sample:
        """Draw about `rows` positions of the outputs (B, C, H, W) of some batches, equally many of each image.

        Raises:
            ValueError: there are fewer than two images.
        """
        images = sum(len(output) for output in outputs)
        if images < 2:
            raise ValueError(f"repairing a subnet needs at least 2 images, got {images}")
        every = min(HELD_OUT, images)
        indices, held, number = [], [], 0
        for batch, output in enumerate(outputs):
            places = output.shape[2] * output.shape[3]
            generator = torch.Generator().manual_seed(seed * 100_003 + batch)
            order = torch.rand(len(output), places, generator=generator).argsort(1)
            indices.append(order[:, : -(-rows // images)].to(output.device))
            held.append([image for image in range(len(output)) if (number + image) % every == every - 1])
            number += len(output)
        return cls(tuple(indices), tuple(held))

    @property
    def count(self) -> int:
        """Number of batches in use."""
        return len(self.indices)

    @property
    def held(self) -> Tensor:
        """bool (R,): whether each of `rows` is of a held-out image."""
        masks = []
        for positions, images in zip(self.indices, self.held_images, strict=True):
            mask = torch.zeros_like(positions, dtype=torch.bool)
            mask[images] = True
            masks.append(mask.flatten())
        return torch.cat(masks)

    def rows(self, features: Sequence[Tensor]) -> Tensor:
        """The values (R, C) of feature maps (B, C, H, W), one for each batch in use."""
        return torch.cat([_at(maps, positions) for maps, positions in zip(features, self.indices, strict=True)])

    def held_maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The held-out images of feature maps (B, C, H, W), for each batch that has any."""
        return [maps[images] for maps, images in zip(features, self.held_images, strict=True) if images]

    def held_rows(self, features: Sequence[Tensor]) -> Tensor:
        """The values (R', C) of maps of the held-out images alone: those of `rows` that are `held`."""
        positions = [positions[images] for positions, images in zip(self.indices, self.held_images) if images]
        return torch.cat([_at(maps, places) for maps, places in zip(features, positions, strict=True)])

    def thinned(self, rows: int) -> Sample:
        """A part of the sample with about this many rows."""
        images = sum(len(positions) for positions in self.indices)
        return Sample(tuple(positions[:, : -(-rows // images)] for positions in self.indices), self.held_images)


def _at(maps: Tensor, positions: Tensor) -> Tensor:
    """The values (B * K, C) of maps (B, C, H, W) at flat positions (B, K)."""
    flat = maps.permute(0, 2, 3, 1).flatten(1, 2)
    return flat[torch.arange(len(flat), device=flat.device)[:, None], positions].flatten(0, 1)


def patches_of(conv: nn.Conv2d, maps: Tensor, positions: Tensor) -> Tensor:
    """The inputs (B * K, C, k * k) of some outputs of a depthwise convolution without dilation.

    Args:
        conv: the convolution.
        maps: (B, C, H, W), its input.
        positions: int64 (B, K), flat positions in its output.
    """
    size, stride = conv.kernel_size[0], conv.stride[0]
    same = isinstance(conv, SamePaddingConv2d)
    padded = pad_same(maps, size, stride) if same else F.pad(maps, 4 * [size // 2])
    width = (padded.shape[3] - size) // stride + 1
    corner = positions // width * stride * padded.shape[3] + positions % width * stride
    offsets = [row * padded.shape[3] + column for row in range(size) for column in range(size)]
    return torch.stack([_at(padded, corner + offset) for offset in offsets], -1)


def moments_of(features: Sequence[Tensor]) -> Moments:
    """The moments per channel of feature maps (B, C, H, W)."""
    moments = Moments()
    for maps in features:
        add_moments(moments, maps)
    return moments


@torch.no_grad()
def norm_moments(norms: Mapping[str, nn.BatchNorm2d], run: Callable[[], object]) -> dict[str, Moments]:
    """The moments of the inputs of BatchNorms while `run` runs, by name, in the order in which the norms run first."""
    found: dict[str, Moments] = {}

    def watch(name: str) -> Callable[..., None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            add_moments(found.setdefault(name, Moments()), inputs[0])

        return look

    hooks = [norm.register_forward_pre_hook(watch(name)) for name, norm in norms.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def add_moments(moments: Moments, maps: Tensor) -> None:
    """Merge the moments per channel of maps (B, C, H, W)."""
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
    moments.add(maps.numel() // maps.shape[1], mean, variance)


def stretched(maps: Tensor, size: Sequence[int], factors: Tensor) -> Tensor:
    """Maps (B, C, H, W) resized bilinearly to a size (h, w), of which each image shows a part or more.

    Args:
        factors: for each image (B, 2), x and y, the share of the width and height of `maps` that is shown.
    """
    scales = torch.zeros(len(maps), 2, 3, dtype=maps.dtype, device=maps.device)
    scales[:, [0, 1], [0, 1]] = factors.to(maps)
    scales[:, :, 2] = factors.to(maps) - 1  # the upper left corners stay together
    grid = F.affine_grid(scales, [*maps.shape[:2], *size], align_corners=False)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
