"""Order the channels inside the blocks of a trained net by importance, so that narrow archs keep the important ones."""

from __future__ import annotations

from torch import Tensor, nn

from nas_transfer.supernet.links import permute_hidden
from nas_transfer.supernet.mbconv.block_modules import FusedBlock, MBConvBlock
from nas_transfer.supernet.mbconv.repair import branch_of


def order_by_importance(network: nn.Module) -> None:
    """Sort the mid channels of every expanding block, most important first; the largest arch computes the same.

    The importance of a channel is the L1 norm of its weights in the expansion and in the projection. Once-for-all (Cai
    et al. 2020, section 3.3) takes the norm in the following layer alone.
    """
    for block in network.modules():
        if isinstance(block, MBConvBlock | FusedBlock) and block.expand is not None:
            expand, project = block.expand.conv.weight, block.project.conv.weight
            importance = expand.detach().abs().sum((1, 2, 3)) + project.detach().abs().sum((0, 2, 3))
            permute_mid_channels(block, importance.argsort(descending=True, stable=True))


def permute_mid_channels(block: MBConvBlock | FusedBlock, order: Tensor) -> None:
    """Reorder the mid channels of a block in place, without changing what it computes up to rounding.

    Args:
        block: a block with an expansion, elastic or plain.
        order: int64 (mid,), for each new channel the index of the old one.

    Raises:
        ValueError: the block has no expansion, so its mid channels are its input channels.
    """
    if not permute_hidden(branch_of(block), order):
        raise ValueError("the block must have an expansion convolution, got one without")
