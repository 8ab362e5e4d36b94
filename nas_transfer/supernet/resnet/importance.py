"""Order the channels inside the blocks of a trained residual network, so that narrow archs keep the important ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.supernet.links import Branch, permute_hidden
from nas_transfer.supernet.resnet.elastic_network import ResidualBlock


def order_by_importance(network: nn.Module) -> None:
    """Sort the inner channels of every block, most important first; the largest arch computes the same up to rounding.

    The importance of a channel is the L1 norm of its weights in the convolution that writes it and in the one that
    reads it. The groups of a grouped convolution stay together and are sorted as wholes.
    """
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            _order_block(block)


@torch.no_grad()
def _order_block(block: ResidualBlock) -> None:
    *inner, last = block.inner
    gate, group_width = block.squeeze_excite, 1
    if inner:  # a bottleneck
        (first,) = inner
        groups = last.conv.groups  # type: ignore[union-attr]
        if groups == 1:
            permute_hidden(Branch((first,), last), _order(_out_norm(first) + _in_norm(last), 1))
            importance = _out_norm(last) + _in_norm(block.project)
        else:
            group_width = len(_out_norm(first)) // groups  # type: ignore[operator]
            importance = _out_norm(first) + _out_norm(last) + _in_norm(block.project)
    else:
        importance = _out_norm(last) + _in_norm(block.project)
    permute_hidden(Branch(tuple(block.inner), block.project, gate), _order(importance, group_width))


def _out_norm(layer: nn.Module) -> Tensor:
    return layer.conv.weight.abs().sum((1, 2, 3))  # type: ignore[union-attr, operator]


def _in_norm(layer: nn.Module) -> Tensor:
    return layer.conv.weight.abs().sum((0, 2, 3))  # type: ignore[union-attr, operator]


def _order(importance: Tensor, group_width: int) -> Tensor:
    """Channels, int64, in falling order of importance; those of a group stay together."""
    groups = importance.view(-1, group_width)
    order = groups.sum(1).argsort(descending=True, stable=True)
    return (order[:, None] * group_width + torch.arange(group_width, device=order.device)).flatten()
