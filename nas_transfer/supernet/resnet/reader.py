"""Read ResNets, -D variants, ResNeXts, Wide ResNets and RegNets of timm and torchvision: `ElasticResNetTable`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from nas_transfer.supernet.module_readers import Conv, ModuleReader
from nas_transfer.supernet.readers import PublicNet, Reading, fewer_choices, unreadable
from nas_transfer.supernet.resnet.elastic import ElasticResNetTable
from nas_transfer.supernet.resnet.rows import CONV, POOL, ResidualStage, StemConv
from nas_transfer.supernet.weights.layout import Layout

CHANNEL_DIVISOR = 8
RELU = "relu"


@dataclass(frozen=True)
class Block:
    """Names of the layers of one block, whatever the library calls them.

    Attributes:
        name: of the block.
        convs, norms: of the convolutions in order and the norms behind them.
        squeeze: of squeeze-and-excitation before the last convolution; empty if there is none.
        shortcut: of average pooling, convolution and norm; empty where there is none.
    """

    name: str
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    squeeze: str
    shortcut: tuple[str, str, str]


def read(model: nn.Module, net: PublicNet) -> Reading | None:
    """See `nas_transfer.supernet.readers.Reader`."""
    reader = ModuleReader(net, model, (RELU,))
    if reader.has("layer4") and reader.has("conv1") and reader.has("fc"):
        stem, pool = _resnet_stem(reader)
        stages = [f"layer{number}" for number in (1, 2, 3, 4)]
        blocks = [[_resnet_block(reader, name) for name in _children(reader, stage)] for stage in stages]
        return _reading(reader, stem, pool, blocks, "fc")
    if reader.has("s4") and reader.has("stem.conv") and reader.has("head.fc"):
        _require_nothing(reader, "final_conv")
        stem = [("stem.conv", "stem.bn")]
        blocks = [[_regnet_block(reader, name) for name in _children(reader, f"s{number}")] for number in (1, 2, 3, 4)]
        return _reading(reader, stem, False, blocks, "head.fc")
    if reader.has("trunk_output.block4") and reader.has("stem") and reader.has("fc"):
        stages = [f"trunk_output.block{number}" for number in (1, 2, 3, 4)]
        blocks = [[_torchvision_regnet_block(reader, name) for name in _children(reader, stage)] for stage in stages]
        return _reading(reader, [("stem.0", "stem.1")], False, blocks, "fc")
    return None


def _children(reader: ModuleReader, name: str) -> list[str]:
    return [f"{name}.{child}" for child, _ in reader.module(name).named_children()]


def _require_nothing(reader: ModuleReader, name: str) -> None:
    """Refuse a module that the table cannot express."""
    if reader.has(name):
        raise unreadable(reader.net, name, reader.module(name), "absent")


def _resnet_stem(reader: ModuleReader) -> tuple[list[tuple[str, str]], bool]:
    """Names of convolutions and norms, and whether max pooling follows."""
    if isinstance(reader.module("conv1"), nn.Sequential):
        leaves = list(reader.leaves("conv1"))
        stem = list(zip(leaves[::3], [*leaves[1::3], "bn1"], strict=True))
        for name in leaves[2::3]:
            reader.activation(name)
    else:
        stem = [("conv1", "bn1")]
    reader.activation("act1" if reader.has("act1") else "relu")
    pool = reader.module("maxpool")
    if not isinstance(pool, nn.MaxPool2d) or (pool.kernel_size, pool.stride, pool.padding) != (3, 2, 1):
        raise unreadable(reader.net, "maxpool", pool, "3x3 max pooling of stride 2")
    return stem, True


def _resnet_block(reader: ModuleReader, name: str) -> Block:
    """BasicBlock or Bottleneck of timm or torchvision."""
    count = 3 if reader.has(f"{name}.conv3") else 2
    for part in ("se", "aa", "attn_last", "drop_block.conv"):
        _require_nothing(reader, f"{name}.{part}")
    for number in range(1, count + 1):
        reader.conv(f"{name}.conv{number}")
        own = f"{name}.act{number}"
        reader.activation(own if reader.has(own) else f"{name}.relu")
    convs, norms = (tuple(f"{name}.{word}{number}" for number in range(1, count + 1)) for word in ("conv", "bn"))
    shortcut = ("", "", "")
    if reader.has(f"{name}.downsample"):
        parts = list(reader.leaves(f"{name}.downsample"))
        shortcut = ("", parts[0], parts[1]) if len(parts) == 2 else (parts[0], parts[1], parts[2])
    return Block(name, convs, norms, "", shortcut)


def _regnet_block(reader: ModuleReader, name: str) -> Block:
    """timm's Bottleneck of RegNet."""
    for number in (1, 2):
        if reader.norm(f"{name}.conv{number}.bn") != RELU:
            raise unreadable(reader.net, f"{name}.conv{number}.bn", "another activation", "followed by ReLU")
    reader.activation(f"{name}.act3")
    convs, norms = (tuple(f"{name}.conv{number}.{word}" for number in (1, 2, 3)) for word in ("conv", "bn"))
    shortcut = ("", "", "")
    if reader.has(f"{name}.downsample"):
        parts = list(reader.leaves(f"{name}.downsample"))
        if len(parts) != 2:
            raise unreadable(reader.net, f"{name}.downsample", reader.module(f"{name}.downsample"), "a 1x1 convolution")
        shortcut = ("", parts[0], parts[1])
    return Block(name, convs, norms, f"{name}.se" if reader.has(f"{name}.se") else "", shortcut)


