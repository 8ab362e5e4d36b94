"""ConvNeXt networks built from a table: the elastic supernet and the plain subnets that are extracted from it.

Both consist of the same modules under the same names. Only the depthwise convolutions and the two linear layers of a
block differ, elastic or plain torch. The linear layers are 1x1 convolutions. Images whose sides are no multiples of 32
are padded with zeros, so that maps have ceil(n / stride) pixels; timm and torchvision drop the rest of the pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.supernet.convnext.table import PATCH, STEM_STRIDE, BlockPlan, ConvNeXtTable
from nas_transfer.supernet.cost import Size, strided_size
from nas_transfer.supernet.layers import ConvNormActivation, Layers
from nas_transfer.supernet.norms import LayerNorm2d, LayerScale, ResponseNorm
from nas_transfer.supernet.ops import ElasticConv2d
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS

INITIAL_STD = 0.02
"""Standard deviation of random weights, as in the paper's code."""


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, expansion, activation, projection, and the shortcut around them.

    Args:
        plan: sizes of the block, in a supernet the largest ones.
        layers: makes elastic or plain layers.
        layer_norm_eps: epsilon of the LayerNorm.
    """

    def __init__(self, plan: BlockPlan, layers: Layers, layer_norm_eps: float) -> None:
        super().__init__()
        channels, hidden = plan.channels, plan.hidden
        depthwise = layers.conv(channels, channels, plan.kernel_size, depthwise=True, bias=True)
        self.depthwise = ConvNormActivation(depthwise, LayerNorm2d(channels, layer_norm_eps), None)
        self.expand = ConvNormActivation(layers.conv(channels, hidden, bias=True), None, plan.activation)
        self.response_norm = ResponseNorm(hidden) if plan.response_norm else None
        scale = LayerScale(channels) if plan.layer_scale else None
        self.project = ConvNormActivation(layers.conv(hidden, channels, bias=True), scale, None)
        self.drop_path = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        hidden = self.expand(self.depthwise(features))
        if self.response_norm is not None:
            hidden = self.response_norm(hidden)
        residual = self.project(hidden)
        if self.drop_path > 0:
            residual = stochastic_depth(residual, self.drop_path, "row", self.training)
        return residual + features

    def set_plan(self, plan: BlockPlan) -> None:
        """Set the active sizes of the elastic layers to those of `plan`; other widths follow from the tensors."""
        depthwise, expand = self.depthwise.conv, self.expand.conv
        if isinstance(depthwise, ElasticConv2d) and isinstance(expand, ElasticConv2d):
            depthwise.active_kernel_size = plan.kernel_size
            expand.active_out_channels = plan.hidden


class Downsample(nn.Module):
    """LayerNorm and a 2x2 convolution of stride 2, between two stages."""

    def __init__(self, table: ConvNeXtTable, index: int) -> None:
        super().__init__()
        before, after = table.stages[index - 1].channels, table.stages[index].channels
        self.norm = LayerNorm2d(before, table.layer_norm_eps)
        self.conv = _covering().conv(before, after, 2, 2, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / 2), ceil(W / 2))."""
        return self.conv(self.norm(features))


def _covering() -> Layers:
    """Makes plain layers whose strided convolutions, which have kernels as large as the stride, leave no pixel out."""
    return Layers(elastic=False, eps=0.0, same_padding=True)


def build_stem(table: ConvNeXtTable) -> nn.Sequential:
    """The convolutions and the LayerNorm before the first stage, with random weights."""
    width, mid = table.stages[0].channels, table.stem.mid_width
    norm = LayerNorm2d(width, table.layer_norm_eps)
    if mid is None:
        conv = _covering().conv(IMAGE_CHANNELS, width, PATCH, STEM_STRIDE, bias=True)
        parts = {"last": ConvNormActivation(conv, norm, None)}
    else:
        activation = table.activation if table.stem.activation else None
        first, last = nn.Conv2d(IMAGE_CHANNELS, mid, 3, 2, 1), nn.Conv2d(mid, width, 3, 2, 1)
        parts = {"first": ConvNormActivation(first, None, activation), "last": ConvNormActivation(last, norm, None)}
    return nn.Sequential(OrderedDict(parts))


def build_block(table: ConvNeXtTable, plan: BlockPlan) -> ConvNeXtBlock:
    """One plain block with random weights."""
    return ConvNeXtBlock(plan, Layers(False, table.batch_norm_eps), table.layer_norm_eps)


