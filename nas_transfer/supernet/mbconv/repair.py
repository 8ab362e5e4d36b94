"""The links of MBConv bodies, see `nas_transfer.supernet.links`."""

from __future__ import annotations

from torch import nn

from nas_transfer.supernet.links import Branch, Link, Part
from nas_transfer.supernet.mbconv.network import MBConvBlock, MBConvBody


def stem(body: MBConvBody) -> nn.Module:
    """The first convolution."""
    return body.first_conv


def links(body: MBConvBody) -> list[Link]:
    """The active blocks in order."""
    found = []
    for stage, (blocks, depth) in enumerate(zip(body.stages, body.active_depths, strict=True)):
        for index, block in enumerate(list(blocks)[:depth]):  # type: ignore[call-overload]
            part = Part(block.project.conv.out_channels, (branch_of(block),), block.skipped)
            found.append(Link(f"{body.table.stages[stage].name}.{index}", stage, block, (part,)))
    return found


def branch_of(block: MBConvBlock) -> Branch:
    """Expansion, depthwise convolution, squeeze-and-excitation and projection."""
    inner = (block.depthwise,) if block.expand is None else (block.expand, block.depthwise)
    return Branch(inner, block.project, block.squeeze_excite)
