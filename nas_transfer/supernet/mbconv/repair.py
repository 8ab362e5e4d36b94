"""The links of MBConv bodies, see `nas_transfer.supernet.links`."""

from __future__ import annotations

from torch import nn

from nas_transfer.supernet.links import Branch, Link, Part
from nas_transfer.supernet.mbconv.block_modules import Block, FusedBlock, MBConvBlock, PlainBlock
from nas_transfer.supernet.mbconv.network import MBConvBody


def stem(body: MBConvBody) -> nn.Module:
    """The first convolution."""
    return body.first_conv


def links(body: MBConvBody) -> list[Link]:
    """The active blocks in order."""
    found = []
    for stage, (blocks, depth) in enumerate(zip(body.stages, body.active_depths, strict=True)):
        for index, block in enumerate(list(blocks)[:depth]):  # type: ignore[call-overload]
            part = _part(block)
            found.append(Link(f"{body.table.stages[stage].name}.{index}", stage, block, (part,)))
    return found


def _part(block: Block) -> Part:
    """The output of a block; a plain convolution has no projection that is refitted."""
    channels = block.project.norm.num_features
    if isinstance(block, PlainBlock):
        return Part(channels, (), lambda features, _: block(features))
    return Part(channels, (branch_of(block),), block.skipped)


def branch_of(block: MBConvBlock | FusedBlock) -> Branch:
    """Expansion, depthwise convolution, squeeze-and-excitation and projection."""
    if isinstance(block, FusedBlock):
        return Branch((block.expand,), block.project, block.squeeze_excite)
    inner = (block.depthwise,) if block.expand is None else (block.expand, block.depthwise)
    return Branch(inner, block.project, block.squeeze_excite)
