"""Order the channels inside the blocks of a trained residual network, so that narrow archs keep the important ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.supernet.layers import ConvNormActivation
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
    layers = [*block.inner, block.project]
    if len(layers) == 2:
        writes, reads = layers
        order = _order(_out_norm(writes) + _in_norm(reads), 1)
        _permute_out(writes, order)
        _permute_in(reads, order)
    else:
        first, spatial, last = layers
        groups = spatial.conv.groups  # type: ignore[union-attr]
        if groups == 1:
            order = _order(_out_norm(first) + _in_norm(spatial), 1)
            _permute_out(first, order)
            _permute_in(spatial, order)
            order = _order(_out_norm(spatial) + _in_norm(last), 1)
            _permute_out(spatial, order)
        else:
            width = len(_out_norm(first)) // groups  # type: ignore[operator]
            order = _order(_out_norm(first) + _out_norm(spatial) + _in_norm(last), width)
            _permute_out(first, order)
            _permute_out(spatial, order)
        _permute_in(last, order)
    if block.squeeze_excite is not None:
        squeeze, excite = block.squeeze_excite.squeeze, block.squeeze_excite.excite
        squeeze.weight.copy_(squeeze.weight[:, order])
        excite.weight.copy_(excite.weight[order])
        excite.bias.copy_(excite.bias[order])  # type: ignore[union-attr, index]


def _out_norm(layer: nn.Module) -> Tensor:
    return layer.conv.weight.abs().sum((1, 2, 3))  # type: ignore[union-attr, operator]


def _in_norm(layer: nn.Module) -> Tensor:
    return layer.conv.weight.abs().sum((0, 2, 3))  # type: ignore[union-attr, operator]


def _order(importance: Tensor, group_width: int) -> Tensor:
    """Channels, int64, in falling order of importance; those of a group stay together."""
    groups = importance.view(-1, group_width)
    order = groups.sum(1).argsort(descending=True, stable=True)
    return (order[:, None] * group_width + torch.arange(group_width)).flatten()


def _permute_out(layer: ConvNormActivation | nn.Module, order: Tensor) -> None:
    layer.conv.weight.copy_(layer.conv.weight[order])  # type: ignore[union-attr, index, operator]
    for tensor in layer.norm.state_dict(keep_vars=True).values():  # type: ignore[union-attr, operator]
        if tensor.dim():
            tensor.copy_(tensor[order])


def _permute_in(layer: ConvNormActivation | nn.Module, order: Tensor) -> None:
    layer.conv.weight.copy_(layer.conv.weight[:, order])  # type: ignore[union-attr, index, operator]
