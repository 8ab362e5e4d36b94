"""Read timm's and torchvision's MobileNetV2 and V3, EfficientNets, MNASNet, FBNet, TinyNet, HardCoRe: `MBConvTable`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torchvision.models.efficientnet import EfficientNet
from torchvision.models.mnasnet import MNASNet
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.mobilenetv3 import MobileNetV3

from nas_transfer.supernet.mbconv.blocks import IDENTITY, SQUEEZE_ACTIVATIONS
from nas_transfer.supernet.mbconv.rows import (
    ACTIVATIONS,
    FUSED,
    INVERTED,
    PLAIN,
    BlockRow,
    FirstConv,
    LastConv,
    StageTable,
    expanded_channels,
)
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.module_readers import Conv, ModuleReader, Squeeze, is_squeeze
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.supernet.readers import PublicNet, Reading, fewer_choices, narrower_choices, unreadable
from nas_transfer.supernet.weights.layout import Layout

SHORTCUT_FLAGS = ("has_skip", "use_res_connect", "apply_residual")


@dataclass(frozen=True)
class Unit:
    """A convolution, its norm, and the activation behind it, empty if there is none; or squeeze-and-excitation."""

    conv: Conv
    norm: str
    activation: str


@dataclass(frozen=True)
class Block:
    """One block as it was read.

    Attributes:
        name: of the block in the network.
        kind: `INVERTED`, `FUSED` or `PLAIN`.
        expand, depthwise, project: its convolutions, None where the kind has none.
        squeeze: squeeze-and-excitation before the projection.
    """

    name: str
    kind: str
    expand: Unit | None
    depthwise: Unit | None
    squeeze: Squeeze | None
    project: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        """The convolutions in order."""
        return tuple(unit for unit in (self.expand, self.depthwise, self.project) if unit is not None)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.units[0].conv.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.project.conv.out_channels

    @property
    def spatial(self) -> Unit:
        """The convolution with a kernel and a stride."""
        return self.depthwise or self.expand or self.project

    @property
    def activation(self) -> str:
        """Name of the activation inside, or behind the convolution of a plain block."""
        return self.spatial.activation

    @property
    def row(self) -> BlockRow:
        """Its largest sizes."""
        return BlockRow(
            mid_channels=self.project.conv.in_channels if self.kind != PLAIN else self.out_channels,
            kernel_size=self.spatial.conv.kernel_size,
            squeeze_channels=0 if self.squeeze is None else self.squeeze.channels,
            expand=self.expand is not None,
        )


@dataclass(frozen=True)
class Head:
    """The classification head.

    Attributes:
        expand: the 1x1 convolution before the pooling, if there is one.
        mix: the 1x1 convolution or linear layer between the pooling and the classifier, and its activation.
        classifier: the last linear layer.
    """

    expand: Unit | None
    mix: tuple[str, str] | None
    classifier: str


def read(model: nn.Module, net: PublicNet) -> Reading | None:
    """See `nas_transfer.supernet.readers.Reader`."""
    reader = ModuleReader(net, model, ACTIVATIONS)
    if all(reader.has(name) for name in ("conv_stem", "blocks", "conv_head", "classifier")):
        names = list(_blocks_below(reader, "blocks"))
        stem, head = _unit(reader, ["conv_stem", "bn1"]), _timm_head(reader)
    elif isinstance(model, EfficientNet | MobileNetV2 | MobileNetV3):
        first, *middle, last = [f"features.{name}" for name, _ in model.features.named_children()]
        names = [name for part in middle for name in _blocks_below(reader, part)]
        stem = _unit(reader, list(reader.leaves(first)))
        head = _torchvision_head(reader, _unit(reader, list(reader.leaves(last))))
    elif isinstance(model, MNASNet):
        leaves = [f"layers.{number}" for number in range(len(model.layers))]
        stem, end = _unit(reader, leaves[:3]), _unit(reader, leaves[-3:])
        names = [name for part in leaves[8:-3] for name in _blocks_below(reader, part)]
        blocks = [_block(reader, "layers.3-7", leaves[3:8]), *(_whole_block(reader, name) for name in names)]
        return _reading(reader, stem, blocks, _torchvision_head(reader, end))
    else:
        return None
    return _reading(reader, stem, [_whole_block(reader, name) for name in names], head)


def _blocks_below(reader: ModuleReader, name: str) -> list[str]:
    """Names of the blocks in a module: those with a flag that says whether they have a shortcut, or the module."""
    module = reader.module(name)
    if any(hasattr(module, flag) for flag in SHORTCUT_FLAGS) or not isinstance(module, nn.Sequential):
        return [name]
    return [below for child, _ in module.named_children() for below in _blocks_below(reader, f"{name}.{child}")]


def _whole_block(reader: ModuleReader, name: str) -> Block:
    """A block that is a module; ConfigError if its shortcut is not the identity where the table has one."""
    block = _block(reader, name, list(reader.leaves(name)))
    module = reader.module(name)
    skips = next((bool(getattr(module, flag)) for flag in SHORTCUT_FLAGS if hasattr(module, flag)), False)
    keeps = block.in_channels == block.out_channels and block.spatial.conv.stride == 1
    if skips != keeps:
        has = "without a shortcut" if keeps else "with a shortcut"
        raise unreadable(reader.net, name, f"one {has}", "a block that has a shortcut where it keeps size and channels")
    return block


def _block(reader: ModuleReader, name: str, leaves: list[str]) -> Block:
    """A block of these layers in order."""
    squeezes = [leaf for leaf in leaves if is_squeeze(reader.module(leaf))]
    units = _units(reader, [leaf for leaf in leaves if leaf not in squeezes])
    squeeze = reader.squeeze(squeezes[0]) if squeezes else None
    last_conv = units[-1].conv.name
    before = not squeezes or leaves.index(squeezes[0]) == leaves.index(last_conv) - 1
    kinds = ["d" if unit.conv.depthwise else "1" if unit.conv.pointwise else "k" for unit in units]
    linear = [bool(unit.activation) for unit in units]
    pattern = "".join(kinds)
    if before and len(squeezes) < 2 and linear == [True] * (len(units) - 1) + [False]:
        if pattern == "1d1":
            return Block(name, INVERTED, units[0], units[1], squeeze, units[2])
        if pattern == "d1":
            return Block(name, INVERTED, None, units[0], squeeze, units[1])
        if pattern == "k1" and units[0].conv.groups == 1:
            return Block(name, FUSED, units[0], None, squeeze, units[1])
    if not squeezes and linear == [True] and units[0].conv.groups == 1:
        return Block(name, PLAIN, None, None, None, units[0])
    needed = "an inverted bottleneck, a fused one, or one convolution with an activation"
    raise unreadable(reader.net, name, reader.module(name) if "-" not in name else name, needed)


def _units(reader: ModuleReader, leaves: list[str]) -> list[Unit]:
    """Layers in order as convolutions with their norms and activations."""
    starts = [index for index, leaf in enumerate(leaves) if isinstance(reader.module(leaf), nn.Conv2d)]
    if not starts or starts[0]:
        raise unreadable(reader.net, leaves[0], reader.module(leaves[0]), "a convolution")
    return [_unit(reader, leaves[start:end]) for start, end in pairwise([*starts, len(leaves)])]


def _unit(reader: ModuleReader, leaves: list[str]) -> Unit:
    """A convolution, a norm, and at most one activation."""
    conv = reader.conv(leaves[0])
    if len(leaves) < 2:
        raise unreadable(reader.net, leaves[0], "one without", "followed by a BatchNorm")
    activation = reader.norm(leaves[1])
    if len(leaves) > 2:
        if activation or len(leaves) > 3:
            raise unreadable(reader.net, leaves[-1], reader.module(leaves[-1]), "absent")
        activation = reader.activation(leaves[2])
    return Unit(conv, leaves[1], activation)


def _timm_head(reader: ModuleReader) -> Head:
    pool = reader.module("global_pool")
    if getattr(pool, "pool_type", "avg") != "avg":
        raise unreadable(reader.net, "global_pool", str(pool), "average pooling")
    if reader.has("bn2"):
        return Head(_unit(reader, ["conv_head", "bn2"]), None, "classifier")
    if reader.has("norm_head"):
        raise unreadable(reader.net, "norm_head", reader.module("norm_head"), "absent")
    module = reader.module("conv_head")
    if not isinstance(module, nn.Conv2d) or not reader.conv("conv_head", bias=module.bias is not None).pointwise:
        raise unreadable(reader.net, "conv_head", module, "a 1x1 convolution")
    return Head(None, ("conv_head", reader.activation("act2")), "classifier")


def _torchvision_head(reader: ModuleReader, expand: Unit) -> Head:
    layers = list(reader.leaves("classifier"))
    if len(layers) == 1:
        return Head(expand, None, layers[0])
    if len(layers) != 3 or not isinstance(reader.module(layers[0]), nn.Linear):
        raise unreadable(reader.net, "classifier", reader.module("classifier"), "one or two linear layers")
    return Head(expand, (layers[0], reader.activation(layers[1])), layers[2])


def _reading(reader: ModuleReader, stem: Unit, blocks: list[Block], head: Head) -> Reading:
    """The table and the layout."""
    net, stages = reader.net, _grouped(blocks)
    rows = tuple(_stage(reader, f"s{index}", stage) for index, stage in enumerate(stages))
    gates = {block.squeeze.activations for block in blocks if block.squeeze is not None}
    if len(gates) > 1:
        raise unreadable(net, "squeeze-and-excitation", f"{sorted(gates)}", "the same in all blocks")
    convs = [stem.conv, *(unit.conv for block in blocks for unit in block.units)]
    same = {conv.same_padding for conv in convs if conv.stride > 1 and conv.kernel_size > 1}
    if len(same) > 1 or reader.eps is None:
        raise unreadable(net, stem.conv.name, "two kinds", "padded as all strided convolutions are")
    table = MBConvTable(
        name=net.name,
        resolutions=net.resolutions,
        first_conv=FirstConv((stem.conv.out_channels,), stem.conv.kernel_size, stem.conv.stride, stem.activation),
        stages=rows,
        last_conv=_last_conv(reader, blocks[-1], head),
        tap_stages=_taps(reader, stem, rows),
        batch_norm_eps=reader.eps,
        preprocessing=net.preprocessing,
        shortcut=IDENTITY,
        same_padding=same == {True},
        kernel_transform=True,
        squeeze_activations=next(iter(gates), SQUEEZE_ACTIVATIONS),
        source=net,
    )
    return Reading(table, _layout(stem, stages, head, table.last_conv.bias))


def _grouped(blocks: list[Block]) -> list[list[Block]]:
    """Blocks in stages: a stage ends before a block that changes size, channels, kind or activation."""
    stages: list[list[Block]] = []
    for block in blocks:
        keeps = block.spatial.conv.stride == 1 and block.in_channels == block.out_channels
        last = stages[-1][-1] if stages else None
        if last is not None and keeps and (last.kind, last.activation) == (block.kind, block.activation):
            stages[-1].append(block)
        else:
            stages.append([block])
    return stages


def _stage(reader: ModuleReader, name: str, blocks: list[Block]) -> StageTable:
    """The row of a stage; `narrower_choices` of its nominal expand ratio, and kernels of 3 and more."""
    first = blocks[0]
    for block in blocks:
        if any(unit.activation != block.activation for unit in block.units[:-1]):
            raise unreadable(reader.net, block.name, "several activations", "a block with one activation inside")
    expanding = [block for block in blocks if block.expand is not None]
    ratios = [max(1, round(block.row.mid_channels / block.in_channels)) for block in expanding]
    largest = max(block.row.kernel_size for block in blocks)
    return StageTable(
        name=name,
        width=(first.out_channels,),
        depth=fewer_choices(len(blocks)),
        kernel_size=tuple(range(3, largest + 1, 2)) if first.kind == INVERTED and largest > 3 else (largest,),
        expand_ratio=narrower_choices(max(ratios)) if ratios else (1,),
        stride=first.spatial.conv.stride,
        squeeze_excite=any(block.squeeze is not None for block in blocks),
        activation=first.activation,
        kind=first.kind,
        blocks=tuple(block.row for block in blocks),
    )


def _taps(reader: ModuleReader, stem: Unit, rows: tuple[StageTable, ...]) -> tuple[str, ...]:
    """The last stage at each of the strides 4, 8, 16 and 32."""
    stride, last = stem.conv.stride, {}
    for row in rows:
        stride *= row.stride
        last[stride] = row.name
    if not set(TAP_STRIDES) <= set(last):
        raise unreadable(reader.net, "the body", f"strides {sorted(last)}", f"of strides {list(TAP_STRIDES)}")
    return tuple(last[stride] for stride in TAP_STRIDES)


def _last_conv(reader: ModuleReader, block: Block, head: Head) -> LastConv:
    """The row of the head."""
    if head.mix is None:
        if head.expand is None or not head.expand.conv.pointwise:
            raise unreadable(reader.net, head.classifier, "no 1x1 convolution before it", "behind a 1x1 convolution")
        return LastConv((head.expand.conv.out_channels,), None, head.expand.activation)
    name, activation = head.mix
    module = reader.module(name)
    width = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
    if head.expand is None:
        return LastConv((int(str(width)),), None, activation, bias=module.bias is not None, pools_first=True)
    pooled = head.expand.conv.out_channels
    ratio = round(pooled / block.out_channels)
    if expanded_channels(block.out_channels, ratio) != pooled or head.expand.activation != activation:
        needed = f"a multiple of {block.out_channels} channels, with the activation of the classifier"
        raise unreadable(reader.net, head.expand.conv.name, f"{pooled} with {head.expand.activation}", needed)
    return LastConv((int(str(width)),), ratio, activation, bias=True)


def _layout(stem: Unit, stages: list[list[Block]], head: Head, bias: bool) -> Layout:
    """The layout of the weights; `bias`: whether the convolution behind the pooling has one."""
    layout = Layout()
    layout.conv_norm("body.first_conv", stem.conv.name, stem.norm)
    for index, stage in enumerate(stages):
        for number, block in enumerate(stage):
            target = f"body.stages.{index}.{number}"
            for part, unit in (("expand", block.expand), ("depthwise", block.depthwise), ("project", block.project)):
                if unit is not None:
                    layout.conv_norm(f"{target}.{part}", unit.conv.name, unit.norm)
            if block.squeeze is not None:
                layout.conv(f"{target}.squeeze_excite.squeeze", block.squeeze.squeeze, bias=True)
                layout.conv(f"{target}.squeeze_excite.excite", block.squeeze.excite, bias=True)
    if head.expand is not None:
        layout.conv_norm("head.final_expand", head.expand.conv.name, head.expand.norm)
    if head.mix is not None:
        layout.conv("head.feature_mix", head.mix[0], bias=bias)
    layout.conv("head.classifier", head.classifier, bias=True)
    return layout