def _torchvision_regnet_block(reader: ModuleReader, name: str) -> Block:
    """torchvision's ResBottleneckBlock."""
    for part in ("f.a.2", "f.b.2", "activation"):
        reader.activation(f"{name}.{part}")
    convs, norms = (tuple(f"{name}.f.{part}.{index}" for part in "abc") for index in (0, 1))
    shortcut = ("", f"{name}.proj.0", f"{name}.proj.1") if reader.has(f"{name}.proj") else ("", "", "")
    return Block(name, convs, norms, f"{name}.f.se" if reader.has(f"{name}.f.se") else "", shortcut)


def _reading(
    reader: ModuleReader, stem: list[tuple[str, str]], pool: bool, stages: list[list[Block]], classifier: str
) -> Reading:
    """The table and the layout."""
    net, layout = reader.net, Layout()
    rows, activations = [], set()
    for number, (conv, norm) in enumerate(stem):
        layout.conv_norm(f"body.stem.{number}", conv, norm)
        reader.norm(norm)
    for index, blocks in enumerate(stages):
        rows.append(_stage(reader, f"s{index + 1}", blocks))
        for number, block in enumerate(blocks):
            _add_block(layout, f"body.stages.{index}.{number}", block)
            if block.squeeze:
                squeeze = reader.squeeze(block.squeeze)
                activations.add(squeeze.activations)
                target = f"body.stages.{index}.{number}.squeeze_excite"
                layout.conv(f"{target}.squeeze", squeeze.squeeze, bias=True)
                layout.conv(f"{target}.excite", squeeze.excite, bias=True)
    layout.conv("head.classifier", classifier, bias=True)
    if reader.eps is None:
        raise unreadable(net, stem[0][1], "none", "a BatchNorm")
    if len(activations) > 1:
        raise unreadable(net, "squeeze-and-excitation", f"{sorted(activations)}", "the same in all blocks")
    table = ElasticResNetTable(
        name=net.name,
        resolutions=net.resolutions,
        stem=_stem_rows([reader.conv(conv) for conv, _ in stem]),
        max_pool=pool,
        stages=tuple(rows),
        batch_norm_eps=reader.eps,
        preprocessing=net.preprocessing,
        squeeze_activations=next(iter(activations), (RELU, "sigmoid")),
        source=net,
    )
    return Reading(table, layout)


def _add_block(layout: Layout, target: str, block: Block) -> None:
    *inner, last = zip(block.convs, block.norms, strict=True)
    for number, (conv, norm) in enumerate(inner):
        layout.conv_norm(f"{target}.inner.{number}", conv, norm)
    layout.conv_norm(f"{target}.project", *last)
    if block.shortcut[1]:
        layout.conv_norm(f"{target}.shortcut", block.shortcut[1], block.shortcut[2])


