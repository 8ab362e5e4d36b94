"""ShuffleNetV2 networks built from a table: DetNAS's single-path supernet and the plain subnets extracted from it.

A subnet has the modules of one operation in each block, under the same names as in the supernet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.cost import Size, strided_size
from nas_transfer.supernet.layers import ConvNormActivation, Layers, initialise
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS
from nas_transfer.supernet.shufflenet.table import (
    INTERLEAVE_HALVES,
    OPERATIONS,
    SPLIT_BY_PARITY,
    STEM_STRIDE,
    BlockPlan,
    Layer,
    ShuffleNetTable,
)


class ShuffleBlock(nn.Module):
    """One operation of a block, see `BlockPlan`.

    Args:
        plan: describes the block.
        layers: makes its layers.
        channel_shuffle_method: see `nas_transfer.supernet.shufflenet.table`; a block of stride 2 does not shuffle.
    """

    def __init__(self, plan: BlockPlan, layers: Layers, channel_shuffle_method: int) -> None:
        super().__init__()
        self.channel_shuffle_method = channel_shuffle_method
        self.main = _branch(plan.main, layers)
        self.projection = _branch(plan.projection, layers) if plan.projection else None

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        if self.projection is not None:
            return torch.cat([self.projection(features), self.main(features)], 1)
        passed, inside = shuffle_and_split(features, self.channel_shuffle_method)
        return torch.cat([passed, self.main(inside)], 1)


def shuffle_and_split(features: Tensor, method: int) -> tuple[Tensor, Tensor]:
    """Divide (B, C, H, W) into the channels that pass and those that go through the main branch, C / 2 of each.

    The methods are those of DetNAS's code, see `nas_transfer.supernet.shufflenet.table`.
    """
    if method == INTERLEAVE_HALVES:
        passed, inside = features.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).chunk(2, 1)
        return passed, inside
    return features[:, 0::2], features[:, 1::2]


def _branch(plan: Sequence[Layer], layers: Layers) -> nn.Sequential:
    return nn.Sequential(
        *(
            layers.conv_norm(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
                depthwise=layer.depthwise, activation="relu" if layer.relu else None,
            )
            for layer in plan
        )
    )  # fmt: skip


def build_stem(table: ShuffleNetTable, elastic: bool = False) -> ConvNormActivation:
    """The first convolution, plain or elastic, with a bias as in DetNAS."""
    layers = Layers(elastic, table.batch_norm_eps)
    conv = layers.conv(IMAGE_CHANNELS, table.stem_width, 3, STEM_STRIDE, bias=True)
    return ConvNormActivation(conv, layers.norm(table.stem_width), "relu")


def build_block(table: ShuffleNetTable, plan: BlockPlan) -> ShuffleBlock:
    """One plain block with random weights."""
    return ShuffleBlock(plan, Layers(False, table.batch_norm_eps), table.channel_shuffle_method)


class ShuffleNetBody(nn.Module):
    """The body of a ShuffleNetV2: images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32.

    Args:
        table: the supernet's table.
        arch: `SUPERNET` builds the supernet, which starts at the largest arch; an arch builds its path alone.

    Raises:
        ArchError: `arch` does not belong to the table's space.
    """

    def __init__(self, table: ShuffleNetTable, arch: ArchOrSupernet = SUPERNET) -> None:
        super().__init__()
        self.table = table
        self.arch = table.space.arch_or_largest(arch)
        table.space.validate(self.arch)
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        self.first_conv = build_stem(table, elastic=arch is SUPERNET)
        self.blocks = nn.ModuleList()
        for position, chosen in zip(table.positions, self.arch.group("op"), strict=True):
            operations = range(len(OPERATIONS)) if arch is SUPERNET else (chosen,)
            self.blocks.append(
                nn.ModuleDict(
                    {
                        str(operation): ShuffleBlock(
                            BlockPlan(operation, *position), layers, table.channel_shuffle_method
                        )
                        for operation in operations
                    }
                )
            )
        initialise(self)

    def set_arch(self, arch: Arch) -> None:
        """Make `arch` the active path of a supernet; raises ArchError outside the space."""
        self.table.space.validate(arch)
        self.arch = arch

    def set_drop_path(self, rate: float) -> None:
        """Accept 0 only.

        Raises:
            ConfigError: any other rate: ShuffleNet blocks have no shortcut and cannot be skipped.
        """
        if rate:
            raise ConfigError(f"a ShuffleNet cannot skip blocks, got drop path {rate}: set task.recipe.drop_path=0")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to four maps (B, C, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32."""
        features = self.first_conv(images)
        taps = []
        for number, (block, operation) in enumerate(zip(self.blocks, self.arch.group("op"), strict=True)):
            features = block[str(operation)](features)  # type: ignore[index]
            if number in self.table.tap_blocks:
                taps.append(features)
        return taps


class ShuffleNetClassifier(nn.Module):
    """The classification head, equal for all archs: 1x1 convolution, global pooling, dropout, linear layer.

    Args:
        table: the supernet's table.
        num_classes: outputs of the last layer.
        arch: `SUPERNET` builds the supernet's head, any arch a plain static one.
    """

    def __init__(self, table: ShuffleNetTable, num_classes: int, arch: ArchOrSupernet = SUPERNET) -> None:
        super().__init__()
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        conv = layers.conv(table.widths[-1], table.last_width, bias=True)
        self.last_conv = ConvNormActivation(conv, layers.norm(table.last_width), "relu")
        self.dropout = nn.Dropout(0.0)
        self.classifier = layers.linear(table.last_width, num_classes)
        initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Map the body's last feature map (B, C, H, W) to logits (B, num_classes)."""
        return self.classifier(self.dropout(self.last_conv(features).mean((2, 3))))


def build_body(table: ShuffleNetTable, arch: ArchOrSupernet) -> ShuffleNetBody:
    """Stem and stages, see `nas_transfer.supernet.networks.build_body`."""
    return ShuffleNetBody(table, arch)


def build_classifier(table: ShuffleNetTable, num_classes: int, arch: ArchOrSupernet) -> ShuffleNetClassifier:
    """The classification head, see `nas_transfer.supernet.networks.build_classifier`."""
    return ShuffleNetClassifier(table, num_classes, arch)


def build_pieces(table: ShuffleNetTable, arch: Arch, input_size: Size) -> list[Piece]:
    """Stem and blocks for one image of `input_size` (H, W), see `nas_transfer.supernet.networks.latency_pieces`."""
    table.space.validate(arch)
    size = (int(input_size[0]), int(input_size[1]))
    key = f"shuffle stem {table.stem_width} {size}"
    pieces = [Piece(key, partial(build_stem, table), (IMAGE_CHANNELS, *size))]
    size = strided_size(size, STEM_STRIDE)
    for position, operation in zip(table.positions, arch.group("op"), strict=True):
        plan = BlockPlan(operation, *position)
        key = f"{plan} {size}"
        if plan.stride == 1 and table.channel_shuffle_method != SPLIT_BY_PARITY:
            key += f" shuffle {table.channel_shuffle_method}"
        pieces.append(Piece(key, partial(build_block, table, plan), (plan.in_channels, *size)))
        size = strided_size(size, plan.stride)
    return pieces
