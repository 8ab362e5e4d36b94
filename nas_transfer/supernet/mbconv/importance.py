"""Order the channels inside the blocks of a trained net by importance, so that narrow archs keep the important ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.supernet.mbconv.network import MBConvBlock


def order_by_importance(network: nn.Module) -> None:
    """Sort the mid channels of every expanding block, most important first; the largest arch computes the same.

    The importance of a channel is the L1 norm of its weights in the expansion and in the projection. Once-for-all (Cai
    et al. 2020, section 3.3) takes the norm in the following layer alone.
    """
    for block in network.modules():
        if isinstance(block, MBConvBlock) and block.expand is not None:
            expand, project = block.expand.conv.weight, block.project.conv.weight
            importance = expand.detach().abs().sum((1, 2, 3)) + project.detach().abs().sum((0, 2, 3))
            permute_mid_channels(block, importance.argsort(descending=True, stable=True))


def permute_mid_channels(block: MBConvBlock, order: Tensor) -> None:
    """Reorder the mid channels of a block in place, without changing what it computes up to rounding.

    Args:
        block: a block with an expansion, elastic or plain.
        order: int64 (mid,), for each new channel the index of the old one.

    Raises:
        ValueError: the block has no expansion, so its mid channels are its input channels.
    """
    if block.expand is None:
        raise ValueError("the block must have an expansion convolution, got one without")
    with torch.no_grad():
        for part in (block.expand, block.depthwise):
            part.conv.weight.copy_(part.conv.weight[order])
            for tensor in part.norm.state_dict(keep_vars=True).values():
                if tensor.dim():
                    tensor.copy_(tensor[order])
        if block.squeeze_excite is not None:
            squeeze, excite = block.squeeze_excite.squeeze, block.squeeze_excite.excite
            squeeze.weight.copy_(squeeze.weight[:, order])
            excite.weight.copy_(excite.weight[order])
            excite.bias.copy_(excite.bias[order])  # type: ignore[union-attr, index]
        block.project.conv.weight.copy_(block.project.conv.weight[:, order])
