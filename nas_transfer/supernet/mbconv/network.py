"""MBConv networks built from a table: the elastic supernet and the plain subnets that are extracted from it.

Both consist of the same modules under the same names. Only their leaf layers differ, elastic or plain torch, so each
tensor of a subnet is a slice of the supernet's tensor of that name. Blocks, squeeze-and-excitation and classifier
follow MobileNetV3 (Howard et al. 2019), as in once-for-all and AttentiveNAS; all sizes come from `MBConvTable.blocks`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.supernet.cost import Size, strided_size
from nas_transfer.supernet.layers import ACTIVATION_MODULES, ConvNormActivation, Layers, initialise
from nas_transfer.supernet.mbconv.block_modules import Block, make_block
from nas_transfer.supernet.mbconv.blocks import BlockPlan
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS


def build_stem(table: MBConvTable, width: int, elastic: bool = False) -> ConvNormActivation:
    """The first convolution with this output width, plain or elastic."""
    layers, first = Layers(elastic, table.batch_norm_eps, table.same_padding), table.first_conv
    conv = layers.conv(IMAGE_CHANNELS, width, first.kernel_size, first.stride)
    return ConvNormActivation(conv, layers.norm(width), first.activation)


def build_block(table: MBConvTable, plan: BlockPlan) -> Block:
    """One plain block with random weights."""
    return make_block(plan, Layers(False, table.batch_norm_eps, plan.same_padding))


class MBConvBody(nn.Module):
    """The body of an MBConv network: images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32.

    Args:
        table: the supernet's table.
        arch: `SUPERNET` builds the supernet, which holds the weights of all archs and starts at the largest one; an
            arch builds that subnet as a plain static module.

    Raises:
        ArchError: `arch` does not belong to the table's space.
    """

    def __init__(self, table: MBConvTable, arch: ArchOrSupernet = SUPERNET) -> None:
        super().__init__()
        self.table = table
        self.elastic = arch is SUPERNET
        self.arch = table.space.arch_or_largest(arch)
        layers = Layers(self.elastic, table.batch_norm_eps, table.same_padding)
        self.first_conv = build_stem(table, self.arch["width.first_conv"], self.elastic)
        self.stages = nn.ModuleList(nn.ModuleList() for _ in table.stages)
        for plan in table.blocks(self.arch):
            smaller = table.stages[plan.stage_index].kernel_size if self.elastic and table.kernel_transform else ()
            block = make_block(plan, layers, [size for size in smaller if size < plan.kernel_size])
            self.stages[plan.stage_index].append(block)  # type: ignore[operator]
        self.active_depths = [len(stage) for stage in self.stages]  # type: ignore[arg-type]
        initialise(self)

    def set_arch(self, arch: Arch) -> None:
        """Make `arch` the active arch of a supernet; only its blocks are computed.

        Raises:
            ArchError: `arch` does not belong to the supernet's space.
        """
        plans = self.table.blocks(arch)
        self.arch = arch
        self.first_conv.conv.active_out_channels = arch["width.first_conv"]  # type: ignore[assignment]
        self.active_depths = [0] * len(self.stages)
        for plan in plans:
            self.stages[plan.stage_index][plan.block_index].set_plan(plan)  # type: ignore[index, operator]
            self.active_depths[plan.stage_index] += 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to four maps (B, C, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32."""
        features = self.first_conv(images)
        taps = []
        for index, (stage, depth) in enumerate(zip(self.stages, self.active_depths, strict=True)):
            for block, _ in zip(stage, range(depth), strict=False):  # type: ignore[arg-type]
                features = block(features)
            if index in self.table.tap_indices:
                taps.append(features)
        return taps

    def set_drop_path(self, rate: float) -> None:
        """Skip blocks at random in training (Huang et al. 2016), where the shortcut is the identity.

        The last block is skipped for this share of the images, earlier blocks for linearly less, the first for none.
        """
        active = [
            block for stage, depth in zip(self.stages, self.active_depths, strict=True) for block in stage[:depth]
        ]  # type: ignore[index]
        for number, block in enumerate(active):
            block.drop_path = rate * number / max(1, len(active) - 1)


