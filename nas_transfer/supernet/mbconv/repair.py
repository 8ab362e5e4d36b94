"""The links of MBConv bodies, see `nas_transfer.supernet.links`."""

from __future__ import annotations

from torch import Tensor, nn

from nas_transfer.supernet.links import Link
from nas_transfer.supernet.mbconv.importance import permute_mid_channels
from nas_transfer.supernet.mbconv.network import MBConvBlock, MBConvBody


def stem(body: MBConvBody) -> nn.Module:
    """The first convolution."""
    return body.first_conv


def links(body: MBConvBody) -> list[Link]:
    """The active blocks in order."""
    found = []
    for stage, (blocks, depth) in enumerate(zip(body.stages, body.active_depths, strict=True)):
        for index, block in enumerate(list(blocks)[:depth]):  # type: ignore[call-overload]
            name = f"{body.table.stages[stage].name}.{index}"
            inner = (block.depthwise,) if block.expand is None else (block.expand, block.depthwise)
            found.append(Link(name, stage, block, inner, block.squeeze_excite, block.project, block.skipped))
    return found


def permute_hidden(link: Link, order: Tensor) -> bool:
    """Reorder the mid channels of a block that has an expansion; without one, they are its input channels."""
    block = link.block
    if not isinstance(block, MBConvBlock) or block.expand is None:
        return False
    permute_mid_channels(block, order)
    return True
