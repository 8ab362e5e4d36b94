"""The links of ConvNeXt bodies, see `nas_transfer.supernet.links`."""

from __future__ import annotations

from torch import Tensor, nn

from nas_transfer.supernet.convnext.network import ConvNeXtBlock, ConvNeXtBody, Downsample
from nas_transfer.supernet.links import Branch, Link, Part


def stem(body: ConvNeXtBody) -> nn.Module:
    """The convolutions before the first stage."""
    return body.stem


def links(body: ConvNeXtBody) -> list[Link]:
    """The active blocks in order, and before each stage but the first the layer that halves the maps."""
    found = []
    for stage, (downsample, blocks) in enumerate(zip(body.downsamples, body.active_blocks(), strict=True)):
        name = body.table.stages[stage].name
        if isinstance(downsample, Downsample):
            found.append(Link(f"{name}.downsample", stage, downsample, (_unrepaired(downsample),)))
        for index, block in enumerate(blocks):
            part = Part(block.project.conv.out_channels, (branch_of(block),), _identity)
            found.append(Link(f"{name}.{index}", stage, block, (part,)))
    return found


def branch_of(block: ConvNeXtBlock) -> Branch:
    """Depthwise convolution, expansion, global response normalisation and projection."""
    return Branch((block.depthwise, block.expand), block.project, block.response_norm)


def _unrepaired(downsample: Downsample) -> Part:
    """A layer whose outputs count as a shortcut: it has the same weights in all archs and stays as it is."""
    return Part(downsample.conv.out_channels, (), lambda features, _: downsample(features))


def _identity(features: Tensor, channels: int) -> Tensor:
    return features