class ConvNeXtBody(nn.Module):
    """The body of a ConvNeXt: images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32, without a norm behind.

    Args:
        table: the supernet's table.
        arch: `SUPERNET` builds the supernet, which holds the weights of all archs and starts at the largest one; an
            arch builds that subnet as a plain static module.

    Raises:
        ArchError: `arch` does not belong to the table's space.
    """

    def __init__(self, table: ConvNeXtTable, arch: ArchOrSupernet = SUPERNET) -> None:
        super().__init__()
        self.table = table
        self.arch = table.space.arch_or_largest(arch)
        layers = Layers(arch is SUPERNET, table.batch_norm_eps)
        self.stem = build_stem(table)
        self.downsamples = nn.ModuleList()
        self.stages = nn.ModuleList()
        for index, plans in enumerate(table.blocks(self.arch)):
            self.downsamples.append(Downsample(table, index) if index else nn.Identity())
            self.stages.append(nn.ModuleList(ConvNeXtBlock(plan, layers, table.layer_norm_eps) for plan in plans))
        self.active_depths = [len(stage) for stage in self.stages]  # type: ignore[arg-type]
        initialise(self)

    def set_arch(self, arch: Arch) -> None:
        """Make `arch` the active arch of a supernet; only its blocks are computed.

        Raises:
            ArchError: `arch` does not belong to the supernet's space.
        """
        stages = self.table.blocks(arch)
        self.arch = arch
        self.active_depths = [len(plans) for plans in stages]
        for blocks, plans in zip(self.active_blocks(), stages, strict=True):
            for block, plan in zip(blocks, plans, strict=True):
                block.set_plan(plan)

    def active_blocks(self) -> list[list[ConvNeXtBlock]]:
        """The active blocks of each stage in order."""
        return [list(stage)[:depth] for stage, depth in zip(self.stages, self.active_depths, strict=True)]  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to four maps (B, C, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32."""
        features = self.stem(images)
        maps = []
        for downsample, blocks in zip(self.downsamples, self.active_blocks(), strict=True):
            features = downsample(features)
            for block in blocks:
                features = block(features)
            maps.append(features)
        return maps

    def set_drop_path(self, rate: float) -> None:
        """Skip blocks at random in training (Huang et al. 2016).

        The last block is skipped for this share of the images, earlier blocks for linearly less, the first for none.
        """
        active = [block for blocks in self.active_blocks() for block in blocks]
        for number, block in enumerate(active):
            block.drop_path = rate * number / max(1, len(active) - 1)


class ConvNeXtClassifier(nn.Module):
    """The classification head, equal for all archs: pooling, LayerNorm, an optional hidden layer, a linear layer.

    Args:
        table: the supernet's table.
        num_classes: outputs of the last layer.
    """

    def __init__(self, table: ConvNeXtTable, num_classes: int) -> None:
        super().__init__()
        width, hidden = table.stages[-1].channels, table.head.hidden_width
        self.norm_first = table.head.norm_first
        self.norm = LayerNorm2d(width, table.layer_norm_eps)
        self.hidden = None if hidden is None else nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(hidden or width, num_classes)
        initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Map the body's last feature map (B, C, H, W) to logits (B, num_classes)."""
        if self.norm_first:
            pooled = self.norm(features).mean((2, 3))
        else:
            pooled = self.norm(features.mean((2, 3), keepdim=True)).flatten(1)
        if self.hidden is not None:
            pooled = self.activation(self.hidden(pooled))
        return self.classifier(self.dropout(pooled))


def initialise(network: nn.Module) -> None:
    """Truncated normal weights of convolutions and linear layers, and zero biases, as in the paper's code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_body(table: ConvNeXtTable, arch: ArchOrSupernet) -> ConvNeXtBody:
    """Stem and stages, see `nas_transfer.supernet.networks.build_body`."""
    return ConvNeXtBody(table, arch)


def build_classifier(table: ConvNeXtTable, num_classes: int, arch: ArchOrSupernet) -> ConvNeXtClassifier:
    """The classification head, see `nas_transfer.supernet.networks.build_classifier`."""
    return ConvNeXtClassifier(table, num_classes)


def build_pieces(table: ConvNeXtTable, arch: Arch, input_size: Size) -> list[Piece]:
    """Stem, layers between stages and blocks, see `nas_transfer.supernet.networks.latency_pieces`."""
    size = (int(input_size[0]), int(input_size[1]))
    stages = table.blocks(arch)
    width = table.stages[0].channels
    key = f"convnext stem {table.stem} {table.activation} {width} {size}"
    pieces = [Piece(key, partial(build_stem, table), (IMAGE_CHANNELS, *size))]
    size = strided_size(size, STEM_STRIDE)
    for index, plans in enumerate(stages):
        if index:
            before, after = table.stages[index - 1].channels, table.stages[index].channels
            key = f"convnext downsample {before} {after} {size}"
            pieces.append(Piece(key, partial(Downsample, table, index), (before, *size)))
            size = strided_size(size, 2)
        for plan in plans:
            pieces.append(Piece(f"convnext {plan} {size}", partial(build_block, table, plan), (plan.channels, *size)))
    return pieces