class MBConvClassifier(nn.Module):
    """The classification head: 1x1 expansion, global pooling, an optional 1x1 feature mix, dropout, linear layer.

    Args:
        table: the supernet's table.
        num_classes: outputs of the last layer.
        arch: `SUPERNET` builds the head that all archs share, an arch its plain static head.
    """

    def __init__(self, table: MBConvTable, num_classes: int, arch: ArchOrSupernet = SUPERNET) -> None:
        super().__init__()
        self.table = table
        self.num_classes = num_classes
        self.elastic = arch is SUPERNET
        arch = table.space.arch_or_largest(arch)
        layers = Layers(self.elastic, table.batch_norm_eps)
        in_channels, width = self._widths(arch)
        last = table.last_conv
        expanded = last.pooled_channels(in_channels, width)
        activation = last.activation
        self.final_expand = (
            None
            if last.pools_first
            else ConvNormActivation(layers.conv(in_channels, expanded), layers.norm(expanded), activation)
        )
        self.feature_mix = layers.conv(expanded, width, bias=last.bias) if last.mixes else None
        self.activation = ACTIVATION_MODULES[activation]()
        self.dropout = nn.Dropout(0.0)
        self.classifier = layers.linear(width, num_classes)
        initialise(self)

    def _widths(self, arch: Arch) -> tuple[int, int]:
        return arch[f"width.{self.table.stages[-1].name}"], arch["width.last_conv"]

    def set_arch(self, arch: Arch) -> None:
        """Set the active sizes of the elastic layers to those of `arch`."""
        in_channels, width = self._widths(arch)
        pooled = self.table.last_conv.pooled_channels(in_channels, width)
        if self.final_expand is not None:
            self.final_expand.conv.active_out_channels = pooled  # type: ignore[assignment]
        if self.feature_mix is not None:
            self.feature_mix.active_out_channels = width  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        """Map the body's last feature map (B, C, H, W) to logits (B, num_classes)."""
        if self.final_expand is not None:
            features = self.final_expand(features)
        pooled = features.mean((2, 3), keepdim=True)
        if self.feature_mix is not None:
            pooled = self.activation(self.feature_mix(pooled))
        return self.classifier(self.dropout(pooled.flatten(1)))


def build_body(table: MBConvTable, arch: ArchOrSupernet) -> MBConvBody:
    """Stem and stages, see `nas_transfer.supernet.networks.build_body`."""
    return MBConvBody(table, arch)


def build_classifier(table: MBConvTable, num_classes: int, arch: ArchOrSupernet) -> MBConvClassifier:
    """The classification head, see `nas_transfer.supernet.networks.build_classifier`."""
    return MBConvClassifier(table, num_classes, arch)


def build_pieces(table: MBConvTable, arch: Arch, input_size: Size) -> list[Piece]:
    """Stem and blocks for one image of `input_size` (H, W), see `nas_transfer.supernet.networks.latency_pieces`."""
    size = (int(input_size[0]), int(input_size[1]))
    plans = table.blocks(arch)
    width = arch["width.first_conv"]
    key = f"stem {table.first_conv} {width} {table.same_padding} {size}"
    pieces = [Piece(key, partial(build_stem, table, width), (IMAGE_CHANNELS, *size))]
    size = strided_size(size, table.first_conv.stride)
    for plan in plans:
        # Blocks of different stages take equal time; only the first block of a stage can have a shortcut convolution.
        plan = replace(plan, stage_index=0, block_index=int(plan.block_index > 0))
        pieces.append(Piece(f"mbconv {plan} {size}", partial(build_block, table, plan), (plan.in_channels, *size)))
        size = strided_size(size, plan.stride)
    return pieces