def _stem_rows(convs: list[Conv]) -> tuple[StemConv, ...]:
    """The last convolution keeps its width, which the stages read; the others may be narrower."""
    rows = []
    for conv in convs[:-1]:
        rows.append(StemConv(_part_widths(conv.out_channels, CHANNEL_DIVISOR), (conv.kernel_size,), conv.stride))
    last = convs[-1]
    kernels = tuple(range(3, last.kernel_size + 1, 2)) or (last.kernel_size,)
    return (*rows, StemConv((last.out_channels,), kernels, last.stride))


def _stage(reader: ModuleReader, name: str, blocks: list[Block]) -> ResidualStage:
    """The row of a stage; ConfigError if its blocks differ in more than the first one's input and stride."""
    net, first = reader.net, blocks[0]
    squeezes, shapes = [], []
    for block in blocks:
        convs = [reader.conv(conv) for conv in block.convs]
        for norm in block.norms:
            reader.norm(norm)
        bottleneck = len(convs) == 3
        widths = {conv.out_channels for conv in convs[:-1]}
        spatial = convs[1] if bottleneck else convs[0]
        kernels = [conv.kernel_size for conv in convs]
        if len(widths) > 1 or kernels != ([1, 3, 1] if bottleneck else [3, 3]):
            needed = "a block of 1x1, 3x3, 1x1 or of 3x3, 3x3 convolutions with one width inside"
            raise unreadable(net, block.name, f"kernels {kernels} and widths {sorted(widths)}", needed)
        if any(conv.same_padding for conv in convs):
            raise unreadable(net, block.name, "padding that depends on the image", "padded by half the kernel")
        if convs[0].stride > 1 and bottleneck:
            raise unreadable(
                net, block.convs[0], f"stride {convs[0].stride}", "of stride 1, with the stride in the 3x3"
            )
        if any(conv.groups > 1 and conv is not spatial for conv in convs) or (spatial.groups > 1 and not bottleneck):
            raise unreadable(net, block.name, "groups elsewhere", "a block with groups in the 3x3 convolution alone")
        group_width = spatial.in_channels // spatial.groups if spatial.groups > 1 else 0
        squeezes.append(reader.squeeze(block.squeeze).channels if block.squeeze else 0)
        stride = spatial.stride if block is first else 1
        if block is not first and (spatial.stride > 1 or block.shortcut[1]):
            raise unreadable(
                net, block.name, "a stride or a convolution in its shortcut", "a block that keeps its size"
            )
        shapes.append((convs[-1].out_channels, convs[0].out_channels, bottleneck, group_width))
    if len(set(shapes)) > 1:
        raise unreadable(net, first.name.rpartition(".")[0], f"{sorted(set(shapes))}", "made of blocks of one width")
    width, inner, bottleneck, group_width = shapes[0]
    stride = max(reader.conv(conv).stride for conv in first.convs)
    return ResidualStage(
        name=name,
        width=width,
        inner_width=_part_widths(inner, math.lcm(CHANNEL_DIVISOR, group_width or 1)),
        depth=fewer_choices(len(blocks)),
        stride=stride,
        bottleneck=bottleneck,
        group_width=group_width,
        squeeze_channels=tuple(squeezes),
        shortcut=_shortcut(reader, first, stride),
    )


def _shortcut(reader: ModuleReader, block: Block, stride: int) -> str:
    """The kind of a first block's shortcut, after a check of its layers."""
    pool, conv, norm = block.shortcut
    if not conv:
        return CONV
    reader.norm(norm)
    found = reader.conv(conv)
    if found.kernel_size != 1 or found.stride not in (1, stride) or (pool and found.stride > 1):
        raise unreadable(reader.net, conv, str(reader.module(conv)), "a 1x1 convolution")
    if not pool:
        return CONV
    module = reader.module(pool)
    expected = isinstance(module, nn.AvgPool2d) and (
        module.kernel_size, module.stride, module.ceil_mode, module.count_include_pad
    ) == (2, stride, True, False)  # fmt: skip
    if not expected or stride != 2:
        raise unreadable(reader.net, pool, str(module), "2x2 average pooling of stride 2")
    return POOL


def _part_widths(width: int, divisor: int) -> tuple[int, ...]:
    """A half, three quarters and all of a width, in multiples of `divisor`."""
    parts = {max(divisor, round(width * part / 4 / divisor) * divisor) for part in (2, 3)}
    return (*sorted(part for part in parts if part < width), width)
