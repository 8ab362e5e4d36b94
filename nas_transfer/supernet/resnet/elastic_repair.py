"""The links of elastic residual bodies, see `nas_transfer.supernet.links`.

The last convolution of each block is refitted, the 3x3 convolution of a basic block as a projection of patches.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.links import Branch, Link, Part, Patches, of_patches
from nas_transfer.supernet.resnet.elastic_network import ElasticResNetBody, ResidualBlock


def stem(body: ElasticResNetBody) -> nn.Module:
    """Convolutions and pooling."""
    return body.stem


def links(body: ElasticResNetBody) -> list[Link]:
    """The active blocks in order."""
    found = []
    for stage, blocks in enumerate(body.active_blocks()):
        for index, block in enumerate(blocks):
            name = f"{body.table.stages[stage].name}.{index}"
            found.append(Link(name, stage, block, (_part(block),), rectified=True))
    return found


def _part(block: ResidualBlock) -> Part:
    """What a block adds up before its ReLU."""
    channels = block.project.norm.num_features
    inner: tuple[ConvNormActivation, ...] = tuple(block.inner)  # type: ignore[assignment]
    if block.project.conv.kernel_size == (1, 1):
        main = Branch(inner, block.project, block.squeeze_excite)
    else:
        project = ConvNormActivation(of_patches(block.project.conv), block.project.norm, None)
        main = Branch(inner, project, Patches(block.project.conv.kernel_size[0]))
    if block.shortcut is None:
        return Part(channels, (main,), lambda features, _: features)
    strided, norm = block.shortcut.conv, block.shortcut.norm
    stride = strided.stride[0]
    conv = copy.copy(strided)  # with the same weight
    conv.stride = (1, 1)

    def reads(features: Tensor) -> Tensor:
        """The pixels that the shortcut's convolution reads."""
        return block.pooled(features) if block.pool else features[:, :, ::stride, ::stride]

    return Part(channels, (main, Branch((), ConvNormActivation(conv, norm, None), reads=reads)))
