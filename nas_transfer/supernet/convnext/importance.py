"""Order the hidden channels of a trained ConvNeXt by importance, so that narrow archs keep the important ones."""

from __future__ import annotations

from torch import nn

from nas_transfer.supernet.convnext.network import ConvNeXtBlock
from nas_transfer.supernet.convnext.repair import branch_of
from nas_transfer.supernet.links import permute_hidden


def order_by_importance(network: nn.Module) -> None:
    """Sort the hidden channels of every block, most important first; the largest arch computes the same up to rounding.

    The importance of a channel is the L1 norm of its weights in the expansion and in the projection.
    """
    for block in network.modules():
        if isinstance(block, ConvNeXtBlock):
            expand, project = block.expand.conv.weight.detach(), block.project.conv.weight.detach()
            importance = expand.abs().sum((1, 2, 3)) + project.abs().sum((0, 2, 3))
            permute_hidden(branch_of(block), importance.argsort(descending=True, stable=True))
