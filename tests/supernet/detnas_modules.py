"""DetNAS's supernet as plain torch modules, written from a description of the authors' code, to compare with ours.

Nothing here uses the package. The modules have the names of the public tensors, so that ``load_state_dict`` reads a
public file. What they compute follows https://github.com/megvii-model/DetNAS, ``Supernet-ImageNet``: the blocks and
both channel shuffles in ``shuffle_blocks.py``, the order of the stages in ``detnasnet.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

OPERATIONS = ("shufflenet_3x3", "shufflenet_5x5", "shufflenet_7x7", "xception_3x3")
KERNELS = (3, 5, 7, 3)


def shuffled_order(channels: int, method: int) -> list[int]:
    """The old place of each channel after the shuffle; the first half passes, the second half enters the branch.

    Method 1 writes the channels as a matrix of two rows and reads it column by column. Method 2 writes them as a matrix
    of two columns and reads it column by column.
    """
    half = channels // 2
    if method == 1:
        return [row * half + column for column in range(half) for row in range(2)]
    return [row * 2 + column for column in range(2) for row in range(half)]


def separable(name: str, channels: int, out: int, kernel: int, stride: int, *, relu: bool) -> nn.Sequential:
    """A depthwise convolution with BatchNorm and a 1x1 convolution with BatchNorm, then perhaps ReLU."""
    layers = nn.Sequential()
    layers.add_module(
        f"interstellar{name}_s",
        nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False),
    )
    layers.add_module(f"interstellar{name}_s_bn", nn.BatchNorm2d(channels))
    return pointwise(name, channels, out, layers, relu=relu)


def pointwise(name: str, channels: int, out: int, layers: nn.Sequential, *, relu: bool) -> nn.Sequential:
    """Append a 1x1 convolution with BatchNorm, then perhaps ReLU."""
    layers.add_module(f"interstellar{name}", nn.Conv2d(channels, out, 1, bias=False))
    layers.add_module(f"bn{name}", nn.BatchNorm2d(out))
    if relu:
        layers.add_module(f"relu{name}", nn.ReLU())
    return layers


class Block(nn.Module):
    """One operation of a block: ReLU follows the whole main branch, and its output comes after the other half."""

    def __init__(self, prefix: str, channels: int, out: int, stride: int, operation: int, method: int) -> None:
        super().__init__()
        self.stride, self.method = stride, method
        inside = channels if stride == 2 else channels // 2
        outside = out - channels if stride == 2 else out // 2
        mid, kernel = out // 2, KERNELS[operation]
        name = f"{prefix}_{OPERATIONS[operation]}_branch2"
        if OPERATIONS[operation].startswith("xception"):
            widths = (inside, mid, mid, outside)
            self.conv = nn.Sequential(
                *(
                    separable(name + "abc"[number], *pair, 3, stride if number == 0 else 1, relu=number < 2)
                    for number, pair in enumerate(pairwise(widths))
                )
            )
        else:
            self.conv = nn.Sequential(
                pointwise(f"{name}a", inside, mid, nn.Sequential(), relu=True),
                separable(f"{name}b", mid, outside, kernel, stride, relu=False),
            )
        if stride == 2:
            self.proj_conv = separable(f"{prefix}_proj", channels, channels, kernel, 2, relu=True)

    def forward(self, features: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat([self.proj_conv(features), self.conv(features).relu()], 1)
        channels = features.shape[1]
        order = shuffled_order(channels, self.method)
        passed, inside = features[:, order[: channels // 2]], features[:, order[channels // 2 :]]
        return torch.cat([passed, self.conv(inside).relu()], 1)


class ConvBNReLU(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, features: Tensor) -> Tensor:
        return self.bn(self.conv(features)).relu()


class DetNAS(nn.Module):
    """The supernet: `stages` holds the repeats and the output channels of each stage."""

    def __init__(self, stem: int, stages: Sequence[tuple[int, int]], last: int, num_classes: int, method: int) -> None:
        super().__init__()
        self.first_conv = ConvBNReLU(3, stem, 3, 2)
        blocks: list[nn.Module] = []
        self.stage_ends: list[int] = []
        channels = stem
        for stage, (repeats, out) in enumerate(stages, start=1):
            for repeat in range(repeats):
                prefix, stride = f"{stage}{'abcdefgh'[repeat]}", 1 if repeat else 2
                choices = (Block(prefix, channels, out, stride, operation, method) for operation in range(4))
                blocks.append(nn.ModuleList(choices))
                channels = out
            self.stage_ends.append(len(blocks) - 1)
        self.features = nn.Sequential(*blocks)
        self.last_conv = ConvBNReLU(channels, last, 1, 1)
        self.fc = nn.Module()
        self.fc.fc = nn.Linear(last, num_classes)

    def maps(self, images: Tensor, operations: Sequence[int]) -> list[Tensor]:
        """The output of each stage along one path, as the detectors use them."""
        features, maps = self.first_conv(images), []
        for number, operation in enumerate(operations):
            features = self.features[number][operation](features)  # type: ignore[index]
            if number in self.stage_ends:
                maps.append(features)
        return maps

    def forward(self, images: Tensor, operations: Sequence[int]) -> Tensor:
        """The logits along one path."""
        return self.fc.fc(self.last_conv(self.maps(images, operations)[-1]).mean((2, 3)))  # type: ignore[union-attr]
