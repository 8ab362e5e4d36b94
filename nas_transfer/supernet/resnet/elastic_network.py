"""Residual networks built from a table: the elastic supernet and the plain subnets that are extracted from it.

Both consist of the same modules under the same names; each tensor of a subnet is a slice of the supernet's tensor.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.supernet.cost import Size, strided_size
from nas_transfer.supernet.layers import ConvNormActivation, Layers, initialise
from nas_transfer.supernet.ops import SqueezeExcite
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS
from nas_transfer.supernet.resnet.elastic import ElasticResNetTable
from nas_transfer.supernet.resnet.rows import IDENTITY, POOL, ResidualPlan

RELU = "relu"


class ResidualBlock(nn.Module):
    """The sum of a shortcut and of two (basic) or three (bottleneck) convolutions, and a ReLU.

    Args:
        plan: sizes of the block, in a supernet the largest ones.
        layers: makes elastic or plain layers.
        squeeze_activations: names of the activations of squeeze-and-excitation.
    """

    def __init__(self, plan: ResidualPlan, layers: Layers, squeeze_activations: tuple[str, str]) -> None:
        super().__init__()
        inside, inner, outside = plan.in_channels, plan.inner_channels, plan.out_channels
        if plan.bottleneck:
            wide = layers.conv(inner, inner, 3, plan.stride, group_width=plan.group_width)
            convs = [layers.conv(inside, inner), wide]
        else:
            convs = [layers.conv(inside, inner, 3, plan.stride)]
        self.inner = nn.ModuleList(ConvNormActivation(conv, layers.norm(inner), RELU) for conv in convs)
        self.squeeze_excite = None
        if plan.squeeze_channels:
            squeeze = layers.conv(inner, plan.squeeze_channels, bias=True)
            excite = layers.conv(plan.squeeze_channels, inner, bias=True)
            self.squeeze_excite = SqueezeExcite(squeeze, excite, *squeeze_activations)
        last = layers.conv(inner, outside, 1 if plan.bottleneck else 3)
        self.project = ConvNormActivation(last, layers.norm(outside), None)
        self.pool = plan.shortcut == POOL and plan.stride > 1
        self.shortcut = None
        if plan.shortcut != IDENTITY:
            stride = 1 if self.pool else plan.stride
            conv = layers.conv(inside, outside, 1, stride)
            self.shortcut = ConvNormActivation(conv, layers.norm(outside), None)
        self.drop_path = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        projected = self.project(self.hidden(features))
        if self.shortcut is None and self.drop_path > 0:
            projected = stochastic_depth(projected, self.drop_path, "row", self.training)
        return F.relu(projected + self.skipped(features))

    def hidden(self, features: Tensor) -> Tensor:
        """The input (B, inner, H', W') of the last convolution."""
        for layer in self.inner:
            features = layer(features)
        return features if self.squeeze_excite is None else self.squeeze_excite(features)

    def pooled(self, features: Tensor) -> Tensor:
        """The input of the shortcut's convolution."""
        if not self.pool:
            return features
        return F.avg_pool2d(features, 2, 2, ceil_mode=True, count_include_pad=False)

    def skipped(self, features: Tensor) -> Tensor:
        """What the shortcut adds."""
        return features if self.shortcut is None else self.shortcut(self.pooled(features))

    def set_inner_channels(self, channels: int) -> None:
        """Set the active width of the elastic layers inside."""
        for layer in self.inner:
            layer.conv.active_out_channels = channels  # type: ignore[union-attr, assignment]
        if self.squeeze_excite is not None:
            self.squeeze_excite.excite.active_out_channels = channels  # type: ignore[assignment]


def build_stem(table: ElasticResNetTable, arch: Arch, elastic: bool = False) -> nn.Sequential:
    """The convolutions of the stem, and the pooling behind them."""
    layers, channels = Layers(elastic, table.batch_norm_eps), IMAGE_CHANNELS
    stem = nn.Sequential()
    for conv, width, kernel in zip(table.stem, *table.stem_choice(arch), strict=True):
        made = layers.conv(channels, width, kernel, conv.stride, transformed_sizes=conv.kernel_size[:-1])
        stem.append(ConvNormActivation(made, layers.norm(width), RELU))
        channels = width
    if table.max_pool:
        stem.append(nn.MaxPool2d(3, 2, 1))
    return stem


class ElasticResNetBody(nn.Module):
    """The body of a residual network: images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32.

    Args:
        table: the supernet's table.
        arch: `SUPERNET` builds the supernet, which starts at the largest arch; an arch builds its plain static subnet.

    Raises:
        ArchError: `arch` does not belong to the table's space.
    """

    def __init__(self, table: ElasticResNetTable, arch: ArchOrSupernet = SUPERNET) -> None:
        super().__init__()
        self.table = table
        self.elastic = arch is SUPERNET
        self.arch = table.space.arch_or_largest(arch)
        layers = Layers(self.elastic, table.batch_norm_eps)
        plans = table.blocks(self.arch)
        self.stem = build_stem(table, self.arch, self.elastic)
        self.stages = nn.ModuleList(nn.ModuleList() for _ in table.stages)
        for plan in plans:
            block = ResidualBlock(plan, layers, table.squeeze_activations)
            self.stages[plan.stage_index].append(block)  # type: ignore[operator]
        self.active_depths = [len(stage) for stage in self.stages]  # type: ignore[arg-type]
        initialise(self)

    def set_arch(self, arch: Arch) -> None:
        """Make `arch` the active arch of a supernet; only its blocks are computed.

        Raises:
            ArchError: `arch` does not belong to the supernet's space.
        """
        self.table.space.validate(arch)
        self.arch = arch
        for layer, width, kernel in zip(self.stem, *self.table.stem_choice(arch), strict=False):
            layer.conv.active_out_channels = width  # type: ignore[union-attr, assignment]
            layer.conv.active_kernel_size = kernel  # type: ignore[union-attr, assignment]
        for index, stage in enumerate(self.table.stages):
            self.active_depths[index] = arch[f"depth.{stage.name}"]
            for block in self.stages[index]:  # type: ignore[union-attr]
                block.set_inner_channels(arch[f"inner_width.{stage.name}"])

    def active_blocks(self) -> list[list[ResidualBlock]]:
        """The active blocks of each stage."""
        return [list(stage)[:depth] for stage, depth in zip(self.stages, self.active_depths, strict=True)]  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to four maps (B, C, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32."""
        features = self.stem(images)
        taps = []
        for blocks in self.active_blocks():
            for block in blocks:
                features = block(features)
            taps.append(features)
        return taps

    def set_drop_path(self, rate: float) -> None:
        """Skip blocks with an identity shortcut at random in training (Huang et al. 2016), the last at this rate."""
        active = [block for blocks in self.active_blocks() for block in blocks]
        for number, block in enumerate(active):
            block.drop_path = rate * number / max(1, len(active) - 1)


class ElasticResNetClassifier(nn.Module):
    """The classification head: global pooling, dropout, linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def set_arch(self, arch: object) -> None:
        """Do nothing: the last feature map has the same width in all archs."""

    def forward(self, features: Tensor) -> Tensor:
        """Map the last feature map (B, C, H, W) to logits (B, num_classes)."""
        return self.classifier(self.dropout(features.mean((2, 3))))


def build_block(table: ElasticResNetTable, plan: ResidualPlan) -> ResidualBlock:
    """One plain block with random weights."""
    return ResidualBlock(plan, Layers(False, table.batch_norm_eps), table.squeeze_activations)


def build_body(table: ElasticResNetTable, arch: ArchOrSupernet) -> ElasticResNetBody:
    """Stem and stages, see `nas_transfer.supernet.networks.build_body`."""
    return ElasticResNetBody(table, arch)


def build_classifier(table: ElasticResNetTable, num_classes: int, arch: ArchOrSupernet) -> ElasticResNetClassifier:
    """Global pooling and the last layer, see `nas_transfer.supernet.networks.build_classifier`."""
    return ElasticResNetClassifier(table.stages[-1].width, num_classes)


def build_pieces(table: ElasticResNetTable, arch: Arch, input_size: Size) -> list[Piece]:
    """Stem and blocks for one image of `input_size` (H, W), see `nas_transfer.supernet.networks.latency_pieces`."""
    plans = table.blocks(arch)
    size = (int(input_size[0]), int(input_size[1]))
    key = f"residual stem {table.stem} {table.stem_choice(arch)} {table.max_pool} {size}"
    pieces = [Piece(key, partial(build_stem, table, arch), (IMAGE_CHANNELS, *size))]
    for stride in (*(conv.stride for conv in table.stem), 2 if table.max_pool else 1):
        size = strided_size(size, stride)
    for plan in plans:
        key = f"residual {plan} {table.squeeze_activations} {size}"
        pieces.append(Piece(key, partial(build_block, table, plan), (plan.in_channels, *size)))
        size = strided_size(size, plan.stride)
    return pieces
